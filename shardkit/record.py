"""What the user's function is given."""

from __future__ import annotations

import os
from pathlib import Path


class Record(os.PathLike[str]):
    """The files that go to one call of the function.

    >>> def features(record):
    ...     with open(record) as file:                # the main object
    ...         return {"key": record.key, "lines": sum(1 for _ in file), "bytes": record.bytes}

    Attributes:
        key: the record's name in the input, for instance ``p000020/3000003_0001``.
        bytes: the size of all its objects together.
        objects: the keys of all its objects, in key order.
    """

    __slots__ = ("_main", "_root", "_stem", "bytes", "key", "objects")

    def __init__(
        self,
        key: str,
        objects: tuple[str, ...],
        *,
        main: int = 0,
        root: str = ".",
        bytes: int = 0,
        by_stem: bool = False,
    ) -> None:
        self.key = key
        self.objects = objects
        self.bytes = bytes
        self._main = main
        self._root = root
        self._stem = by_stem

    def __fspath__(self) -> str:
        return f"{self._root}/{self.objects[self._main]}"

    @property
    def path(self) -> Path:
        """The main object as a local file."""
        return Path(self.__fspath__())

    @property
    def paths(self) -> tuple[Path, ...]:
        """All objects as local files, in key order."""
        return tuple(Path(self._root, name) for name in self.objects)

    @property
    def stem(self) -> str:
        """The path without its last suffix: what ``wfdb.rdrecord`` takes."""
        return f"{self._root}/{self.key}" if self._stem else os.path.splitext(self.__fspath__())[0]

    def __repr__(self) -> str:
        return f"Record({self.key!r}, {len(self.objects)} objects, {self.bytes:,} bytes)"
