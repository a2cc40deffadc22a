"""What a file format for datasets must be able to do."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from shardkit.errors import PipelineError
from shardkit.storage.local import sync_file, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from shardkit.runfolder.document_types import Result, ResultFile
    from shardkit.storage.base import Folder
    from shardkit.tables.rowgroups import Stretch


class FileWriter(Protocol):
    """A file that is being written: table by table, and closed durably."""

    def write(self, table: pa.Table) -> None:
        """Append a table, as one row group where the format has these."""

    def tell(self) -> int:
        """How many bytes are written."""

    def close(self) -> None:
        """Finish the file and flush it to the disk."""


class CopyingWriter(FileWriter, Protocol):
    """A file that is being written and also takes row groups of Parquet files as they are: see `Format.like_parts`."""

    def copy(self, stretch: Stretch) -> None:
        """Append some of the bytes of a row group."""


class Format(ABC):
    """A file format: subclasses have no state, and are made without arguments.

    Attributes:
        suffix: The end of its files' names, such as ``.parquet``. No other format has the same.
        describes_itself: Whether a file says which columns of which types it has, and how many rows, without being
            read to its end. The types of a text file are in the run's result alone.
        like_parts: Whether its files are Parquet, like the parts of pass 1, so that row groups of parts and of old
            files are copied as they are.
        in_catalogs: Whether its files can be the tables of a catalogue.
        tabular: Whether pyarrow reads its files as a table. Otherwise each row says itself what it has.
        library: The module that writes the files, if shardkit does not need it otherwise.
        extra: The extra of this package that installs it.
        target_bytes: About how large a file should be if the pipeline says nothing of its size; None: it may be of any.
        folder: The folder of the dataset, with its slash, in which all files lie side by side; empty if they lie in the
            dataset's own, and in folders of partitions.
        index: The name of a file or folder in the dataset's folder where readers find which files there are; empty if
            they list the folder, or are given the files. A switch of the dataset replaces it.
        keeps_versions: Whether the index has earlier states of the dataset, too, so that files in ``folder`` stay until
            these expire.
        one_type: Whether a column has to have the same type in all files.
    """

    suffix: ClassVar[str]
    describes_itself: ClassVar[bool] = False
    like_parts: ClassVar[bool] = False
    in_catalogs: ClassVar[bool] = False
    tabular: ClassVar[bool] = True
    library: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    target_bytes: ClassVar[int | None] = None
    folder: ClassVar[str] = ""
    index: ClassVar[str] = ""
    keeps_versions: ClassVar[bool] = False
    one_type: ClassVar[bool] = False

    @abstractmethod
    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> FileWriter:
        """Begin the file ``path``; up to ``threads`` threads may encode it.

        Raises:
            PipelineError, pa.ArrowException: the format cannot hold a column of ``schema``.
        """

    @abstractmethod
    def reader(self, columns: pa.Schema) -> Any:
        """What ``pyarrow.dataset`` reads the files with, as its ``format``.

        ``columns`` are the known columns of the files, as `read_as` gives them.
        """

    @abstractmethod
    def count_rows(self, file: Any) -> int:
        """The rows of an open file, counted in the file itself.

        Raises:
            OSError, ValueError, pa.ArrowException: it cannot be read, or is of another format.
        """

    def batches(self, file: Any, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows of an open file, if the format is not tabular, in their order and a few at a time.

        Without this, `run.hf()` and `run.torch()` raise what `reader` does. ``columns`` are the known columns of the
        files, as `read_as` gives them.
        """
        raise NotImplementedError

    def counts(self, file: Any) -> tuple[int, dict[str, int] | None]:
        """The rows of an open file, as `count_rows` says, and the nulls of its columns, those without any left out.

        The nulls are None if the file does not say them.
        """
        return self.count_rows(file), None

    def read_as(self, schema: pa.Schema) -> pa.Schema:
        """The types in which columns of these types are read back."""
        return schema

    def bytes_of_rows(self, path: Path) -> int:
        """How much of a file's size grows with its rows."""
        return os.path.getsize(path)

    def check_output(self, uri: str, partition_by: Sequence[str]) -> None:  # noqa: B027  most can be anywhere
        """Check that a dataset of this format can be there, and have these partitions.

        Raises:
            ValueError: it cannot.
        """

    def index_of(self, output: Folder, files: Sequence[ResultFile], present: bytes | None) -> bytes:
        """What the file ``index`` says of a dataset of these files, which are there: always the same of the same files.

        ``present`` is what it says now, perhaps of some of these files already; None if nothing is known.

        Raises:
            StorageError: a file cannot be read.
        """
        raise NotImplementedError

    def write_index(self, output: Folder, result: Result, is_present: Callable[[], bool]) -> bool:
        """Make the index that of the dataset that ``result`` describes; all its files are there.

        ``is_present`` says whether it still is the present dataset. Returns False if another process has changed the
        index, or the dataset, meanwhile.

        Raises:
            StorageError: a file cannot be read, or the index not written.
        """
        before, state = output.read_state(self.index)
        data = self.index_of(output, result["files"], before)
        if data == before:
            return True
        # Nobody else has switched the dataset before we have seen the state. Who does so later changes the index.
        return is_present() and output.write_if(self.index, data, state) is not None

    def has_index(self, output: Folder, result: Result) -> bool:
        """Whether the index says what the files say, all of which are looked at."""
        return output.read_state(self.index)[0] == self.index_of(output, result["files"], None)

    def index_files(self, output: Folder) -> list[str]:
        """The files that the index consists of, if it is there."""
        return [self.index] if output.exists(self.index) else []


class LoaderFormat(Format):
    """A format for loaders of training data, whose files pyarrow does not read as tables.

    Attributes:
        refusal: Why a dataset of it is not read as a table.
        cure: What reads it, and how to have one that is.
    """

    tabular: ClassVar[bool] = False
    refusal: ClassVar[str]
    cure: ClassVar[str]

    def reader(self, columns: pa.Schema) -> Any:
        """There is none.

        Raises:
            PipelineError: always.
        """
        raise PipelineError(self.refusal, hint=self.cure)


class PlainWriter:
    """A writer of files that are written from beginning to end."""

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
        """Write the end of the file."""
