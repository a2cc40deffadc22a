"""Reads lists of files: each row names one, by its URI or by its key in the input, and may say more about it.

A list is a CSV file with a header, JSON Lines, Parquet, a text of one name a line, or the JSON of a SageMaker manifest.
It is read batch by batch; there is no Python object for each row.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError, StorageError
from shardkit.storage.base import File
from shardkit.storage.list_rows import META, ROWS, times_of
from shardkit.tables.arrays import scalar, texts
from shardkit.tables.spill import BATCH_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.storage.base import Folder

BLOCK_BYTES = 8 << 20  # of text, read at once
KNOWN = {"bytes": pa.int64(), "etag": pa.string(), "modified": pa.timestamp("us", "UTC")}
LIST_HINT = "A list is .csv, .jsonl, .parquet, .txt (one name a line), or the .json of a SageMaker manifest."


@dataclass(frozen=True)
class FileList:
    """A list of files: whether its rows name ``uris`` or keys, and the type of what else it says, None if nothing.

    ``read`` opens it and yields its rows as batches of the schema `schema`.
    """

    uri: str
    uris: bool
    meta: pa.StructType | None
    read: Callable[[], Iterator[pa.RecordBatch]]

    @property
    def schema(self) -> pa.Schema:
        """That of its batches: ``name``, what is known of the file, and what else the list says as one struct."""
        return ROWS if self.meta is None else ROWS.append(pa.field(META, self.meta))


def open_list(folder: Folder, name: str, *, only_names: bool = False) -> FileList:
    """The list in the file ``name`` of a folder; with ``only_names`` nothing else of its rows is read.

    Raises:
        InputError: it is not there, or is no list.
        StorageError: it cannot be read.
    """
    file = File(folder, name)
    plain = name.lower().removesuffix(".gz")
    if plain.endswith(".json"):
        return _of_sagemaker(file)
    reader = next((READERS[end] for end in READERS if plain.endswith(end)), None)
    if reader is None:
        raise InputError(f"{file} is no list by its name.", hint=LIST_HINT)
    kinds = {"uri": pa.string(), "key": pa.string()} | KNOWN
    with reading(file):
        columns: dict[str, pa.DataType] = reader.columns(file)
    names = [each for each in ("uri", "key") if each in columns]
    if not names:
        shown = ", ".join(list(columns)[:6])
        raise InputError(
            f"{file} has no column uri and no column key; its columns are {shown}.",
            hint="Name the column with the files' URIs uri, or key if they are relative to input.uri; in CSV, the "
            "first row has the names.",
        )
    named, *_ = names
    others = {} if only_names else {each: kind for each, kind in columns.items() if each not in kinds}
    wanted = {each: kind for each, kind in kinds.items() if each in columns and (each == named or not only_names)}

    def rows() -> Iterator[pa.RecordBatch]:
        with reading(file):
            for batch in reader.batches(file, wanted | others):
                yield _rows(batch, named, list(others))

    meta = pa.struct(list(others.items())) if others else None
    return FileList(str(file), named == "uri", meta, rows)


def _rows(batch: pa.RecordBatch, named: str, others: list[str]) -> pa.RecordBatch:
    """A batch of a list in the form of `FileList.schema`."""
    columns: list[pa.Array] = [batch[named].cast(pa.string())]
    for name, kind in KNOWN.items():
        if name not in batch.schema.names:
            columns.append(pa.nulls(len(batch), kind))
        elif name == "modified":
            columns.append(times_of(batch[name]))
        elif name == "etag":
            columns.append(pc.utf8_trim(batch[name].cast(kind), characters='"'))
        else:
            columns.append(batch[name].cast(kind))
    if not others:
        return pa.RecordBatch.from_arrays(columns, schema=ROWS)
    meta = pa.StructArray.from_arrays([batch[name] for name in others], names=others)
    return pa.RecordBatch.from_arrays([*columns, meta], schema=ROWS.append(pa.field(META, meta.type)))


@contextlib.contextmanager
def reading(file: File) -> Iterator[None]:
    """A block that reads a list, and says which one it was that could not be read.

    Raises:
        InputError: it is not there, or is not what its name says.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"The list {file} does not exist.", hint="Is its name right?") from None
    except StorageError:
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"The list {file} cannot be read: {reason}", hint=LIST_HINT) from error


