"""Write a few small text files to try the pipeline on.

python generate.py data
"""

from __future__ import annotations

import argparse
from pathlib import Path


def generate(out: str | Path, *, files: int = 20) -> list[str]:
    """Write ``files`` text files under ``out``; file ``i`` has ``i`` lines. Returns their names."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"file-{i:03d}.txt" for i in range(1, files + 1)]
    for i, name in enumerate(names, start=1):
        folder.joinpath(name).write_text("".join(f"line {n} of {i}\n" for n in range(1, i + 1)))
    return names


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a few small text files.")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--files", type=int, default=20, help="how many (default: 20)")
    args = parser.parse_args()
    names = generate(args.out, files=args.files)
    print(f"{len(names)} files are in {args.out}; now: shardkit run pipeline.yaml")


if __name__ == "__main__":
    main()
