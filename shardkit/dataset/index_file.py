"""The index of a dataset: the file in its folder in which readers of some formats find the other files.

A switch replaces it once all new files are there, and removes old files only then. So a reader who begins with it sees
the old dataset or the new one, whenever a process dies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.dataset.formats.kinds import FORMATS, format_of
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder


def index_name(result: Result | None) -> str:
    """The name of a dataset's index; empty if its format has none, or is not known here."""
    kind = FORMATS.find(result["format"]) if result is not None else None
    return kind.index if kind is not None else ""


def check_free(output: Folder, old: Result | None, new: Result) -> None:
    """Check that the index of a new dataset would replace no file but that of the old one.

    Raises:
        PipelineError: it would.
    """
    name = index_name(new)
    if name and name != index_name(old) and output.exists(name):
        raise PipelineError(
            f"{output.uri}/{name} is there, and no run has written it; {new['format']} needs a file of that name.",
            hint="Move it away and resume the run, or choose another output.",
        )


def write_index(output: Folder, result: Result, is_present: Callable[[], bool]) -> bool:
    """Make the index that of the dataset that ``result`` describes; all its files are there.

    ``is_present`` says whether it still is the present dataset. Returns False if another process has changed the index,
    or the dataset, meanwhile.

    Raises:
        PipelineError: the dataset's format is not known here.
        StorageError: a file cannot be read, or the index not written.
    """
    kind = format_of(result["format"])
    before, state = output.read_state(kind.index)
    data = kind.index_of(output, result["files"], before)
    if data == before:
        return True
    # Nobody else has switched the dataset before we have seen the state. Who does so later changes the index.
    return is_present() and output.write_if(kind.index, data, state) is not None


def is_right(output: Folder, result: Result) -> bool:
    """Whether the index says what the files say, all of which are looked at."""
    kind = format_of(result["format"])
    return output.read_state(kind.index)[0] == kind.index_of(output, result["files"], None)
