"""A dataset compared with all notes about it: those of its files, and the ledgers of its runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.dataset.accounts import Account, faults, is_ours, part_fault, rows_in, spans_of
from shardkit.dataset.current import current_result
from shardkit.dataset.index_file import index_name, is_right, without_versioned
from shardkit.dataset.kept_files import Contents, noted_by
from shardkit.dataset.switch import finish_switches
from shardkit.dataset.switch_steps import keeps_old_files
from shardkit.errors import LedgerError, RunNotFound
from shardkit.hints import Hint, as_command
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.ledger import QUARANTINED, Ledger
from shardkit.runfolder.names import WHOLE
from shardkit.runfolder.parts import record_rows
from shardkit.runs.summary import status_of
from shardkit.storage.base import STATE_DIR, Access, File
from shardkit.storage.open import folder as folder_at
from shardkit.storage.side_by_side import together
from shardkit.units import counted

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from shardkit.runfolder.document_types import MadePartition, Marker, Result, ResultFile
    from shardkit.runfolder.ledger import CommittedPart
    from shardkit.storage.base import Folder
    from shardkit.tables.spans import RecordRows


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a dataset, and its ``cure``, in Python."""

    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}. {self.cure}"

    @property
    def command_text(self) -> str:
        """The same as the command line prints it."""
        return f"{self.what}. {as_command(self.cure)}"


@dataclass(frozen=True)
class Checked:
    """The answer of `check`; ``not_compared`` are sentences about what could not be compared."""

    output: str
    run_id: str
    files: int
    rows: int
    records: int
    faults: list[Fault] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """As ``check --json`` prints it, with the cures as commands."""
        faults = [{"what": fault.what, "cure": as_command(fault.cure)} for fault in self.faults]
        return {"ok": self.ok} | asdict(self) | {"faults": faults}

    def __str__(self) -> str:
        return self._text(map(str, self.faults))

    @property
    def command_text(self) -> str:
        """The same as the command line prints it."""
        return self._text(fault.command_text for fault in self.faults)

    def _text(self, faults: Iterable[str]) -> str:
        size = f"{counted(self.files, 'file')}, {counted(self.rows, 'row')} of {counted(self.records, 'record')}"
        verdict = f"{self.output} is as it was written: {size}."
        if self.faults:
            verdict = f"{counted(len(self.faults), 'fault')} in {self.output} ({size})."
        return "\n".join([*faults, *self.not_compared, verdict])


def check(output: str | os.PathLike[str], *, boto_session: Any = None) -> Checked:
    """Compare a dataset with all notes about it: its files, their rows, and each record's rows; changes nothing.

    Args:
        output: the folder of a dataset.
        boto_session: how S3 is reached, if not as boto3 does by default.

    Raises:
        RunNotFound: there is no dataset.
        StorageError: something cannot be listed or read.
    """
    return check_folder(folder_at(output, Access(boto_session)))


def check_folder(output: Folder) -> Checked:
    """The same for a folder that is open already."""
    finish_switches(output)
    current = current_result(output)
    if current is None:
        raise RunNotFound(f"{output.uri} holds no dataset.", hint="Give the output of a pipeline that has run.")
    checking = _Checking(output, current)
    checking.check_files()
    for run_id in sorted({made["run"] for made in checking.partitions.values()}):
        checking.check_run(run_id)
    return Checked(
        output.uri,
        current["run_id"],
        len(current["files"]),
        current["rows"],
        checking.records,
        checking.faults,
        checking.not_compared,
    )


