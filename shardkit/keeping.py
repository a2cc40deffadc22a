"""Files of the dataset that stay as they are when their partition is made anew, for all of their rows still count.

A run notes in its folder which rows of which parts each file of its partitions holds. The next run to make one of
these keeps the full files of which no row has changed, and writes all other rows to new ones. So there are never more
files than if all had been written anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.dataset import DataFile
from shardkit.runfolder import RunFolder
from shardkit.spans import as_spans, contains, subtract
from shardkit.together import together

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardkit.ledger import CommittedPart
    from shardkit.merging import Source
    from shardkit.spans import Spans
    from shardkit.storage import Folder

CONTENTS = "contents.json"


@dataclass
class Contents:
    """Which rows of which parts each file holds, by its path, and the columns of each partition."""

    files: dict[str, list[tuple[str, Spans]]] = field(default_factory=dict)
    columns: dict[str, list[list[str]]] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """As plain data, in which each part is named once."""
        parts: dict[str, int] = {}
        files = {
            path: [[parts.setdefault(part, len(parts)), list(spans)] for part, spans in pieces]
            for path, pieces in self.files.items()
        }
        return {"parts": list(parts), "files": files, "columns": self.columns}

    @classmethod
    def load(cls, content: dict[str, Any]) -> Contents:
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
            return cls.load(json.loads(RunFolder(output, run_id).files.read(CONTENTS)))
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return cls()


@dataclass(frozen=True)
class Kept:
    """The files of a partition that stay, and the rows that are in none of them."""

    files: list[DataFile]
    rest: Source

    @property
    def numbers(self) -> set[int]:
        """The numbers in the files' names."""
        return {int(found[1]) for file in self.files if (found := re.search(r"part-(\d+)-[^/]*$", file.path))}


class Keeper:
    """Finds the files that may stay, and notes what all files of the run's partitions hold.

    Args:
        output: the folder of the dataset.
        current: the result that describes the dataset as it is; None where there is none.
        rows_per_file: how many rows a full file has; None where files are not cut by rows alone.
        made_with: what tells whether files were made of their rows in the same way.
        form: what all partitions of the dataset have in common.
    """

    def __init__(
        self,
        output: Folder,
        current: dict[str, Any] | None,
        *,
        rows_per_file: int | None,
        made_with: dict[str, str],
        form: dict[str, Any],
    ) -> None:
        self.contents = Contents()
        self._output = output
        self._rows_per_file = rows_per_file
        same = current is not None and current.get("form") == form
        self._partitions = current["partitions"] if current is not None and same else {}
        self._files: list[dict[str, Any]] = current["files"] if current is not None and same else []
        self._made_with = made_with
        self._known: dict[str, Contents] = {}

    def look_up(self, partitions: Iterable[str]) -> None:
        """Read what the runs that made these partitions have noted, side by side."""
        if self._rows_per_file is not None:
            runs = sorted({self._partitions[name]["run"] for name in partitions if name in self._partitions})
            found = together([partial(Contents.of_run, self._output, run) for run in runs])
            self._known = dict(zip(runs, found, strict=True))

    def keep(self, partition: str, parts: Sequence[CommittedPart], source: Source) -> Kept:
        """The files of the partition, which was looked up, that may stay; ``source`` has its rows, in these parts."""
        if self._rows_per_file is None:
            return Kept([], source)
        made = self._partitions.get(partition)
        if made is None or any(made.get(name) != value for name, value in self._made_with.items()):
            return Kept([], source)
        known = self._known.get(made["run"], Contents())
        if known.columns.get(partition) != _columns(source):
            return Kept([], source)
        number = {part.name: i for i, part in enumerate(parts)}
        left, kept = list(source.spans), []
        for file in self._there(partition):
            pieces = known.files.get(file.path, [])
            found = [(number.get(part, -1), spans) for part, spans in pieces]
            if found and all(i >= 0 and contains(left[i], spans) for i, spans in found):
                for i, spans in found:
                    left[i] = subtract(left[i], spans)
                kept.append(file)
                self.contents.files[file.path] = pieces
        return Kept(kept, replace(source, spans=tuple(left)))

    def note(self, partition: str, parts: Sequence[CommittedPart], rest: Source, files: Iterable[DataFile]) -> None:
        """Note what the files hold that were written of the rows in ``rest``, in their order."""
        if self._rows_per_file is None:
            return
        self.contents.columns[partition] = _columns(rest)
        start = 0
        for file in files:
            pieces = rest.where(start, start + file.rows)
            self.contents.files[file.path] = [(parts[i].name, spans) for i, spans in pieces]
            start += file.rows

    def _there(self, partition: str) -> list[DataFile]:
        """The full files of a partition that are still as they were written."""
        full = [f for f in self._files if f["partition"] == partition and f["rows"] == self._rows_per_file]
        sizes = together([partial(self._output.size, f["path"]) for f in full])
        return [
            DataFile(f["path"], f["rows"], f["bytes"])
            for f, size in zip(full, sizes, strict=True)
            if size == f["bytes"]
        ]


def _columns(source: Source) -> list[list[str]]:
    return [[column.name, str(column.type)] for column in source.schema]
