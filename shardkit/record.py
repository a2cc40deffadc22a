"""What the user's function is given."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.held import HeldPath
from shardkit.notes import Notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from shardkit.cache import Cache
    from shardkit.held import Held


class Record(HeldPath):
    """The files of one call of the function: it is the path of the main one, and knows the others.

    Examples:
        >>> def features(record):
        ...     with open(record) as file:                # the main object
        ...         return {"key": record.key, "lines": sum(1 for _ in file), "bytes": record.bytes}

    Attributes:
        key: the record's name in the input, for instance ``p000020/3000003_0001``.
        bytes: the size of all its objects together.
        objects: the keys of all its objects, in key order.
        meta: what the manifest says of its main object besides the name, size, etag and time; else empty.
        range: for a record inside a file, the bytes of the file that it was cut at, or the row groups of a Parquet
            file; None for a whole file, and for members of an archive.
        members: the names of its members, if it is inside an archive.
    """

    __slots__ = (
        "_by_stem",
        "_files",
        "_main",
        "_names",
        "_notes",
        "bytes",
        "key",
        "members",
        "meta",
        "objects",
        "range",
    )

    def __init__(
        self,
        key: str,
        objects: tuple[str, ...],
        *,
        main: int = 0,
        root: str = ".",
        bytes: int = 0,
        by_stem: bool = False,
        names: set[str] | None = None,
        meta: dict[str, Any] | None = None,
        files: tuple[str, ...] | None = None,
        range: tuple[int, int] | None = None,
        members: tuple[str, ...] = (),
        held: Held | None = None,
    ) -> None:
        self._files = objects if files is None else files
        self._folder = root  # as the base does it: one is made for each record
        self._local = self._files[main]
        self._held = held
        self.key = key
        self.objects = objects
        self.bytes = bytes
        self.meta = meta or {}
        self.range = range
        self.members = members
        self._main = main
        self._by_stem = by_stem
        self._names = names
        self._notes: Notes | None = None

    def __reduce__(self) -> Any:
        root = self._made()
        fields: dict[str, Any] = {"main": self._main, "root": root, "bytes": self.bytes, "meta": self.meta}
        fields |= {"files": self._files, "range": self.range, "members": self.members}
        return functools.partial(Record, self.key, self.objects, by_stem=self._by_stem, **fields), ()

    @property
    def path(self) -> Path:
        """The main object, or what the record is of it, as a local file."""
        return self._path_of(self._local)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All objects, or all members of the archive that the record is of, as local files, in key order."""
        return tuple(map(self._path_of, self._files))

    @property
    def files(self) -> dict[str, Path]:
        """The same by name: for a record of files or members with one stem, by what follows it and a dot.

        Examples:
            >>> def features(record):             # of 000123.cls and 000123.jpg in a tar
            ...     return {"label": int(record.files["cls"].read_text()), "jpg": record.files["jpg"].read_bytes()}
        """
        stem = f"{self._stem}." if self._by_stem else ""
        return {name.removeprefix(stem): self._path_of(name) for name in self._files}

    def _path_of(self, name: str) -> Path:
        return Path(self._folder, name) if self._held is None else HeldPath(self._folder, name, self._held)

    @property
    def member(self) -> str | None:
        """The name of the main member, if the record is inside an archive."""
        return self.members[self._main] if self.members else None

    @property
    def stem(self) -> str:
        """The path without its last suffix: what ``wfdb.rdrecord`` takes."""
        if self._by_stem:
            return f"{self._made()}/{self._stem}"
        return os.path.splitext(self.__fspath__())[0]

    @property
    def _stem(self) -> str:
        """What the names of its files have in common."""
        return self.key.removeprefix(f"{self.objects[0]}/") if self.members else self.key

    def _made(self) -> str:
        """The folder of its files, which are made there if they have not been."""
        if self._held is not None:
            self._held.make()
        return self._folder

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a Parquet file, or of the row groups that the record is of it; of some ``columns``, if given.

        Raises:
            pyarrow.ArrowInvalid: it is no Parquet file.
        """
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.__fspath__()) as file:
            return file.read(columns=None if columns is None else list(columns))

    @property
    def cache(self) -> Cache:
        """A folder of this machine for what is expensive to get, and kept between runs."""
        from shardkit.cache import Cache

        return Cache()

    def count(self, name: str, n: float = 1) -> None:
        """Add ``n`` to the number of that name, which the run's summary shows summed over all records that are done.

        For few names, at most 100 in a run; what belongs to this record alone is a column of its rows.

        Raises:
            TypeError, ValueError: the name is no text, is too long or one too many; ``n`` is no finite number.
        """
        self._noted().count(name, n)

    def log(self, text: str) -> None:
        """Add a line to the run's log, of which the summary shows the first ones.

        Of a record 20 lines are kept, of a line 500 characters.

        Raises:
            TypeError: it is no text.
        """
        self._noted().log(text)

    @property
    def notes(self) -> Notes | None:
        """What has been counted and logged so far; None if nothing has."""
        return self._notes

    def _noted(self) -> Notes:
        if self._notes is None:
            self._notes = Notes() if self._names is None else Notes(self._names)
        return self._notes

    def __repr__(self) -> str:
        return f"Record({self.key!r}, {len(self.objects)} objects, {self.bytes:,} bytes)"
