"""One face for local files and object stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit._lazy import names_of

if TYPE_CHECKING:
    from shardkit.storage.base import Access, Entry, File, Folder, State, absolute_uri, is_remote
    from shardkit.storage.local_folder import LocalFolder
    from shardkit.storage.open import folder

__all__ = [
    "Access",
    "Entry",
    "File",
    "Folder",
    "LocalFolder",
    "State",
    "absolute_uri",
    "folder",
    "is_remote",
]

if not TYPE_CHECKING:  # type checkers would take any name for one that is there
    __getattr__ = names_of(
        __name__,
        {
            "Access": "base",
            "Entry": "base",
            "File": "base",
            "Folder": "base",
            "LocalFolder": "local_folder",
            "State": "base",
            "absolute_uri": "base",
            "folder": "open",
            "is_remote": "base",
        },
    )
