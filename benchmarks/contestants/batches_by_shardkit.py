"""One epoch over a run of shardkit, in batches of tensors: by run.torch().

python batches_by_shardkit.py FOLDER WORKERS [shuffle]
"""

import sys

from torch.utils.data import DataLoader

import shardkit as sk

if __name__ == "__main__":
    folder, workers, *shuffle = sys.argv[1:]
    samples = sk.open_run(folder).torch(columns=["id", "embedding"], batch_size=256, shuffle=bool(shuffle), seed=1)
    rows, total = 0, 0.0
    for batch in DataLoader(samples, batch_size=None, num_workers=int(workers)):
        rows += len(batch["id"])
        total += float(batch["embedding"][:, 0].sum())
    print(rows, round(total))
