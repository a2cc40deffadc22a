"""Records of a dataset computed once more, by workers like those of a run; what they give is kept beside the dataset.

A record that kills its worker, or takes too long, costs that record alone. The rows lie in parts of a folder that is
removed in the end, so that memory does not grow with the sample.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pyarrow as pa

from shardkit.pass1_preprocessing import run_pass1
from shardkit.plan.chunks import assign_chunks
from shardkit.runfolder.attempt import Attempt
from shardkit.runfolder.find import run_folder
from shardkit.runfolder.limits import WorkLimits
from shardkit.runfolder.timings import RunTimings
from shardkit.runs.crew import worker_pool
from shardkit.runs.stored import StoredRows
from shardkit.storage.local_folder import LocalFolder
from shardkit.times import new_run_id

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from shardkit.functions import FunctionRef
    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.document_types import QuarantineEntry
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.spec.spec import Spec

# Of files that are gone, are others now, or are not given out any more.
OF_THE_INPUT = ("FileNotFoundError", "InputError", "ObjectChanged", "ObjectDamaged", "ObjectRefused")


@dataclass(frozen=True)
class Again:
    """A record that was computed again: its rows, or the error; or how its objects have changed, if they have.

    ``stored`` and ``record`` say where its earlier rows are.
    """

    stored: StoredRows
    record: int
    key: str
    rows: pa.Table = field(default_factory=lambda: pa.table({}))
    seconds: float = 0.0
    error: str = ""
    changed: str = ""


@dataclass(frozen=True)
class Work:
    """Records that one function computes again with the same settings, each with what is stored of it."""

    pipeline: Spec
    ref: FunctionRef
    records: list[tuple[StoredRows, int]] = field(default_factory=list)

    def again(self, scratch: Path, progress: Progress) -> Generator[Again, None, None]:
        """Compute them, and give one after the other.

        Raises:
            RunInterrupted: by Ctrl-C or SIGTERM.
            RunFailed: no worker can compute anything, or the disk is full.
        """
        table = pa.concat_tables(
            [stored.records.take([record]) for stored, record in self.records], promote_options="permissive"
        )
        changed = self._changes(table)
        left = np.array([i for i in range(len(self.records)) if i not in changed], np.int64)
        keys = table["key"].to_pylist()
        for i, why in changed.items():
            yield Again(*self.records[i], keys[i], changed=why)
        if not len(left):
            return
        folder = run_folder(LocalFolder(scratch), new_run_id())
        with Attempt(folder, progress, begun=time.monotonic(), fresh=True, patience_s=0.0) as attempt:
            outcomes = _Outcomes(self._compute(folder, table.take(left), attempt))
            meter = _Compared(len(left))
            with attempt.pass2(meter):
                for number, place in enumerate(left.tolist()):
                    stored, record = self.records[place]
                    yield Again(stored, record, keys[place], **outcomes.of(number))
                    meter.done += 1

    def _changes(self, table: pa.Table) -> dict[int, str]:
        """How files of this machine have changed since they were listed, by the record's place in the table.

        Those of a store, and pieces of files, are looked at when they are read.
        """
        if self.pipeline.inside is not None or "etags" not in table.column_names:
            return {}
        places = self.pipeline.places()
        rows = zip(table["objects"].to_pylist(), table["etags"].to_pylist(), strict=True)
        found = {i: " ".join(places.changes_since(objects, etags)) for i, (objects, etags) in enumerate(rows)}
        return {i: why for i, why in found.items() if why}

    def _compute(self, folder: RunFolder, records: pa.Table, attempt: Attempt) -> Ledger:
        pipeline, calling = self.pipeline, self.pipeline.calling(self.ref)
        workers = min(pipeline.worker_count(), joblib.cpu_count(), len(records))
        sizes = records["bytes"].to_numpy()
        chunk = assign_chunks(sizes, how="dynamic", workers=workers, at_once=calling.chunk_records)
        for name, values in (("shard", np.zeros(len(records), np.int32)), ("chunk", chunk)):
            records = records.set_column(records.schema.get_field_index(name), name, pa.array(values))
        planned = self.records[0][0].folder.plan()
        own = {"run_id": folder.run_id, "function_digest": self.ref.digest, "by_day": False, "partitions": None}
        folder.write_plan({**planned, **own, "prepared": False}, records, {"function": self.ref.pickled})
        limits = WorkLimits(workers, pipeline.timeout, "100%")
        with worker_pool(folder, pipeline.replace(workers=workers), self.ref) as pool:
            return run_pass1(folder, pool, limits, attempt, fresh=True)


class _Outcomes:
    """What became of the records, by their numbers."""

    def __init__(self, ledger: Ledger) -> None:
        self._rows = StoredRows(ledger.folder, ledger)
        self._failed = {entry["record"]: entry for entry in ledger.quarantine()}
        times = RunTimings.of_ledger(ledger).records
        self._seconds = dict(zip(times["record"].to_pylist(), times["seconds"].to_pylist(), strict=True))
        self._keys = ledger.folder.records(["key"])["key"]

    def of(self, record: int) -> dict[str, Any]:
        """The fields of `Again` that say it."""
        if (entry := self._failed.get(record)) is not None:
            message = entry["message"]
            return {"changed": message} if _is_of_the_input(entry) else {"error": f"{entry['error']}: {message}"}
        return {"rows": self._rows.of(record), "seconds": self._seconds.get(self._keys[record].as_py()) or 0.0}


def _is_of_the_input(entry: QuarantineEntry) -> bool:
    """Whether a record failed before its function was called: then its traceback has no frame of the user's."""
    return entry["error"] in OF_THE_INPUT and 'File "' not in (entry.get("traceback") or "")


class _Compared:
    """How many records are compared, as a display shows it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def read(self) -> tuple[int, str]:
        """The number, and a line about it."""
        return self.done, f"{self.done:,}/{self.total:,} records compared"

    def left_s(self) -> float | None:
        """Not known: it is soon done."""
        return None