def text_stream(file: File) -> Any:
    """A file as text for Arrow, unpacked if its name says that it is packed, and read a large block at a time."""
    stream = pa.BufferedInputStream(file.open(), BLOCK_BYTES)
    return pa.CompressedInputStream(stream, "gzip") if file.name.lower().endswith(".gz") else stream


class _Csv:
    """CSV with a header; columns that shardkit does not know are text."""

    @staticmethod
    def columns(file: File) -> dict[str, pa.DataType]:
        import pyarrow.csv as pa_csv

        names = pa_csv.open_csv(text_stream(file)).schema.names
        return dict.fromkeys(names, pa.string())

    @staticmethod
    def batches(file: File, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        import pyarrow.csv as pa_csv

        # Times come as text: Arrow would refuse those without a zone.
        kinds = columns | ({"modified": pa.string()} if "modified" in columns else {})
        yield from pa_csv.open_csv(
            text_stream(file),
            read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES),
            convert_options=pa_csv.ConvertOptions(column_types=kinds, include_columns=list(columns)),
        )


class _JsonLines:
    """JSON Lines; the first block decides on the types of columns that shardkit does not know."""

    @staticmethod
    def columns(file: File) -> dict[str, pa.DataType]:
        import pyarrow.json as pa_json

        options = pa_json.ReadOptions(block_size=BLOCK_BYTES)
        schema = pa_json.open_json(text_stream(file), read_options=options).schema
        # What looks like a time is text to whoever wrote it, and the next one may not look like it.
        return {
            field.name: pa.string() if pa.types.is_null(field.type) or pa.types.is_timestamp(field.type) else field.type
            for field in schema
        }

    @staticmethod
    def batches(file: File, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        import pyarrow.json as pa_json

        kinds = columns | ({"modified": pa.string()} if "modified" in columns else {})
        for batch in pa_json.open_json(
            text_stream(file),
            read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema(list(kinds.items())), unexpected_field_behavior="ignore"
            ),
        ):
            yield batch.select(list(columns))


class _Parquet:
    """Parquet, a row group at a time."""

    @staticmethod
    def columns(file: File) -> dict[str, pa.DataType]:
        import pyarrow.parquet as pq

        with file.open() as opened:
            schema = pq.ParquetFile(opened).schema_arrow
        return {field.name: field.type for field in schema}

    @staticmethod
    def batches(file: File, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        with file.open() as opened:
            yield from pq.ParquetFile(opened).iter_batches(batch_size=BATCH_ROWS, columns=list(columns))


class _Lines:
    """A text of one name a line: a URI if it has ``://`` in it, else a key."""

    @staticmethod
    def columns(file: File) -> dict[str, pa.DataType]:
        first = next((batch["key"] for batch in _Lines.batches(file, {"key": pa.string()}) if len(batch)), None)
        uris = first is not None and pc.match_substring(first.slice(0, 1), "://")[0].as_py()
        return {"uri" if uris else "key": pa.string()}

    @staticmethod
    def batches(file: File, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        import pyarrow.csv as pa_csv

        (name,) = columns
        yield from pa_csv.open_csv(
            text_stream(file),
            read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=[name]),
            parse_options=pa_csv.ParseOptions(delimiter="\x01", quote_char=False),
            convert_options=pa_csv.ConvertOptions(column_types={name: pa.string()}),
        )


READERS: dict[str, Any] = {
    ".csv": _Csv,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".parquet": _Parquet,
    ".txt": _Lines,
}


def _of_sagemaker(file: File) -> FileList:
    """The list in a SageMaker manifest: a prefix, and what follows it in each object's URI."""
    with reading(file):
        content = json.loads(file.folder.read(file.key))
    prefix = (
        content[0].get("prefix") if isinstance(content, list) and content and isinstance(content[0], dict) else None
    )
    if not isinstance(prefix, str) or not all(isinstance(name, str) for name in content[1:]):
        raise InputError(
            f'{file} is no manifest: neither of S3 Inventory nor [{{"prefix": ...}}, "name", ...].', hint=LIST_HINT
        )

    def rows() -> Iterator[pa.RecordBatch]:
        for begin in range(1, len(content), BATCH_ROWS):
            names = texts(content[begin : begin + BATCH_ROWS])
            uris = pc.binary_join_element_wise(scalar(prefix), names, "")
            yield _rows(pa.RecordBatch.from_arrays([uris], ["uri"]), "uri", [])

    return FileList(str(file), uris=True, meta=None, read=rows)
