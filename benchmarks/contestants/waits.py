"""A function that waits for 50 ms, as for an API, and the same by asyncio alone.

python waits.py SRC OUT CALLS_AT_ONCE
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

WAIT_S = 0.05


async def answer(record: os.PathLike[str]) -> dict[str, object]:
    """One dict, a while after it was asked for."""
    with open(record) as file:  # noqa: ASYNC230  which takes no time
        line = file.readline()
    await asyncio.sleep(WAIT_S)
    return {"name": os.path.basename(os.fspath(record)), "length": len(line)}


async def by_hand(files: list[Path], target: str, calls_at_once: int) -> None:
    """Ask for all files, so many at once, and write one Parquet file; what fails would be left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    room = asyncio.Semaphore(calls_at_once)

    async def one(file: Path) -> dict[str, object]:
        async with room:
            return await answer(file)

    rows = await asyncio.gather(*map(one, files), return_exceptions=True)
    os.makedirs(target)
    pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), f"{target}/part.parquet")


if __name__ == "__main__":
    listed = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file())
    asyncio.run(by_hand(listed, sys.argv[2], int(sys.argv[3])))
