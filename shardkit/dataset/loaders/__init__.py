"""What opens the files of a run for training: Hugging Face's `datasets`, and PyTorch."""
