"""One epoch over the Parquet files of a folder, in batches of tensors: by a stream of Hugging Face's datasets.

python batches_by_datasets.py FOLDER WORKERS by-loader|by-dataset [shuffle]

The batches are made by the DataLoader, as its page shows first, or by the dataset itself, which is faster.
"""

import sys
from pathlib import Path

import datasets
from torch.utils.data import DataLoader

if __name__ == "__main__":
    folder, workers, batches, *shuffle = sys.argv[1:]
    files = sorted(str(path) for path in Path(folder).glob("*.parquet"))
    samples = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, columns=["id", "embedding"]
    )
    samples = samples.with_format("torch")
    if shuffle:
        samples = samples.shuffle(seed=1, buffer_size=8192)
    if batches == "by-dataset":
        loader = DataLoader(samples.batch(256), batch_size=None, num_workers=int(workers))
    else:
        loader = DataLoader(samples, batch_size=256, num_workers=int(workers))
    rows, total = 0, 0.0
    for batch in loader:
        rows += len(batch["id"])
        total += float(batch["embedding"][:, 0].sum())
    print(rows, round(total))
