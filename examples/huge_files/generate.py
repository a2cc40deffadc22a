"""Write a CSV file whose values hold newlines, and a tar of samples.

python generate.py data
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import tarfile
from pathlib import Path

NOTES = ("", "left at\nthe door", 'says "call first"', "floor 2;\nring twice, please")


def orders(file: Path, *, rows: int) -> None:
    """Write ``rows`` orders of 50 customers."""
    chance = random.Random(7)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["order", "customer", "price", "note"])
        for number in range(rows):
            price = round(chance.uniform(1, 100), 2)
            writer.writerow([number, f"c{chance.randrange(50):02d}", price, chance.choice(NOTES)])


def samples(file: Path, *, count: int) -> None:
    """Write ``count`` samples of two members each: a label, and a text."""
    chance = random.Random(8)
    with tarfile.open(file, "w") as archive:
        for number in range(count):
            words = " ".join(chance.choices(["ham", "eggs", "spam"], k=chance.randrange(5, 50)))
            for suffix, text in (("json", json.dumps({"label": words.count("spam")})), ("txt", words)):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a CSV file and a tar to try records inside files on.")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--rows", type=int, default=150_000, help="of the CSV file (default: 150000)")
    parser.add_argument("--samples", type=int, default=300, help="in the tar (default: 300)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    orders(args.out / "orders.csv", rows=args.rows)
    samples(args.out / "train.tar", count=args.samples)
    print(f"orders.csv and train.tar are in {args.out}; now: shardkit run orders.yaml, shardkit run samples.yaml")


if __name__ == "__main__":
    main()
