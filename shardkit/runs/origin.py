"""Which record a row of the dataset comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from shardkit.dataset.kept_files import Contents, noted_by
from shardkit.errors import InputError, PipelineError, RunNotFound
from shardkit.runs.stored import StoredRows
from shardkit.tables.spans import clip, row_count

if TYPE_CHECKING:
    from shardkit.dataset.kept_files import Pieces
    from shardkit.runfolder.document_types import MadePartition, Result
    from shardkit.runfolder.folder import RunFolder

CURE = "Set output.origin: true: then each row says it itself, in the columns origin_record and origin_run."


@dataclass(frozen=True)
class RowOrigin:
    """Where a row of a dataset comes from.

    Attributes:
        record: The key of the record that gave it.
        run_id: The run that computed it.
        record_row: Its number among the rows of that record, from 0.
        file: The dataset's file that it is in.
        file_row: Its number in that file, from 0.
        part: The part that pass 1 wrote it to.
    """

    record: str
    run_id: str
    record_row: int
    file: str
    file_row: int
    part: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"Row {self.file_row:,} of {self.file} is row {self.record_row:,} of the record {self.record}, which run "
            f"{self.run_id} has computed."
        )


def origin_of(folder: RunFolder, row: int, file: str | None = None) -> RowOrigin:
    """Where a row of a run's dataset comes from; ``row`` counts from 0, in the ``file`` or over all files in order.

    Raises:
        RunNotFound: the run has no dataset, or a part of it is gone.
        InputError: there is no such file or row.
        PipelineError: it is not known, because a combine, partition_by or shuffle has put the rows in another order.
    """
    result = folder.result()
    if result is None:
        raise RunNotFound(f"Run {folder.run_id} has no dataset yet.", hint="Resume it first.")
    path, file_row = _located(result, row, file)
    partition = next(each["partition"] for each in result["files"] if each["path"] == path)
    made: MadePartition = result["partitions"].get(partition) or {"run": result["run_id"], "work": "", "merge": ""}
    maker = replace(folder, run_id=made["run"], days=None, on_top=False)
    stored = StoredRows(maker.narrowed([partition]) if result["by_day"] else maker)
    pieces = Contents.of_run(folder.output, noted_by(made)).files.get(path)
    if pieces is None:
        pieces = _in_order(stored, result, partition, path)
    part, part_row = _at(pieces, file_row)
    record, record_row = stored.record_at(part, part_row)
    key = stored.folder.records(["key"])["key"][record].as_py()
    return RowOrigin(key, part.partition("/")[0], record_row, path, file_row, part)


def _located(result: Result, row: int, file: str | None) -> tuple[str, int]:
    """The file and the row's number in it."""
    files = result["files"]
    if file is not None:
        named = [each for each in files if each["path"] == file] or [
            each for each in files if each["path"].rpartition("/")[2] == file.rpartition("/")[2]
        ]
        if not named:
            first = f" They are {files[0]['path']} ..." if files else ""
            raise InputError(f"The dataset has no file {file}.{first}")
        files = named[:1]
    left = row
    for each in files:
        if 0 <= left < each["rows"]:
            return each["path"], left
        left -= each["rows"]
    total = sum(each["rows"] for each in files)
    raise InputError(f"There is no row {row:,}: {file or 'the dataset'} has {total:,} rows, the first of which is 0.")


def _in_order(stored: StoredRows, result: Result, partition: str, path: str) -> Pieces:
    """What a file holds that was written in the order of the parts, and of which there are no notes.

    Raises:
        PipelineError: it was not.
    """
    pipeline = stored.folder.plan()["pipeline"]
    named, output = "combine" if pipeline.get("combine") else "", pipeline.get("output", {})
    if output.get("partition_by"):
        named = "output.partition_by"
    if output.get("shuffle") is not None:
        named = "output.shuffle"
    if named:
        raise PipelineError(f"{named} has put the rows in another order, which nothing has noted.", hint=CURE)
    start = 0
    for each in (each for each in result["files"] if each["partition"] == partition):
        if each["path"] == path:
            break
        start += each["rows"]
    pieces: Pieces = []
    begin = 0
    for part in stored.ledger.partitions()[partition]:
        spans = part.spans if part.spans is not None else ((0, part.rows),)
        count = row_count(spans)
        if wanted := clip(spans, start - begin, start - begin + each["rows"]):
            pieces.append((part.name, wanted))
        begin += count
    return pieces


def _at(pieces: Pieces, row: int) -> tuple[str, int]:
    """The part that holds a row of a file, and the row's number in the part."""
    for part, spans in pieces:
        count = row_count(spans)
        if row < count:
            return part, clip(spans, row, row + 1)[0][0]
        row -= count
    raise RunNotFound("The notes on the dataset's files do not have that row.", hint=CURE)
