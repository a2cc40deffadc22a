"""The notes on a dataset's files, compared with the files themselves and with the ledger.

Rows are accounted for three times: by the ledger, as the rows of the parts that its records have given; by the notes on
which rows of which parts each file holds; and by the files. Unless all three agree, the dataset is not switched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from shardkit.dataset.formats.kinds import FORMATS, format_of
from shardkit.dataset.kept_files import count_of
from shardkit.errors import LedgerError
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together
from shardkit.tables.spans import joined, row_count
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shardkit.dataset.kept_files import Contents, Pieces
    from shardkit.dataset.writer import DataFile
    from shardkit.runfolder.ledger import CommittedPart
    from shardkit.storage.base import Folder
    from shardkit.tables.spans import Spans

# How the files of a dataset are named, including those of pass 1 alone; their format adds a suffix.
OURS = re.compile(r"(.*/)?part-\d{5}-[^/]+")
CURE = "Compute it again, with incremental: false. If that is refused too, it is a bug in shardkit: please report it."


def is_ours(path: str) -> bool:
    """Whether a file has a name like those of a dataset's files, and readers of the folder would read it as one."""
    suffixes = tuple(kind.suffix for kind in FORMATS.loaded())
    hidden = any(name.startswith(("_", ".")) for name in path.split("/"))
    return not hidden and path.endswith(suffixes) and bool(OURS.fullmatch(path))


@dataclass(frozen=True)
class Account:
    """The rows of a partition that the ledger's records account for: how many, and which rows of which parts.

    ``rows`` is None if a combine has made other rows of them, ``parts`` if they are not known.
    """

    rows: int | None
    parts: dict[str, Spans] | None

    @classmethod
    def of(cls, parts: Iterable[CommittedPart], *, combined: bool) -> Account:
        """The account of a partition's parts; none may be listed twice."""
        spans: dict[str, Spans] = {}
        for part in parts:
            if part.name in spans:
                raise LedgerError(f"The part {part.name} is listed twice.", hint=CURE)
            spans[part.name] = spans_of(part)
        return cls(None if combined else sum(map(row_count, spans.values())), spans)


def spans_of(part: CommittedPart) -> Spans:
    """The rows of a part that count."""
    return part.spans if part.spans is not None else ((0, part.rows),) if part.rows else ()


def check_parts(parts: Sequence[CommittedPart], rows: Iterable[int | None]) -> None:
    """Check that parts have the rows that their markers say; ``rows`` are how many their files have.

    Raises:
        LedgerError: one does not.
    """
    for part, in_file in zip(parts, rows, strict=True):
        if fault := part_fault(part, in_file):
            raise LedgerError(f"{fault}. The dataset stays as it was.", hint=CURE)


def rows_of_parts(parts: Sequence[CommittedPart]) -> list[int | None]:
    """The rows that the files of parts have; None for one that cannot be read."""
    return together([partial(rows_in, part.file, "parquet") for part in parts])


def part_fault(part: CommittedPart, rows: int | None) -> str:
    """What is wrong with a part whose file has so many rows; empty if nothing is."""
    if rows is None:
        return f"The part {part.file} cannot be read"
    spans = spans_of(part)
    last = max((stop for _, stop in spans), default=0)
    if row_count(spans) != part.rows or last > rows or (part.spans is None and part.rows != rows):
        return f"The part {part.file} has {counted(rows, 'row')}, and its marker says {part.rows:,} up to row {last:,}"
    return ""


def faults(partition: str, account: Account, files: Mapping[str, int], contents: Contents | None) -> Iterator[str]:
    """What does not add up in a partition.

    Args:
        partition: its name, empty for the whole dataset.
        account: what the ledger's records account for.
        files: its files, and how many rows each has.
        contents: the notes on the files, if there are any.
    """
    where, total = partition or "the dataset", sum(files.values())
    if account.rows is not None and total != account.rows:
        yield f"{where} has {counted(total, 'row')} in its files, and its records have given {account.rows:,}"
    if contents is None or account.parts is None or partition not in contents.columns:
        return
    noted = {path: contents.files.get(path, []) for path in files}
    for path, rows in files.items():
        if (noted_rows := count_of(noted[path])) != rows:
            yield f"{path} has {counted(rows, 'row')}, and {noted_rows:,} are noted for it"
    yield from _part_by_part(where, account.parts, noted.values())


def _part_by_part(where: str, parts: Mapping[str, Spans], noted: Iterable[Pieces]) -> Iterator[str]:
    """Parts whose rows the files do not have exactly once."""
    held: dict[str, list[tuple[int, int]]] = {}
    for pieces in noted:
        for part, spans in pieces:
            held.setdefault(part, []).extend(spans)
    for part in sorted({*held, *parts}):
        wanted, in_files = parts.get(part, ()), joined(held.get(part, []))
        if in_files != joined(wanted):
            yield (
                f"the files of {where} hold the rows {_text(in_files)} of the part {part}, and those that count are "
                f"{_text(wanted)}"
            )


def _text(spans: Spans) -> str:
    return ", ".join(f"{start:,} to {stop - 1:,}" for start, stop in spans[:5]) or "none"


def check_accounts(
    run_id: str, files: Mapping[str, list[DataFile]], accounts: Mapping[str, Account], contents: Contents | None
) -> None:
    """Check, before the switch, that all partitions that a run has made hold what its ledger accounts for.

    Raises:
        LedgerError: one does not.
    """
    for partition, account in accounts.items():
        rows = {file.path: file.rows for file in files.get(partition, [])}
        if fault := next(faults(partition, account, rows, contents), None):
            raise LedgerError(f"Run {run_id}: {fault}. The dataset stays as it was.", hint=CURE)


def check_kept(output: Folder, files: Sequence[DataFile], format: str) -> None:
    """Check that old files that stay have the rows that are noted, if their format says how many without a full read.

    Raises:
        LedgerError: one does not.
    """
    if not format_of(format).describes_itself:
        return
    for file, rows in zip(
        files, together([partial(rows_in, File(output, f.path), format) for f in files]), strict=True
    ):
        if rows != file.rows:
            actual = "cannot be read" if rows is None else f"has {counted(rows, 'row')}"
            raise LedgerError(
                f"{output.uri}/{file.path} {actual}, and {file.rows:,} are noted for it. The dataset stays as it was.",
                hint=CURE,
            )


def rows_in(file: File, format: str) -> int | None:
    """The rows that a file has; None if it cannot be read."""
    try:
        with file.open() as opened:
            return format_of(format).count_rows(opened)
    except (OSError, ValueError, pa.ArrowException):
        return None