class _Checking:
    """Goes through a dataset, and collects what is wrong with it."""

    def __init__(self, output: Folder, current: Result) -> None:
        self.faults: list[Fault] = []
        self.not_compared: list[str] = []
        self.records = 0
        self._output = output
        self._current = current
        self._rows: dict[str, dict[str, int]] = {}
        self.partitions = current["partitions"] or {WHOLE: {"run": current["run_id"], "work": "", "merge": ""}}

    def _found(self, what: str, cure: str = "", *, partition: str = WHOLE) -> None:
        days, day = (f"days=[{partition!r}]", f" --date {partition}") if partition else ("", "")
        rebuild = Hint(
            f"Make it again: pipeline.replace(incremental=False).run({days})",
            f"Make it again: shardkit run PIPELINE.yaml{day} --set incremental=false",
        )
        self.faults.append(Fault(what[:1].upper() + what[1:], cure or rebuild))

    # ---- the files

    def check_files(self) -> None:
        """See that the files that the dataset lists are there, with the rows that are noted, and no others of ours."""
        listed = {file["path"]: file for file in self._current["files"]}
        there = {e.key: e.bytes for e in self._output.entries() if not e.key.startswith(f"{STATE_DIR}/")}
        whole = [path for path, file in listed.items() if there.get(path) == file["bytes"]]
        kind = self._current["format"]
        counts = together([partial(rows_in, File(self._output, path), kind) for path in whole])
        rows = dict(zip(whole, counts, strict=True))
        for path, file in listed.items():
            partition = file["partition"]
            self._rows.setdefault(partition, {})[path] = file["rows"]
            if fault := _file_fault(file, there.get(path), rows.get(path)):
                self._found(f"{self._output.uri}/{path} {fault}", partition=partition)
        if not self.faults and index_name(self._current) and not is_right(self._output, self._current):
            self._found(
                f"{self._output.uri}/{index_name(self._current)} does not list the files of the dataset",
                Hint("Write it again: pipeline.run()", "Write it again: shardkit run PIPELINE.yaml"),
            )
        others = [] if keeps_old_files(self._output) else sorted(set(there) - set(listed))
        for path in without_versioned(others, self._current):
            if is_ours(path):
                self._found(
                    f"{self._output.uri}/{path} is no file of the dataset, but readers of the folder take it for one",
                    "Nothing counts on it: remove it, or move it elsewhere.",
                )
        total = sum(file["rows"] for file in listed.values())
        if total != self._current["rows"]:
            self._found(f"{self._output.uri} has {total:,} rows in its files, and {self._current['rows']:,} are noted")

    # ---- the runs that have made it

    def check_run(self, run_id: str) -> None:
        """Compare the partitions that a run has made with its ledger."""
        mine = {name: made for name, made in self.partitions.items() if made["run"] == run_id}
        folder = RunFolder(self._output, run_id)
        if not folder.exists():
            self._leave_out(f"the folder of run {run_id} is gone, which has made", mine)
            return
        plan = folder.plan()
        if "merge_of" in plan:
            self._check_rows(mine, {})
            return
        ledger = Ledger(folder.narrowed(mine) if plan["by_day"] else folder)
        self.records += ledger.listed
        before = len(self.faults)
        self._check_counts(ledger, mine)
        parts = ledger.partitions()
        self._check_rows(mine, parts)
        self._check_parts(ledger, [part for some in parts.values() for part in some])
        if len(self.faults) > before and (state := status_of(folder)) != "done":
            del self.faults[before:]
            self._leave_out(f"run {run_id} is gone on with, and {state}, since it has made", mine)

    def _leave_out(self, why: str, partitions: Mapping[str, MadePartition]) -> None:
        some = ", ".join(list(partitions)[:3]) or "the dataset"
        more = f" and {len(partitions) - 3:,} more" if len(partitions) > 3 else ""
        self.not_compared.append(f"Not compared with the records: {why} {some}{more}.")

    def _check_counts(self, ledger: Ledger, mine: Mapping[str, MadePartition]) -> None:
        run_id = ledger.folder.run_id
        if ledger.open:
            self._found(f"Of run {run_id} {counted(ledger.open, 'record')} are neither done nor in quarantine")
        if run_id == self._current["run_id"] and ledger.counts() != self._current["records"]:
            noted = ", ".join(f"{count:,} {name}" for name, count in self._current["records"].items())
            here = ", ".join(f"{count:,} {name}" for name, count in ledger.counts().items())
            self._found(f"Of run {run_id} the dataset notes {noted}, and the ledger has {here}")
        quarantined = ledger.quarantined_by_partition()
        for name, made in mine.items():
            if made.get("quarantined", quarantined.get(name, 0)) != quarantined.get(name, 0):
                self._found(
                    f"of {name or 'the dataset'} {made['quarantined']:,} records are noted to be in quarantine, and "
                    f"{quarantined.get(name, 0):,} are in the ledger",
                    partition=name,
                )

    def _check_rows(self, mine: Mapping[str, MadePartition], parts: dict[str, list[CommittedPart]]) -> None:
        """See that the files hold the rows that the records have given."""
        runs = sorted({noted_by(made) for made in mine.values()})
        contents_of = dict(
            zip(runs, together([partial(Contents.of_run, self._output, run) for run in runs]), strict=True)
        )
        silent = {}
        for name, made in mine.items():
            files, contents = self._rows.get(name, {}), contents_of[noted_by(made)]
            noted = name in contents.columns and any(path in contents.files for path in files)
            if not noted and "rows" not in made:
                silent[name] = made
                continue
            try:
                # Rows that a combine has made are not noted.
                combined = not noted and made["rows"] is None
                account = Account.of(parts[name], combined=combined) if name in parts else Account(made["rows"], None)
            except LedgerError as error:
                self._found(error.message.rstrip("."), partition=name)
                continue
            for fault in faults(name, account, files, contents if noted else None):
                self._found(fault, partition=name)
        if silent:
            self._leave_out("an earlier version has not noted how many rows the records have given for", silent)

    # ---- the parts, record by record

    def _check_parts(self, ledger: Ledger, parts: list[CommittedPart]) -> None:
        """See that the parts that count have the rows that are noted, and that each row is of a record that is done."""
        footers = dict(zip((p.name for p in parts), together([partial(_footer, part) for part in parts]), strict=True))
        for part in parts:
            rows, _ = footers[part.name]
            if fault := part_fault(part, rows):
                self._found(fault)
        for marker, ids in ledger.settled():
            for part in ledger.parts_of(marker):
                _, records = footers.get(part.name, (None, None))
                if records is not None and records.of(_places(ledger, marker, ids)) != spans_of(part):
                    self._found(f"{part.file} has rows of records that do not count, or lacks some of those that do")


def _file_fault(file: ResultFile, size: int | None, rows: int | None) -> str:
    """What is wrong with a file, if anything; its ``rows`` were looked up only if its ``size`` is right."""
    if size is None:
        return "is gone"
    if size != file["bytes"]:
        return f"has {size:,} bytes, and {file['bytes']:,} were written"
    if rows is None:
        return "cannot be read"
    return f"has {rows:,} rows, and {file['rows']:,} are noted" if rows != file["rows"] else ""


def _places(ledger: Ledger, marker: Marker, ids: np.ndarray) -> list[int]:
    """The positions, in a chunk as it was computed, of the records whose rows count."""
    gone = marker.get("gone", [])
    places = np.delete(np.arange(len(ids) + len(gone)), gone)
    failed = [entry["record"] for entry in marker["quarantine"]]
    counts = ~np.isin(ids, failed) & (ledger.state[ids] != QUARANTINED)
    positions: list[int] = places[counts].tolist()
    return positions


def _footer(part: CommittedPart) -> tuple[int | None, RecordRows | None]:
    """How many rows a part has, and which records they are of; None for what its file does not say."""
    try:
        with part.file.open() as file:
            footer = pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return None, None
    return footer.num_rows, record_rows(footer)
