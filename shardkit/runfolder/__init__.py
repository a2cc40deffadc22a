"""The files of a run: what it writes down, and how that is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit._lazy import names_of

if TYPE_CHECKING:
    from shardkit.runfolder.find import find_run, latest_run, run_folder
    from shardkit.runfolder.folder import RunFolder

__all__ = [
    "RunFolder",
    "find_run",
    "latest_run",
    "run_folder",
]

if not TYPE_CHECKING:  # type checkers would take any name for one that is there
    __getattr__ = names_of(
        __name__,
        {
            "RunFolder": "folder",
            "find_run": "find",
            "latest_run": "find",
            "run_folder": "find",
        },
    )
