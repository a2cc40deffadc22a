"""Which files survive when their partition is rebuilt, and which of their rows are used again.

A run notes in its folder which rows of which parts each file of its partitions holds. The next run that rebuilds one of
these partitions keeps the full files in which no row has changed, and writes all other rows to new files. So there are
never more files than if the whole partition had been rewritten. On this machine, those other rows are read from the old
files if they are in one: large row groups in which no row has changed are copied, and one file is opened instead of
many parts. A run that is resumed or retried reads its own rows from the parts, in the order of the records.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.dataset.formats.kinds import format_of
from shardkit.dataset.part_files import PartFiles
from shardkit.dataset.writer import DataFile
from shardkit.errors import Damaged
from shardkit.runfolder.document_types import ContentsDocument
from shardkit.runfolder.folder import RunFolder
from shardkit.storage.base import File
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.side_by_side import together
from shardkit.tables.rowgroups import is_large, size_of
from shardkit.tables.spans import Spans, as_spans, clip, contains, joined, overlap, row_count, subtract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardkit.dataset.source import Source
    from shardkit.runfolder.document_types import MadePartition, MadeWith, Result, ResultFile
    from shardkit.runfolder.ledger import CommittedPart
    from shardkit.storage.base import Folder

CONTENTS = "contents.json"
Pieces: TypeAlias = list[tuple[str, Spans]]
"""The rows of a file in their order: the names of parts, and which rows of each."""


def count_of(pieces: Pieces) -> int:
    """How many rows the pieces have."""
    return sum(row_count(spans) for _, spans in pieces)


@dataclass
class Contents:
    """Which rows of which parts each file holds, by its path, and the columns of each partition."""

    files: dict[str, Pieces] = field(default_factory=dict)
    columns: dict[str, list[list[str]]] = field(default_factory=dict)

    def dump(self) -> ContentsDocument:
        """As plain data, in which each part is named once."""
        parts: dict[str, int] = {}
        files: dict[str, list[Any]] = {
            path: [[parts.setdefault(part, len(parts)), list(spans)] for part, spans in pieces]
            for path, pieces in self.files.items()
        }
        return {"parts": list(parts), "files": files, "columns": self.columns}

    def of(self, partition: str, paths: Iterable[str]) -> Contents:
        """The contents of these files of a partition, and its columns."""
        files = {path: self.files[path] for path in paths if path in self.files}
        return Contents(files, {partition: self.columns[partition]} if partition in self.columns else {})

    def take_in(self, other: Contents) -> None:
        """Add what other files hold."""
        self.files |= other.files
        self.columns |= other.columns

    @classmethod
    def load(cls, content: ContentsDocument) -> Contents:
        """From plain data."""
        parts = content["parts"]
        files = {
            path: [(parts[number], as_spans(spans)) for number, spans in pieces]
            for path, pieces in content["files"].items()
        }
        return cls(files, content["columns"])

    @classmethod
    def of_run(cls, output: Folder, run_id: str) -> Contents:
        """What a run has noted; nothing if it has no notes, or its folder is gone."""
        try:
            folder = RunFolder(output, run_id)
            return cls.load(folder.parse(CONTENTS, folder.files.read(CONTENTS), ContentsDocument, ""))
        except (FileNotFoundError, Damaged, LookupError, TypeError, ValueError):
            return cls()


def noted_by(made: MadePartition) -> str:
    """The run that has noted what a partition's files hold: it made the partition, or rewrote its files later."""
    return made.get("noted_by", made["run"])


@dataclass(frozen=True)
class Kept:
    """The files of a partition that stay, and the rows that are in none of them.

    ``rest`` is read from parts and from old files of the dataset: ``holds`` says of each which rows of parts it has.
    """

    files: list[DataFile]
    rest: Source
    holds: list[Pieces]

    @property
    def numbers(self) -> set[int]:
        """The numbers in the files' names."""
        return {int(match[1]) for file in self.files if (match := re.search(r"part-(\d+)-[^/]*$", file.path))}


