"""The places of an input: one folder, or several, whose names are the first part of their objects' keys."""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.storage.base import Access, File, absolute_uri, is_remote
from shardkit.storage.local import writing
from shardkit.storage.local_folder import LocalFolder, changes_since
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shardkit.storage.base import Folder


@dataclass(frozen=True)
class Place:
    """One place of an input, as any process reaches it; ``name`` is empty if it is the only one."""

    name: str
    uri: str
    access: Access

    @property
    def folder(self) -> Folder:
        """The folder itself."""
        return _opened(self.uri, self.access)


@functools.lru_cache(maxsize=64)
def _opened(uri: str, access: Access) -> Folder:
    return folder(uri, access)


@dataclass(frozen=True)
class Places:
    """Where the objects of an input are read."""

    all: tuple[Place, ...]

    @classmethod
    def one(cls, uri: str, access: Access | None = None) -> Places:
        """A single folder, in which keys are those of the input."""
        return cls((Place("", absolute_uri(uri), access or Access()),))

    @property
    def are_fetched(self) -> bool:
        """Whether a record's objects are gathered in a folder of their own; else they are files where they lie."""
        return len(self.all) > 1 or is_remote(self.all[0].uri)

    @property
    def root(self) -> str:
        """The folder that keys are relative to, where nothing is fetched."""
        return self.all[0].uri

    @property
    def text(self) -> str:
        """All of them, for messages."""
        return ", ".join(place.uri for place in self.all)

    @property
    def store(self) -> str | None:
        """The kind of store of the first object that has to be fetched from one; None if there is no such place."""
        return next((place.uri.partition("://")[0] for place in self.all if is_remote(place.uri)), None)

    def changed(self, change: Callable[[str, Access], Access]) -> Places:
        """The same places, with another access to each that lies in a store."""
        return Places(
            tuple(
                dataclasses.replace(place, access=change(place.uri, place.access)) if is_remote(place.uri) else place
                for place in self.all
            )
        )

    def at(self, key: str) -> tuple[Folder, str]:
        """The folder of an object, and its key there.

        Raises:
            FileNotFoundError: the input has no place of that name.
        """
        if len(self.all) == 1 and not self.all[0].name:
            return self.all[0].folder, key
        name, _, rest = key.partition("/")
        place = next((place for place in self.all if place.name == name), None)
        if place is None:
            raise FileNotFoundError(f"The input has no part {name!r}, which {key} is of.")
        return place.folder, rest

    def file(self, key: str) -> File:
        """An object."""
        return File(*self.at(key))

    def read_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        """The bytes of an object from ``start`` up to ``end``.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: it cannot be read.
        """
        place, name = self.at(key)
        return place.read_range(name, start, end)

    def get_file(self, key: str, path: Path, *, etag: str | None = None, size: int | None = None) -> None:
        """Have an object as the file ``path``: fetched, or as a link to it if it is a file of this machine.

        Raises:
            FileNotFoundError: it is not there.
            ObjectChanged: it has another etag by now.
            StorageError: it cannot be read.
        """
        place, name = self.at(key)
        if not isinstance(place, LocalFolder):
            place.get_file(name, path, etag=etag or None, size=size)
            return
        target = place.root / name
        if not target.exists():
            raise FileNotFoundError(f"{target} is not there.")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(target)

    def changes_since(self, keys: Sequence[str], etags: Sequence[str] | None) -> list[str]:
        """A sentence for each file of this machine that is not as it was when it was listed with its etag."""
        changes = []
        for key, etag in zip(keys, etags or (), strict=False):
            place, name = self.at(key)
            if isinstance(place, LocalFolder):
                changes += changes_since(os.fspath(place.root), [name], [etag])
        return changes
