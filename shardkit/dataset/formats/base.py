"""What a format of a dataset's files has to be able to do."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from shardkit.storage.local import sync_file, writing

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from shardkit.tables.rowgroups import Stretch


class FileWriter(Protocol):
    """A file on its way. It is written table by table, and closed durably."""

    def write(self, table: pa.Table) -> None:
        """Append a table, as one row group where the format has these."""

    def tell(self) -> int:
        """How many bytes are written."""

    def close(self) -> None:
        """Finish the file and flush it to the disk."""


class CopyingWriter(FileWriter, Protocol):
    """A file on its way that takes row groups of Parquet files as they are, as `Format.like_parts` promises."""

    def copy(self, stretch: Stretch) -> None:
        """Append some of the bytes of a row group."""


class Format(ABC):
    """A format of files: a subclass without a state, which is made without arguments.

    Attributes:
        suffix: What the names of its files end with, such as ``.parquet``. No other format has it.
        describes_itself: Whether a file says which columns of which types it has, and how many rows, without being
            read to its end. Of a text nothing but the run's result knows the types.
        like_parts: Whether its files are what the parts of pass 1 are, Parquet, so that row groups of parts and of
            files of before are copied as they are.
        in_catalogs: Whether tables of a catalogue can be made of its files.
    """

    suffix: ClassVar[str]
    describes_itself: ClassVar[bool] = False
    like_parts: ClassVar[bool] = False
    in_catalogs: ClassVar[bool] = False

    @abstractmethod
    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> FileWriter:
        """Begin the file ``path``; as many as ``threads`` may encode it.

        Raises:
            PipelineError, pa.ArrowException: the format cannot hold a column of ``schema``.
        """

    @abstractmethod
    def reader(self, columns: pa.Schema) -> Any:
        """What ``pyarrow.dataset`` reads the files with, as its ``format``.

        ``columns`` are those of the files as far as they are known, as `read_as` gives them.
        """

    @abstractmethod
    def count_rows(self, file: Any) -> int:
        """The rows of an open file, counted in the file itself.

        Raises:
            OSError, ValueError, pa.ArrowException: it cannot be read, or is of another format.
        """

    def read_as(self, schema: pa.Schema) -> pa.Schema:
        """The types in which columns of these types come back."""
        return schema

    def bytes_of_rows(self, path: Path) -> int:
        """How much of a file's size grows with its rows."""
        return os.path.getsize(path)


class PlainWriter:
    """A writer of files that are written from their beginning to their end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115  closed in close()

    def tell(self) -> int:
        """How many bytes are written."""
        return self._file.tell()

    def close(self) -> None:
        """Finish the file and flush it to the disk."""
        with writing(self._path):
            self._end()
            self._file.close()
        sync_file(self._path)

    def _end(self) -> None:
        """Write what the format has at its end."""
