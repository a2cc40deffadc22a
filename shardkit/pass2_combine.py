"""Pass 2: parts to the dataset.

As a program it works alone on plain directories, as the macro/micro-sharding pattern's second script does:

    python -m shardkit.pass2_combine --input OUT... --output DATASET
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.clock import now
from shardkit.commit import dataset_lock, staging, switch
from shardkit.dataset import DataFile, Layout, write_dataset, write_stream
from shardkit.errors import CombineError, ShardkitError
from shardkit.functions import FunctionRef, user_traceback
from shardkit.merging import combined, read_source
from shardkit.progress import RowMeter

if TYPE_CHECKING:
    from pathlib import Path

    from shardkit.attempt import Attempt
    from shardkit.ledger import Ledger
    from shardkit.merging import Source


@dataclass(frozen=True)
class Merge:
    """What pass 2 shall make of the parts."""

    layout: Layout
    schema: dict[str, str] | None = None
    widen_ints: bool = False
    combine: FunctionRef | None = None


def write_merged(folder: Path, source: Source, merge: Merge, *, token: str, threads: int) -> list[DataFile]:
    """Write the parts of ``source`` as dataset files under ``folder``, their names carrying ``token``.

    Raises:
        SchemaConflict: a value does not fit its column.
        CombineError: the user's function raised.
        StorageError: something could not be read or written.
    """
    if merge.combine is None:
        return write_dataset(folder, source, merge.layout, token=token, threads=threads)
    function = merge.combine.load()
    try:
        return write_stream(folder, combined(source, function, merge.combine.name), merge.layout, token=token)
    except ShardkitError:
        raise
    except Exception as error:
        raise CombineError(
            f"combine: {merge.combine.name} raised {type(error).__name__}: {error}\n{user_traceback(error)}",
            hint="Mend it, then resume the run; pass 1 is not done again.",
        ) from error


def run_pass2(ledger: Ledger, merge: Merge, attempt: Attempt, *, name: str, threads: int) -> dict[str, Any]:
    """Merge a run's parts and switch the dataset to them; returns the result.

    Raises:
        LedgerError: records or parts are missing.
        SchemaConflict: parts give a column types that cannot be unified.
        RunBusy: another run is switching the same dataset.
    """
    folder = ledger.folder
    ledger.check()
    with dataset_lock(folder.output):
        before = folder.result()
        generation = (before["generation"] if before else 0) + 1
        token = folder.run_id if generation == 1 else f"{folder.run_id}.{generation}"
        shutil.rmtree(staging(folder), ignore_errors=True)
        source = read_source((p.path for p in ledger.parts()), schema=merge.schema, widen_ints=merge.widen_ints)
        with attempt.pass2(RowMeter(source.num_rows, lambda: sum(source.read))):
            files = write_merged(staging(folder), source, merge, token=token, threads=threads)
        result = {
            "run_id": folder.run_id,
            "name": name,
            "status": "done",
            "records": ledger.counts(),
            "rows": sum(file.rows for file in files),
            "files": [{"path": file.path, "rows": file.rows, "bytes": file.bytes} for file in files],
            "bytes_in": int(ledger.bytes.sum()),
            "bytes_out": sum(file.bytes for file in files),
            "format": merge.layout.format,
            "partition_by": list(merge.layout.partition_by),
            "started": attempt.started,
            "finished": now(),
            "seconds": round(attempt.seconds, 3),
            "attempt": attempt.number,
            "generation": generation,
        }
        switch(folder, result)
    return result
