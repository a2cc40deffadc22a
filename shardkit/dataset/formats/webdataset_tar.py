"""WebDataset: tar files whose members with one stem are a sample, written by the library of that name."""

from __future__ import annotations

import io
import json
import re
import tarfile
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shardkit.dataset.formats.base import LoaderFormat, PlainWriter
from shardkit.dataset.formats.json_lines import as_json, jsonable
from shardkit.dataset.formats.text import is_binary
from shardkit.errors import PipelineError
from shardkit.storage.local import writing
from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

KEY = "__key__"  # the column, and the library's name, of what a sample's members have in common
LONGEST_KEY = 100  # characters of the name of a member, with its extension
WRITTEN_ROWS = 256  # that are Python objects at a time


class WebDataset(LoaderFormat):
    """Shards of WebDataset: a sample for each row.

    Bytes are a member each, named by their column; so are numbers in lists, as ``.npy``; all else is in ``json``.
    """

    suffix: ClassVar[str] = ".tar"
    refusal: ClassVar[str] = "A dataset of WebDataset is samples, not a table."
    cure: ClassVar[str] = (
        "Read it with webdataset.WebDataset(run.files()), or run with output.format: parquet for queries."
    )
    library: ClassVar[str] = "webdataset"
    extra: ClassVar[str] = "webdataset"

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a shard.

        Raises:
            PipelineError: the format cannot hold a column.
        """
        return _Writer(path, schema)

    def read_as(self, schema: pa.Schema) -> pa.Schema:
        """The types with JSON's substitutes in ``json``."""
        in_json = set(_members(schema)[1])
        return pa.schema([as_json(field) if field.name in in_json else field for field in schema])

    def batches(self, file: Any, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The samples of a shard as rows, with the types in which `read_as` has its columns.

        Raises:
            ValueError: it is no tar file.
        """
        samples: list[dict[str, Any]] = []
        for sample in _read(file):
            samples.append(sample)
            if len(samples) == WRITTEN_ROWS:
                yield _as_rows(samples, columns)
                samples = []
        if samples:
            yield _as_rows(samples, columns)

    def count_rows(self, file: Any) -> int:
        """The samples of a shard, whose headers are read."""
        try:
            with tarfile.open(fileobj=file, mode="r:") as shard:
                keys = [re.split(r"\.(?!.*/)", member.name, maxsplit=1)[0] for member in shard]
        except tarfile.TarError as error:
            raise ValueError(str(error)) from error
        return sum(key != before for before, key in zip(["", *keys], keys, strict=False))


class _Writer(PlainWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        from webdataset import TarWriter

        self._members, self._in_json = _members(schema)
        super().__init__(path)
        # What the tar file says of its members is always the same, and so are shards of the same rows.
        self._tar = TarWriter(self._file, mtime=0, encoder=False)
        number = re.search(r"part-(\d+)", path.name)
        self._stem = number[1] if number else "0"
        self._rows, self._last = 0, ""

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            for batch in table.to_batches(max_chunksize=WRITTEN_ROWS):
                for sample in self._samples(batch):
                    self._tar.write(sample)

    def _samples(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        for row in batch.to_pylist():
            key = self._key_of(row)
            sample: dict[str, Any] = {KEY: key}
            for name, is_array in self._members.items():
                if (value := row[name]) is not None:
                    sample[f"{name}.npy" if is_array else name] = _array(value) if is_array else value
            if self._in_json:
                content = {name: jsonable(row[name]) for name in self._in_json}
                sample["json"] = json.dumps(content, ensure_ascii=False).encode()
            yield sample

    def _key_of(self, row: dict[str, Any]) -> str:
        """The key of a sample: that of its row, or one made of the numbers of the shard and the row."""
        self._rows += 1
        key = row.get(KEY)
        if key is None:
            return f"{self._stem}-{self._rows - 1:08d}"
        if "." in key.rpartition("/")[2] or not key or key == self._last or len(key) > LONGEST_KEY:
            why = "is that of the row before" if key == self._last else "will not do: a point ends it"
            raise PipelineError(
                f"output.format: webdataset: the key {key[:LONGEST_KEY]!r} {why}.",
                hint=f"Let the function give each row one of its own in {KEY!r}, of at most {LONGEST_KEY} characters "
                "without points.",
            )
        self._last = key
        return str(key)

    def _end(self) -> None:
        self._tar.close()


def _read(file: Any) -> Iterator[dict[str, Any]]:
    """The members of each sample by their extensions, and its key."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as shard:
            sample: dict[str, Any] = {}
            for member in shard:
                key, extension = re.split(r"\.(?!.*/)", member.name, maxsplit=1)
                if sample and sample[KEY] != key:
                    yield sample
                    sample = {}
                content = shard.extractfile(member)
                sample |= {KEY: key, extension: content.read() if content else b""}
                shard.members.clear()  # type: ignore[attr-defined]  # it would keep all headers
            if sample:
                yield sample
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error


def _as_rows(samples: Sequence[dict[str, Any]], columns: pa.Schema) -> pa.RecordBatch:
    members, in_json = _members(columns)
    parsed = _parsed([sample["json"] for sample in samples], columns, in_json) if in_json else {}
    arrays = []
    for field in columns:
        if field.name in parsed:
            arrays.append(parsed[field.name])
        elif members.get(field.name):
            loaded = [_loaded(sample.get(f"{field.name}.npy"), field.type.value_type) for sample in samples]
            arrays.append(pa.array(loaded, field.type))
        else:
            arrays.append(pa.array([sample.get(field.name) for sample in samples], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _parsed(lines: Sequence[bytes], columns: pa.Schema, names: Sequence[str]) -> dict[str, pa.Array]:
    """The columns that are in ``json``, from that of each sample."""
    from pyarrow import json as arrow_json

    wanted = pa.schema([columns.field(name) for name in names])
    text = b"\n".join(lines) + b"\n"
    table = arrow_json.read_json(
        pa.BufferReader(text),
        read_options=arrow_json.ReadOptions(block_size=len(text), use_threads=False),
        parse_options=arrow_json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
    )
    return {name: table[name].combine_chunks() for name in names}


def _loaded(content: bytes | None, kind: pa.DataType) -> Any:
    if content is None:
        return None
    return np.load(io.BytesIO(content), allow_pickle=False).astype(kind.to_pandas_dtype(), copy=False)


def _members(schema: pa.Schema) -> tuple[dict[str, bool], list[str]]:
    """The columns that are members of their own, and whether as arrays; and those in ``json``.

    Raises:
        PipelineError: one can be neither.
    """
    members, in_json = {}, []
    for field in schema:
        if is_binary(field.type) or _is_numbers(field.type):
            members[field.name] = not is_binary(field.type)
            if field.name.startswith("_") or "/" in field.name:
                raise PipelineError(
                    f"output.format: webdataset: column {field.name!r} cannot be the extension of a member.",
                    hint="Let the function name it like a file's ending, such as jpg.",
                )
        elif holds(field.type, is_binary):
            raise PipelineError(
                f"output.format: webdataset cannot hold column {field.name!r} ({field.type}).",
                hint="Give bytes in columns of their own, such as jpg.",
            )
        elif field.name != KEY:
            in_json.append(field.name)
    if in_json and "json" in members:
        raise PipelineError(
            f"output.format: webdataset: the columns {', '.join(in_json)} go to a member json, and so does 'json'.",
            hint="Name the column of bytes otherwise.",
        )
    return members, in_json


def _is_numbers(kind: pa.DataType) -> bool:
    is_list = pt.is_list(kind) or pt.is_large_list(kind)
    return bool(is_list and (pt.is_integer(kind.value_type) or pt.is_floating(kind.value_type)))


def _array(values: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=False)
    return sink.getvalue()
