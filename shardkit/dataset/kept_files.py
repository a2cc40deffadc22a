"""What of the dataset's files is used again when their partition is made anew, for the rows in it still count.

A run notes in its folder which rows of which parts each file of its partitions holds. The next run to make one of
these keeps the full files of which no row has changed, and writes all other rows to new ones. So there are never more
files than if all had been written anew. On this machine these rows are taken from the other files as far as they are
there: large row groups of which no row has changed are copied, and one file is opened instead of many parts. A run that
is resumed or retried reads its own rows from the parts, in the order of the records.
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
    """How many rows these are."""
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
        """What is known of these files of a partition, and of its columns."""
        files = {path: self.files[path] for path in paths if path in self.files}
        return Contents(files, {partition: self.columns[partition]} if partition in self.columns else {})

    def take_in(self, other: Contents) -> None:
        """Know also what other files hold."""
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
        """What a run has noted; nothing where it has not, or its folder is gone."""
        try:
            folder = RunFolder(output, run_id)
            return cls.load(folder.parse(CONTENTS, folder.files.read(CONTENTS), ContentsDocument, ""))
        except (FileNotFoundError, Damaged, LookupError, TypeError, ValueError):
            return cls()


def noted_by(made: MadePartition) -> str:
    """The run that has noted what a partition's files hold: it has made the partition, or written its files anew."""
    return made.get("noted_by", made["run"])


@dataclass(frozen=True)
class Kept:
    """The files of a partition that stay, and the rows that are in none of them.

    Some of the files that ``rest`` is read from are not parts: ``holds`` says of each which rows of parts it has.
    """

    files: list[DataFile]
    rest: Source
    holds: list[Pieces]

    @property
    def numbers(self) -> set[int]:
        """The numbers in the files' names."""
        return {int(found[1]) for file in self.files if (found := re.search(r"part-(\d+)-[^/]*$", file.path))}


class Keeper:
    """Finds the files that may stay, and notes what all files of the run's partitions hold.

    Args:
        output: the folder of the dataset.
        run_id: the run that makes the partitions anew.
        current: the result that describes the dataset as it is; None where there is none.
        rows_per_file: how many rows a full file has; None where files are not cut by rows alone.
        made_with: what tells whether files were made of their rows in the same way.
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
        self._known: dict[str, Contents] = {}

    def look_up(self, partitions: Iterable[str]) -> None:
        """Read what the runs that made these partitions have noted, side by side."""
        if self._rows_per_file is not None:
            runs = sorted({noted_by(self._partitions[name]) for name in partitions if name in self._partitions})
            found = together([partial(Contents.of_run, self._output, run) for run in runs])
            self._known = dict(zip(runs, found, strict=True))

    def keep(self, partition: str, parts: Sequence[CommittedPart], source: Source) -> Kept:
        """The files of the partition, which was looked up, that may stay; ``source`` has its rows, in these parts."""
        # All rows of a part, also those that no longer count: spans number them all.
        holds: list[Pieces] = [[(part.name, ((0, size[0]),))] for part, size in zip(parts, source.sizes, strict=True)]
        made = self._partitions.get(partition)
        if self._rows_per_file is None or made is None:
            return Kept([], source, holds)
        if (made["work"], made["merge"]) != (self._made_with["work"], self._made_with["merge"]):
            return Kept([], source, holds)
        known = self._known.get(noted_by(made), Contents())
        if known.columns.get(partition) != _columns(source):
            return Kept([], source, holds)
        rows = _Rows(source, parts)
        kept = []
        files = self._there(partition)
        for file in files:
            pieces = known.files.get(file.path, [])
            is_whole = file.rows == self._rows_per_file == count_of(pieces)
            if is_whole and rows.have(pieces):
                rows.take(pieces)
                kept.append(file)
                self.contents.files[file.path] = pieces
        readable = self._can_be_read and made["run"] != self._run_id
        again = [(File(self._output, f.path), known.files.get(f.path, [])) for f in files if f not in kept]
        whole, others = rows.take_from(again) if readable else ([], [])
        return Kept(kept, rows.rest([*whole, *others]), [old.pieces for old in (*whole, *others)] + holds)

    def note(self, partition: str, kept: Kept, files: Iterable[DataFile]) -> None:
        """Note what the files hold that were written of the rows in ``kept.rest``, in their order."""
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
        """Whether rows are taken from files; from a store, which has sent the parts by then, they would come again."""
        name = self._form.get("format")
        return isinstance(self._output, LocalFolder) and name is not None and format_of(name).like_parts

    def _there(self, partition: str) -> list[DataFile]:
        """The files of a partition that may be used, and are still as they were written."""
        some = [
            f
            for f in self._files
            if f["partition"] == partition and (self._can_be_read or f["rows"] == self._rows_per_file)
        ]
        sizes = together([partial(self._output.size, f["path"]) for f in some])
        return [
            DataFile(f["path"], f["rows"], f["bytes"])
            for f, size in zip(some, sizes, strict=True)
            if size == f["bytes"]
        ]


@dataclass(frozen=True)
class _Old:
    """A file of the dataset, which rows of it still count, and what all of its rows are."""

    file: File
    spans: Spans
    size: tuple[int, int]
    pieces: Pieces


class _Rows:
    """The rows of a source, of which some are taken from elsewhere."""

    def __init__(self, source: Source, parts: Sequence[CommittedPart]) -> None:
        self._source = source
        self._number = {part.name: i for i, part in enumerate(parts)}
        self._left = list(source.spans)

    def have(self, pieces: Pieces) -> bool:
        """Whether all rows of some pieces are left."""
        numbers = [(self._number.get(part, -1), spans) for part, spans in pieces]
        return all(i >= 0 and contains(self._left[i], spans) for i, spans in numbers)

    def take(self, pieces: Pieces) -> Spans:
        """Take those rows of a file that are left; ``pieces`` are all of its rows."""
        found: list[tuple[int, int]] = []
        begin = 0
        for part, spans in pieces:
            i = self._number.get(part, -1)
            for low, high in spans:
                if i >= 0:
                    found += [(begin + a - low, begin + b - low) for a, b in overlap(self._left[i], low, high)]
                begin += high - low
            if i >= 0:
                self._left[i] = subtract(self._left[i], spans)
        return joined(found)

    def take_from(self, files: Iterable[tuple[File, Pieces]]) -> tuple[list[_Old], list[_Old]]:
        """Take the rows that are in some files: those in large row groups that still count as a whole, and others.

        A file that cannot be read is left out, for its rows are in parts as well.
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
        """The source of all rows but those that have been taken; some come from files now."""
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
    """What some rows of a file are, of which ``pieces`` are all rows."""
    begin = 0
    for part, rows in pieces:
        end = begin + row_count(rows)
        for start, stop in overlap(spans, begin, end):
            yield part, clip(rows, start - begin, stop - begin)
        begin = end


def _columns(source: Source) -> list[list[str]]:
    return [[column.name, str(column.type)] for column in source.schema]
