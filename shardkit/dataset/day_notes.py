"""Days that the jobs of pass 1 have merged themselves, for pass 2 to take as they are.

A job that works on a whole day knows all rows of it. It writes the day's files where pass 2 would, and notes of what it
has made them. Pass 2 takes them if it would make them of the same, and merges the other days.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from shardkit.dataset.kept_files import Contents
from shardkit.dataset.switch_steps import staging
from shardkit.dataset.writer import DataFile
from shardkit.errors import Damaged
from shardkit.runfolder.document_types import DayNote
from shardkit.tables.type_text import schema_from_text, schema_to_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import CommittedPart

MERGED = "merged"


@dataclass(frozen=True)
class DayMerge:
    """A day that was merged by its job.

    ``basis`` tells what of and how, ``schema`` is that of the rows, and ``written`` that of the files, which a combine
    may have changed. ``files`` are staged, ``kept`` are those of before that stay; ``contents`` is what they all hold.
    """

    day: str
    basis: str
    schema: pa.Schema
    written: pa.Schema
    files: list[DataFile]
    kept: list[DataFile]
    contents: Contents

    def note(self, folder: RunFolder) -> None:
        """Write it down in the run folder."""
        content: DayNote = {
            "day": self.day,
            "basis": self.basis,
            "schema": schema_to_text(self.schema),
            "written": schema_to_text(self.written),
            "files": [asdict(file) for file in self.files],
            "kept": [asdict(file) for file in self.kept],
            "contents": self.contents.dump(),
        }
        folder.write(f"{MERGED}/{quote(self.day, safe='')}.json", content)

    @classmethod
    def of_note(cls, content: DayNote) -> DayMerge:
        """What `note` has written."""
        return cls(
            content["day"],
            content["basis"],
            schema_from_text(content["schema"]),
            schema_from_text(content["written"]),
            [DataFile(**file) for file in content["files"]],
            [DataFile(**file) for file in content["kept"]],
            Contents.load(content["contents"]),
        )


def day_merges(folder: RunFolder) -> dict[str, DayMerge]:
    """The days that jobs of the run have merged, and whose files are all there."""
    notes = [entry.key for entry in folder.files.entries(MERGED)]
    if not notes:
        return {}
    found = [
        merge for merge in map(partial(_read_note, folder), notes, folder.files.read_many(notes)) if merge is not None
    ]
    there = {entry.key: entry.bytes for entry in staging(folder).entries()}
    return {merge.day: merge for merge in found if all(there.get(file.path) == file.bytes for file in merge.files)}


def _read_note(folder: RunFolder, name: str, data: bytes) -> DayMerge | None:
    """What `DayMerge.note` has written; None where it is damaged, for pass 2 will merge the day again."""
    try:
        return DayMerge.of_note(folder.parse(name, data, DayNote, ""))
    except (Damaged, LookupError, TypeError, ValueError, AttributeError, OSError):
        return None


def basis_of(parts: Iterable[CommittedPart], *, how: Any, base: str | None) -> str:
    """Tells whether a day would be made of the same rows in the same way; ``base`` is the run that made it before."""
    rows = [[part.name, part.rows, part.bytes, part.spans] for part in parts]
    return hashlib.sha256(json.dumps([rows, how, base], sort_keys=True).encode()).hexdigest()
