"""Where Processing jobs run: this machine, SageMaker."""
