"""MDS: the shards of MosaicML's StreamingDataset, written by its library, and the index in which it finds them."""

from __future__ import annotations

import json
import re
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow.types as pt

from shardkit.dataset.formats.arrays import arrays_of, number_type
from shardkit.dataset.formats.base import LoaderFormat, PlainWriter
from shardkit.dataset.formats.json_lines import jsonable
from shardkit.dataset.formats.text import is_binary
from shardkit.errors import PipelineError, StorageError
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together
from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow as pa

    from shardkit.runfolder.document_types import ResultFile
    from shardkit.storage.base import Folder

VERSION = 2  # of the index, and of the headers of shards
WRITTEN_ROWS = 256  # that are Python objects at a time
LARGEST_BYTES = 1 << 32  # a shard says in 32 bits where a sample begins
PICTURE = re.compile(r"(?:.*\.)?(jpg|jpeg|png)")  # names of columns of bytes that the loader is to open as pictures


class Mds(LoaderFormat):
    """Shards of MDS: a sample for each row, with columns of the types that the library encodes."""

    suffix: ClassVar[str] = ".mds"
    describes_itself: ClassVar[bool] = True
    refusal: ClassVar[str] = "A dataset of MDS is samples, not a table."
    cure: ClassVar[str] = "Read it with streaming.StreamingDataset, or run with output.format: parquet for queries."
    library: ClassVar[str] = "streaming"
    extra: ClassVar[str] = "mds"
    target_bytes: ClassVar[int | None] = 64 << 20  # as the library has it; a shard is in memory until it is written
    index: ClassVar[str] = "index.json"

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a shard.

        Raises:
            PipelineError: the format cannot hold a column.
        """
        return _Writer(path, schema)

    def count_rows(self, file: Any) -> int:
        """The samples of a shard, as it says at its beginning."""
        return int(_header(file.size(), lambda start, end: _read(file, start, end))[0])

    def index_of(self, output: Folder, files: Sequence[ResultFile], present: bytes | None) -> bytes:
        """The index: what each shard says of itself, its name and its size.

        Raises:
            StorageError: a shard cannot be read.
        """
        known = _entries(present)

        def entry(file: ResultFile) -> dict[str, Any]:
            noted = known.get(file["path"], {})
            is_same = noted.get("samples") == file["rows"] and noted["raw_data"].get("bytes") == file["bytes"]
            return noted if is_same else _entry(output, file)

        shards = together([partial(entry, file) for file in files])
        return json.dumps({"version": VERSION, "shards": shards}, sort_keys=True).encode()


# ---- the index


def _entries(index: bytes | None) -> dict[str, dict[str, Any]]:
    """The shards that an index has, by their names; none if it is damaged."""
    try:
        return {shard["raw_data"]["basename"]: shard for shard in json.loads(index or b"{}").get("shards", [])}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _entry(output: Folder, file: ResultFile) -> dict[str, Any]:
    path = file["path"]
    try:
        samples, config = _header(file["bytes"], lambda start, end: bytes(output.read_range(path, start, end)))
    except (OSError, ValueError) as error:
        raise StorageError(f"{File(output, path)} is no shard of MDS as it was written: {error}.") from error
    if samples != file["rows"]:
        raise StorageError(f"{File(output, path)} has {samples:,} samples, and {file['rows']:,} were written to it.")
    raw = {"basename": path, "bytes": file["bytes"], "hashes": {}}
    return config | {"samples": samples, "raw_data": raw, "zip_data": None}


def _header(size: int, read: Callable[[int, int], bytes]) -> tuple[int, dict[str, Any]]:
    """How many samples a shard of ``size`` bytes has, and its columns; ``read`` gives its bytes from here to there.

    Raises:
        ValueError: it is no shard, or not a whole one.
    """
    # The number of samples, where each begins and the last ends, and JSON up to the first sample.
    numbers = np.frombuffer(read(0, 8), np.uint32)
    samples, begin = map(int, numbers) if len(numbers) == 2 else (0, 0)
    last = 4 + 4 * samples
    if not last < begin <= size:
        raise ValueError("it does not begin like one")
    rest = read(last, begin)
    if int.from_bytes(rest[:4], "little") != size:
        raise ValueError("it does not end where it says")
    config = json.loads(rest[4:])
    if not isinstance(config, dict) or (config.get("version"), config.get("format")) != (VERSION, "mds"):
        raise ValueError("it is of another version")
    return samples, config


def _read(file: Any, start: int, end: int) -> bytes:
    file.seek(start)
    return bytes(file.read(end - start))


# ---- a shard


class _Writer(PlainWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        try:
            from streaming import MDSWriter
        except Exception as error:  # a torchvision that does not fit PyTorch raises RuntimeError
            raise PipelineError(
                f"output.format: mds needs the library streaming, which cannot be imported: {error}.",
                hint="python -c 'import streaming' shows why. Its versions of torch and torchvision have to fit.",
            ) from error

        self._encodings = {field.name: _encoding(field) for field in schema}
        with tempfile.TemporaryDirectory(prefix="shardkit-mds-") as unused:  # we write the shard where it belongs
            self._shard = MDSWriter(out=unused, columns=self._encodings, size_limit=None)
        super().__init__(path)

    def tell(self) -> int:
        return int(self._shard.new_shard_size)

    def write(self, table: pa.Table) -> None:
        for batch in table.to_batches(max_chunksize=WRITTEN_ROWS):
            columns = (_values(batch[name], name, encoding) for name, encoding in self._encodings.items())
            for values in zip(*columns, strict=True):
                self._shard.write(dict(zip(self._encodings, values, strict=True)))
            if self.tell() >= LARGEST_BYTES:
                raise PipelineError(
                    "output.format: mds: a shard would be larger than 4 GiB.",
                    hint="Set output.target_bytes, such as 64MB.",
                )

    def _end(self) -> None:
        self._file.write(self._shard.encode_joint_shard())


def _encoding(field: pa.Field) -> str:
    """How the library encodes a column.

    Raises:
        PipelineError: it cannot.
    """
    kind = field.type
    if is_binary(kind):
        picture = PICTURE.fullmatch(field.name)
        return "bytes" if picture is None else picture[1].replace("jpg", "jpeg")
    if pt.is_string(kind) or pt.is_large_string(kind):
        return "str"
    if pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_floating(kind):
        return _number(kind)
    if pt.is_decimal(kind):
        return "str_decimal"
    if (number := number_type(kind)) is not None:
        return f"ndarray:{_number(number)}"
    if holds(kind, is_binary):
        raise PipelineError(
            f"output.format: mds cannot hold column {field.name!r} ({kind}).",
            hint="Give bytes in columns of their own, such as jpg.",
        )
    return "json"


def _number(kind: pa.DataType) -> str:
    """A type of numbers as NumPy and the library call it; truth values are numbers there."""
    return "uint8" if pt.is_boolean(kind) else str(np.dtype(kind.to_pandas_dtype()))


def _values(column: pa.Array, name: str, encoding: str) -> list[Any]:
    """The values of a column as the library takes them.

    Raises:
        PipelineError: it does not take one.
    """
    if encoding == "json":
        return [jsonable(value) for value in column.to_pylist()]
    if column.null_count:
        raise _refusal(name, "a row has no value in it", "Let the function give one in each row, such as '' or NaN.")
    if encoding.startswith("ndarray:"):
        return _arrays(column, name, encoding.partition(":")[2])
    values: list[Any] = column.to_pylist()
    return values


def _arrays(column: pa.Array, name: str, number: str) -> list[np.ndarray]:
    try:
        arrays = [np.asarray(array, number) for array in arrays_of(column)]
    except ValueError as error:
        raise _refusal(name, str(error), "Let the function give arrays that are full, or bytes.") from None
    if not all(array.size for array in arrays):
        raise _refusal(name, "a list in it is empty", "Let the function give lists with at least one number, or bytes.")
    return arrays


def _refusal(column: str, why: str, cure: str) -> PipelineError:
    return PipelineError(f"output.format: mds cannot hold column {column!r}: {why}.", hint=cure)
