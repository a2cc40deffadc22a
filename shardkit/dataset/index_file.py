"""The index of a dataset: what stands in its folder where readers of some formats find the other files.

A switch replaces it once all new files are there, and removes old files only then. So a reader who begins with it sees
the old dataset or the new one, whenever a process dies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.dataset.formats.kinds import FORMATS, format_of
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder


def index_name(result: Result | None) -> str:
    """The name of a dataset's index; empty if its format has none, or is not known here."""
    kind = FORMATS.find(result["format"]) if result is not None else None
    return kind.index if kind is not None else ""


def versioned_folder(result: Result | None) -> str:
    """The folder, with its slash, whose files earlier versions of a dataset may need; empty if there are none."""
    kind = FORMATS.find(result["format"]) if result is not None else None
    return kind.folder if kind is not None and kind.keeps_versions else ""


def without_versioned(paths: Iterable[str], result: Result | None) -> list[str]:
    """Those of some files that no earlier version of a dataset may need."""
    folder = versioned_folder(result)
    return [path for path in paths if not (folder and path.startswith(folder))]


def old_index(output: Folder, old: Result | None, new: Result) -> list[str]:
    """The files of the old dataset's index, if the new one has another or none.

    Raises:
        PipelineError: the index of the new one would replace something that no run has written.
    """
    name, old_name = index_name(new), index_name(old)
    if name == old_name:
        return []
    taken = format_of(new["format"]).index_files(output) if name else []
    if taken:
        raise PipelineError(
            f"{output.uri}/{taken[0]} is there, and no run has written it; {new['format']} needs that place.",
            hint="Move it away and resume the run, or choose another output.",
        )
    return format_of(old["format"]).index_files(output) if old is not None and old_name else []


def write_index(output: Folder, result: Result, is_present: Callable[[], bool]) -> bool:
    """Make the index that of the dataset that ``result`` describes, as its format does it.

    Raises:
        PipelineError: the dataset's format is not known here.
        StorageError: a file cannot be read, or the index not written.
    """
    return format_of(result["format"]).write_index(output, result, is_present)


def is_right(output: Folder, result: Result) -> bool:
    """Whether the index says what the files say, all of which are looked at."""
    return format_of(result["format"]).has_index(output, result)
