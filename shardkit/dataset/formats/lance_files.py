"""Lance: data files of that library, and one version of its dataset for each switch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.types as pt

from shardkit.dataset.formats.base import LoaderFormat
from shardkit.dataset.formats.lance_versions import (
    FILE_VERSION,
    FOLDERS,
    VERSIONS,
    Place,
    is_of,
    new_version,
)
from shardkit.dataset.formats.text import is_binary
from shardkit.dataset.formats.whole_batches import WholeBatches
from shardkit.errors import PipelineError
from shardkit.storage.base import is_remote, scheme_of
from shardkit.storage.local import sync_file, writing
from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

# What compresses text otherwise looks at random samples of it, and the same rows would make other bytes each time.
SAME_EACH_TIME = {"lance-encoding:compression": "zstd"}
FOOTER_BYTES = 40


class Lance(LoaderFormat):
    """Files of Lance, in the folder where its datasets have them."""

    suffix: ClassVar[str] = ".lance"
    describes_itself: ClassVar[bool] = True
    refusal: ClassVar[str] = "A dataset of Lance is read by Lance."
    cure: ClassVar[str] = "Read it with lance.dataset(OUTPUT), or run with output.format: parquet for queries."
    library: ClassVar[str] = "lance"
    extra: ClassVar[str] = "lance"
    folder: ClassVar[str] = "data/"
    index: ClassVar[str] = VERSIONS
    keeps_versions: ClassVar[bool] = True
    one_type: ClassVar[bool] = True

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a file.

        Raises:
            PipelineError: the format cannot hold a column.
        """
        return _Writer(path, schema)

    def check_output(self, uri: str, partition_by: Sequence[str]) -> None:
        """Check that it is on this machine or in S3, and has no partitions."""
        if partition_by:
            raise ValueError("files of Lance are not in folders of partitions: leave out partition_by.")
        if is_remote(uri) and scheme_of(uri) != "s3":
            raise ValueError(f"a dataset of Lance is made on this machine or in S3, not in {uri}.")

    def count_rows(self, file: Any) -> int:
        """The rows of a file, as it says at its end."""
        return _rows(file)

    def write_index(self, output: Folder, result: Result, is_present: Callable[[], bool]) -> bool:
        """Commit the files as a version of the dataset."""
        from lance import LanceDataset
        from lance.commit import CommitConflictError

        place = Place(output)
        with place.reporting():
            dataset = place.open()
            if dataset is None or not is_of(dataset, result):
                version = dataset.version if dataset is not None else None
                operation = new_version(place, result, self.folder)
                # Nobody else has switched the dataset before we have seen the version. Who does so later makes another.
                if not is_present():
                    return False
                try:
                    LanceDataset.commit(place.uri, operation, version, storage_options=place.options, max_retries=0)
                except CommitConflictError:
                    return False
                place.sync()
        return True

    def has_index(self, output: Folder, result: Result) -> bool:
        """Whether the present version has the dataset's files."""
        place = Place(output)
        with place.reporting():
            dataset = place.open()
            return dataset is not None and is_of(dataset, result)

    def index_files(self, output: Folder) -> list[str]:
        """All files of the Lance dataset."""
        return [entry.key for folder in FOLDERS for entry in output.entries(folder)]


# ---- a file


class _Writer:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        from lance.file import LanceFileWriter

        if (refused := next((field for field in schema if holds(field.type, pt.is_map)), None)) is not None:
            raise PipelineError(
                f"output.format: lance cannot hold column {refused.name!r} ({refused.type}).",
                hint="Let the function give a list of structs with key and value.",
            )
        self._path, self._bytes = path, 0
        self._schema = pa.schema([_encoded(field) for field in schema])
        self._batches = WholeBatches(schema)
        with writing(path):
            self._file = LanceFileWriter(str(path), self._schema, version=FILE_VERSION)

    def tell(self) -> int:
        """How many bytes the rows are in memory: when they are written, and so the size of the file, is not fixed."""
        return self._bytes

    def write(self, table: pa.Table) -> None:
        """Append a table; the same rows make the same bytes."""
        self._bytes += table.nbytes
        self._write(self._batches.add(table))

    def _write(self, tables: Iterator[pa.Table]) -> None:
        with writing(self._path):
            for table in tables:
                self._file.write_batch(table.cast(self._schema))

    def close(self) -> None:
        """Finish the file and flush it to the disk."""
        self._write(self._batches.rest())
        with writing(self._path):
            self._file.close()
        sync_file(self._path)


def _encoded(field: pa.Field) -> pa.Field:
    """The field with the same compression each time, for all text and bytes in it."""
    kind = field.type
    if pt.is_struct(kind):
        return field.with_type(pa.struct([_encoded(child) for child in kind]))
    if pt.is_list(kind):
        return field.with_type(pa.list_(_encoded(kind.value_field)))
    if pt.is_large_list(kind):
        return field.with_type(pa.large_list(_encoded(kind.value_field)))
    if is_binary(kind) or pt.is_string(kind) or pt.is_large_string(kind):
        return field.with_metadata(SAME_EACH_TIME)
    return field


def _rows(file: Any) -> int:
    """The rows that a file says that it has.

    At its end it says where a list begins of where its descriptions are. The first of these is a message of Protobuf:
    the schema, which has the number 1, and the rows, which have the number 2.

    Raises:
        ValueError: it is no file of Lance.
    """
    size = file.size()
    file.seek(max(0, size - FOOTER_BYTES))
    footer = bytes(file.read(FOOTER_BYTES))
    if len(footer) < FOOTER_BYTES or footer[-4:] != b"LANC":
        raise ValueError("it does not end like a file of Lance")
    file.seek(int.from_bytes(footer[16:24], "little"))
    place = bytes(file.read(16))
    file.seek(int.from_bytes(place[:8], "little"))
    message = iter(bytes(file.read(int.from_bytes(place[8:], "little"))))
    for tag in message:
        number = _varint(message)
        if tag == 2 << 3:
            return number
        if tag != (1 << 3 | 2) or sum(1 for _, _ in zip(range(number), message, strict=False)) < number:
            break
    return 0


def _varint(message: Iterator[int]) -> int:
    number = 0
    for place, byte in enumerate(message):
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            break
    return number
