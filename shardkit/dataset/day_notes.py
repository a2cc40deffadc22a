"""Notes on the days that the jobs of pass 1 have merged themselves, so that pass 2 need not.

A job that works on a whole day has all its rows. It writes the day's files where pass 2 would, and notes from which
rows it has made them, and how. Pass 2 uses the files if it would make them from the same rows in the same way, and
merges the other days.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from shardkit.dataset.kept_files import Contents
from shardkit.dataset.switch_steps import staging
from shardkit.dataset.writer import DataFile
from shardkit.errors import Damaged
from shardkit.runfolder.document_types import DayNote
from shardkit.tables.type_text import schema_from_text, schema_to_text

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.runfolder.folder import RunFolder

MERGED = "merged"


@dataclass(frozen=True)
class DayMerge:
    """A day that was merged by its job.

    ``basis`` identifies the rows and how they were merged. ``schema`` is that of the rows, ``written`` that of the
    files, which a combine may have changed. ``files`` are staged, ``kept`` are old files that stay; ``contents`` says
    what they all hold.
    """

    day: str
    basis: str
    schema: pa.Schema
    written: pa.Schema
    files: list[DataFile]
    kept: list[DataFile]
    contents: Contents

    def note(self, folder: RunFolder) -> None:
        """Write a note of it to the run folder."""
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
        """The day that `note` has written down."""
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
    """The days that jobs of the run have merged and whose files all exist."""
    notes = [entry.key for entry in folder.files.entries(MERGED)]
    if not notes:
        return {}
    merges = [
        merge for merge in map(partial(_read_note, folder), notes, folder.files.read_many(notes)) if merge is not None
    ]
    sizes = {entry.key: entry.bytes for entry in staging(folder).entries()}
    return {merge.day: merge for merge in merges if all(sizes.get(file.path) == file.bytes for file in merge.files)}


def _read_note(folder: RunFolder, name: str, data: bytes) -> DayMerge | None:
    """The day that `DayMerge.note` has written down; None if the note is damaged: pass 2 merges the day again."""
    try:
        return DayMerge.of_note(folder.parse(name, data, DayNote, ""))
    except (Damaged, LookupError, TypeError, ValueError, AttributeError, OSError):
        return None
