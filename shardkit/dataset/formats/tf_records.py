"""TFRecord: files of tf.train.Example, written by TensorFlow, which takes seconds to load."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow.types as pt

from shardkit.dataset.formats.base import LoaderFormat
from shardkit.dataset.formats.json_lines import jsonable
from shardkit.errors import PipelineError
from shardkit.storage.local import sync_file, writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

WRITTEN_ROWS = 256  # that are Python objects at a time
READ_BYTES = 1 << 20
BEFORE, AFTER = 12, 4  # bytes around a record: its length and the checksum of that, and its own checksum
QUIET = "TF_CPP_MIN_LOG_LEVEL"


class TfRecord(LoaderFormat):
    """Files of TFRecord: an Example for each row, with a feature for each column that is not null."""

    suffix: ClassVar[str] = ".tfrecord"
    refusal: ClassVar[str] = "A dataset of TFRecord is examples, not a table."
    cure: ClassVar[str] = (
        "Read it with tf.data.TFRecordDataset(run.files()), or run with output.format: parquet for queries."
    )
    library: ClassVar[str] = "tensorflow"
    extra: ClassVar[str] = "tfrecord"

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a file.

        Raises:
            PipelineError: the format cannot hold a column.
        """
        return _Writer(path, schema)

    def count_rows(self, file: Any) -> int:
        """The records of a file, from one length to the next, without TensorFlow."""
        rows = position = start = 0
        size, block = file.size(), b""
        while position < size:
            if not start <= position <= start + len(block) - BEFORE:
                file.seek(position)
                start, block = position, bytes(file.read(READ_BYTES))
            length = block[position - start : position - start + 8]
            position += BEFORE + int.from_bytes(length, "little") + AFTER
            rows += 1
        if position != size:
            raise ValueError("it ends within a record")
        return rows


class _Writer:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._kinds = {field.name: _kind(field) for field in schema}
        self._tensorflow = _loaded()
        self._path, self._bytes = path, 0
        with writing(path):
            self._file = self._calling(self._tensorflow.io.TFRecordWriter, str(path))

    def tell(self) -> int:
        """How many bytes are written."""
        return self._bytes

    def write(self, table: pa.Table) -> None:
        """Append a table; the same rows make the same bytes."""
        train = self._tensorflow.train
        for batch in table.to_batches(max_chunksize=WRITTEN_ROWS):
            for row in batch.to_pylist():
                features = {name: self._feature(name, value) for name, value in row.items() if value is not None}
                example = train.Example(features=train.Features(feature=features))
                record = example.SerializeToString(deterministic=True)
                with writing(self._path):
                    self._calling(self._file.write, record)
                self._bytes += BEFORE + len(record) + AFTER

    def _feature(self, name: str, value: Any) -> Any:
        train, kind = self._tensorflow.train, self._kinds[name]
        values = value if isinstance(value, list) else [value]
        try:
            if kind == "int64":
                return train.Feature(int64_list=train.Int64List(value=list(map(int, values))))
            if kind == "float":
                return train.Feature(float_list=train.FloatList(value=values))
            return train.Feature(bytes_list=train.BytesList(value=[_as_bytes(value) for value in values]))
        except (ValueError, TypeError):
            why = "a list in it holds a null" if None in values else "a number is too large"
            raise PipelineError(
                f"output.format: tfrecord cannot hold column {name!r}: {why}.",
                hint="Let the function give lists without nulls, and whole numbers of 64 bits with a sign.",
            ) from None

    def close(self) -> None:
        """Finish the file and flush it to the disk."""
        with writing(self._path):
            self._calling(self._file.close)
        sync_file(self._path)

    def _calling(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """Call TensorFlow, whose errors are no `OSError`."""
        try:
            return do(*arguments)
        except self._tensorflow.errors.OpError as error:
            raise OSError(error.message) from error


def _kind(field: pa.Field) -> str:
    """Which list of a feature holds the values of a column: of int64, float or bytes.

    Raises:
        PipelineError: none does.
    """
    kind = field.type
    if pt.is_list(kind) or pt.is_large_list(kind):
        kind = kind.value_type
    if pt.is_nested(kind):
        raise PipelineError(
            f"output.format: tfrecord cannot hold column {field.name!r} ({field.type}): an example has flat lists.",
            hint="Let the function give one list, and its shape or its names in another column; or JSON as text.",
        )
    if pt.is_integer(kind) or pt.is_boolean(kind):
        return "int64"
    return "float" if pt.is_floating(kind) else "bytes"


def _as_bytes(value: Any) -> bytes:
    """Bytes as they are; text, and all else as its text in JSON, in UTF-8.

    Raises:
        TypeError: it is a null.
    """
    if value is None:
        raise TypeError
    return value if isinstance(value, bytes) else str(jsonable(value)).encode()


def _loaded() -> Any:
    """TensorFlow, which does not say now what it was compiled with."""
    before = os.environ.get(QUIET)
    os.environ.setdefault(QUIET, "2")
    try:
        import tensorflow
    finally:
        if before is None:
            os.environ.pop(QUIET, None)
    return tensorflow