class Keeper:
    """Finds the files that may stay, and notes what all files of the run's partitions hold.

    Args:
        output: the folder of the dataset.
        current: the result that describes the present dataset; None if there is none.
        run_id: the run that rebuilds the partitions.
        rows_per_file: how many rows a full file has; None if files are cut by anything but their number of rows.
        made_with: how this run makes files from rows; only files that were made in the same way may stay.
        form: what all partitions of the dataset have in common.
    """

    def __init__(
        self,
        output: Folder,
        current: Result | None,
        *,
        run_id: str,
        rows_per_file: int | None,
        made_with: MadeWith,
        form: dict[str, Any],
    ) -> None:
        self.contents = Contents()
        self._output = output
        self._run_id = run_id
        self._rows_per_file = rows_per_file
        same = current is not None and current["form"] == form
        self._partitions = current["partitions"] if current is not None and same else {}
        self._files: list[ResultFile] = current["files"] if current is not None and same else []
        self._made_with = made_with
        self._form = form
        self._notes: dict[str, Contents] = {}  # by run

    def look_up(self, partitions: Iterable[str]) -> None:
        """Read the notes of the runs that made these partitions, side by side."""
        if self._rows_per_file is not None:
            runs = sorted({noted_by(self._partitions[name]) for name in partitions if name in self._partitions})
            notes = together([partial(Contents.of_run, self._output, run) for run in runs])
            self._notes = dict(zip(runs, notes, strict=True))

    def keep(self, partition: str, parts: Sequence[CommittedPart], source: Source) -> Kept:
        """Find the files of a partition that may stay; ``source`` has its rows, in these parts.

        `look_up` has read the notes on the partition before.
        """
        # All rows of a part, even those that no longer count, because spans number all of them.
        holds: list[Pieces] = [[(part.name, ((0, size[0]),))] for part, size in zip(parts, source.sizes, strict=True)]
        made = self._partitions.get(partition)
        if self._rows_per_file is None or made is None:
            return Kept([], source, holds)
        if (made["work"], made["merge"]) != (self._made_with["work"], self._made_with["merge"]):
            return Kept([], source, holds)
        noted = self._notes.get(noted_by(made), Contents())
        if noted.columns.get(partition) != _columns(source):
            return Kept([], source, holds)
        rows = _Rows(source, parts)
        kept = []
        files = self._intact_files(partition)
        for file in files:
            pieces = noted.files.get(file.path, [])
            is_whole = file.rows == self._rows_per_file == count_of(pieces)
            if is_whole and rows.have(pieces):
                rows.take(pieces)
                kept.append(file)
                self.contents.files[file.path] = pieces
        readable = self._can_be_read and made["run"] != self._run_id
        replaced = [(File(self._output, f.path), noted.files.get(f.path, [])) for f in files if f not in kept]
        whole, others = rows.take_from(replaced) if readable else ([], [])
        return Kept(kept, rows.rest([*whole, *others]), [old.pieces for old in (*whole, *others)] + holds)

    def note(self, partition: str, kept: Kept, files: Iterable[DataFile]) -> None:
        """Note what the new files hold, to which the rows of ``kept.rest`` were written in their order."""
        if self._rows_per_file is None:
            return
        self.contents.columns[partition] = _columns(kept.rest)
        start = 0
        for file in files:
            where = kept.rest.where(start, start + file.rows)
            self.contents.files[file.path] = [piece for i, spans in where for piece in _held(kept.holds[i], spans)]
            start += file.rows

    @property
    def _can_be_read(self) -> bool:
        """Whether rows are read from old files: not from a store, which would send again what it has sent as parts."""
        name = self._form.get("format")
        return isinstance(self._output, LocalFolder) and name is not None and format_of(name).like_parts

    def _intact_files(self, partition: str) -> list[DataFile]:
        """The files of a partition that may be used, and are still as they were written."""
        usable = [
            f
            for f in self._files
            if f["partition"] == partition and (self._can_be_read or f["rows"] == self._rows_per_file)
        ]
        sizes = together([partial(self._output.size, f["path"]) for f in usable])
        return [
            DataFile(f["path"], f["rows"], f["bytes"], f.get("nulls"))
            for f, size in zip(usable, sizes, strict=True)
            if size == f["bytes"]
        ]


@dataclass(frozen=True)
class _Old:
    """An old file of the dataset: which of its rows still count, and which rows of parts all of its rows are."""

    file: File
    spans: Spans
    size: tuple[int, int]
    pieces: Pieces


class _Rows:
    """The rows of a source, less and less of which are left as old files that hold them are found."""

    def __init__(self, source: Source, parts: Sequence[CommittedPart]) -> None:
        self._source = source
        self._number = {part.name: i for i, part in enumerate(parts)}
        self._left = list(source.spans)

    def have(self, pieces: Pieces) -> bool:
        """Whether all rows of some pieces are left."""
        numbers = [(self._number.get(part, -1), spans) for part, spans in pieces]
        return all(i >= 0 and contains(self._left[i], spans) for i, spans in numbers)

    def take(self, pieces: Pieces) -> Spans:
        """Take those rows of a file that are left, and return where in the file they are.

        ``pieces`` are all rows of the file.
        """
        taken: list[tuple[int, int]] = []
        begin = 0
        for part, spans in pieces:
            i = self._number.get(part, -1)
            for low, high in spans:
                if i >= 0:
                    taken += [(begin + a - low, begin + b - low) for a, b in overlap(self._left[i], low, high)]
                begin += high - low
            if i >= 0:
                self._left[i] = subtract(self._left[i], spans)
        return joined(taken)

    def take_from(self, files: Iterable[tuple[File, Pieces]]) -> tuple[list[_Old], list[_Old]]:
        """Take the rows that are in some files: first those of large row groups that still count as a whole.

        A file that cannot be read is left out, because its rows are in parts as well.
        """
        whole, others = [], []
        for file, pieces in files:
            try:
                with file.open() as opened:
                    footer = pq.read_metadata(opened)
            except (OSError, pa.ArrowException):
                continue
            if footer.num_rows != count_of(pieces):
                continue
            spans = self.take(pieces)
            groups = [group for group in _large_groups(footer) if contains(spans, (group,))]
            whole.append(_Old(file, joined(groups), size_of(footer), pieces))
            others.append(_Old(file, subtract(spans, groups), size_of(footer), pieces))
        return whole, others

    def rest(self, old: Sequence[_Old]) -> Source:
        """The source of the rows that are not in files that stay: first those in old files, then those in parts."""
        return replace(
            self._source,
            files=PartFiles((*(o.file for o in old), *self._source.files.parts)) if old else self._source.files,
            spans=(*(o.spans for o in old), *self._left),
            sizes=(*(o.size for o in old), *self._source.sizes),
        )


def _large_groups(footer: pq.FileMetaData) -> Iterator[tuple[int, int]]:
    begin = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        if is_large(group.num_rows, group.total_byte_size):
            yield begin, begin + group.num_rows
        begin += group.num_rows


def _held(pieces: Pieces, spans: Spans) -> Iterator[tuple[str, Spans]]:
    """Which rows of parts the ``spans`` of a file are; ``pieces`` are all rows of the file."""
    begin = 0
    for part, rows in pieces:
        end = begin + row_count(rows)
        for start, stop in overlap(spans, begin, end):
            yield part, clip(rows, start - begin, stop - begin)
        begin = end


def _columns(source: Source) -> list[list[str]]:
    return [[column.name, str(column.type)] for column in source.schema]
