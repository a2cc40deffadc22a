"""Reads reports of S3 Inventory: a manifest, and the data files that it names, in CSV, Parquet or ORC.

Keys are URL-encoded in CSV, and plain in the other two. Earlier versions and delete markers are left out, so that what
remains is what a listing of the bucket at that time would have given.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError
from shardkit.storage.base import File
from shardkit.storage.list_rows import ROWS, times_of
from shardkit.storage.lists import BLOCK_BYTES, reading, text_stream
from shardkit.storage.open import folder
from shardkit.tables.arrays import scalar
from shardkit.tables.spill import BATCH_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.storage.base import Access, Folder

ARN = "arn:"
# What the columns of a report are called here, whichever of the two ways of writing them it has.
COLUMNS = {
    "key": "key",
    "size": "bytes",
    "etag": "etag",
    "lastmodifieddate": "modified",
    "islatest": "is_latest",
    "isdeletemarker": "is_delete_marker",
}


@dataclass(frozen=True)
class Inventory:
    """A report: the bucket that it is of, and the readers of its data files."""

    uri: str
    bucket: str
    files: tuple[Callable[[], Iterator[pa.RecordBatch]], ...]


def open_inventory(home: Folder, name: str, access: Access) -> Inventory | None:
    """The report whose manifest is the file ``name`` in a folder; None if it is another kind of JSON.

    Raises:
        InputError: it is not there, or not as the service writes it.
    """
    manifest = File(home, name)
    with reading(manifest):
        content = json.loads(home.read(name))
    if not isinstance(content, dict) or not {"sourceBucket", "fileFormat", "fileSchema", "files"} <= content.keys():
        return None
    form = content["fileFormat"].upper()
    if form not in FORMATS:
        raise InputError(f"{manifest}: shardkit reads CSV, Parquet and ORC, and this report is in {form}.")
    names = [each.strip() for each in content["fileSchema"].split(",")] if form == "CSV" else []
    at = functools.partial(_data_file, home, content.get("destinationBucket", ""), access)
    readers = [functools.partial(_rows, at(each["key"]), FORMATS[form], names, each) for each in content["files"]]
    return Inventory(str(manifest), content["sourceBucket"].rpartition(":")[2], tuple(readers))


def _data_file(home: Folder, destination: str, access: Access, key: str) -> File:
    """A data file, in its bucket; of a report that was copied here, in ``data`` beside the folder of the manifest."""
    if "://" not in home.uri:
        return File(folder(home.path.parent / "data"), key.rpartition("/")[2])
    scheme, _, rest = home.uri.partition("://")
    bucket = destination.rpartition(":")[2] or rest.partition("/")[0]
    return File(folder(f"{scheme}://{bucket}", access), key)


def _rows(
    file: File, read: Callable[[File, list[str]], Iterator[pa.RecordBatch]], names: list[str], noted: dict[str, Any]
) -> Iterator[pa.RecordBatch]:
    """The objects in a data file, as batches of `ROWS`."""
    with reading(file):
        size = file.folder.size(file.key)
        if size is None:
            raise InputError(
                f"The inventory's data file {file} is not there.",
                hint="Use a newer report; old ones may be removed by a lifecycle rule.",
            )
        if size != noted.get("size", size):
            raise InputError(f"The inventory's data file {file} has {size:,} bytes, and should have {noted['size']:,}.")
        for batch in read(file, names):
            yield _current(batch)


def _current(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of objects that are there, in the form of `ROWS`."""
    columns = {
        COLUMNS[short]: batch.column(number)
        for number, name in enumerate(batch.schema.names)
        if (short := name.lower().replace("_", "").replace(" ", "")) in COLUMNS
    }
    there = np.ones(len(batch), bool)
    for name, wanted in (("is_latest", True), ("is_delete_marker", False)):
        if name in columns:
            given = pc.fill_null(columns[name].cast(pa.bool_()), scalar(value=wanted))
            there &= np.asarray(given.to_numpy(zero_copy_only=False)) == wanted
    nothing = pa.nulls(len(batch), pa.string())
    arrays = [
        columns["key"].cast(pa.string()),
        columns.get("bytes", nothing).cast(pa.int64()),
        pc.utf8_trim(columns.get("etag", nothing).cast(pa.string()), characters='"'),
        times_of(columns["modified"]) if "modified" in columns else nothing.cast(ROWS.field("modified").type),
    ]
    rows = pa.RecordBatch.from_arrays(arrays, schema=ROWS)
    return rows if there.all() else rows.filter(pa.array(there))


def _csv_rows(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow.csv as pa_csv

    for batch in pa_csv.open_csv(
        text_stream(file),
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=names),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    ):
        key = next(number for number, name in enumerate(names) if name.lower() == "key")
        yield batch.set_column(key, names[key], url_decoded(batch.column(key)))


def _parquet_rows(file: File, _: list[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with file.open() as opened:
        report = pq.ParquetFile(opened)
        wanted = [name for name in report.schema_arrow.names if name.lower().replace("_", "") in COLUMNS]
        yield from report.iter_batches(batch_size=BATCH_ROWS, columns=wanted)


def _orc_rows(file: File, _: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        import pyarrow.orc as pa_orc
    except ImportError:
        raise InputError(f"{file}: this pyarrow was built without ORC.", hint="Have the report in Parquet.") from None
    with file.open() as opened:
        report = pa_orc.ORCFile(opened)
        wanted = [name for name in report.schema.names if name.lower().replace("_", "") in COLUMNS]
        for stripe in range(report.nstripes):
            read = report.read_stripe(stripe, columns=wanted)
            for begin in range(0, len(read), BATCH_ROWS):
                yield read.slice(begin, BATCH_ROWS)


FORMATS: dict[str, Callable[[File, list[str]], Iterator[pa.RecordBatch]]] = {
    "CSV": _csv_rows,
    "PARQUET": _parquet_rows,
    "ORC": _orc_rows,
}


def url_decoded(keys: pa.StringArray) -> pa.StringArray:
    """Keys without their URL encoding; each of the few escapes in them is replaced in all of them at once."""
    plain = pc.replace_substring(keys, "+", " ").cast(pa.binary())
    escapes = _escapes(plain)
    # The percent sign last: what it makes may look like an escape.
    for escape in sorted(escapes, key=lambda each: each == b"%25"):
        plain = pc.replace_substring(plain, pattern=escape, replacement=bytes.fromhex(escape[1:].decode()))
    return plain.cast(pa.string())


def _escapes(keys: pa.BinaryArray) -> set[bytes]:
    """The escapes that occur in some keys, such as ``%3D``."""
    begin, end = np.frombuffer(keys.buffers()[1], np.int32)[[keys.offset, keys.offset + len(keys)]].tolist()
    if keys.buffers()[2] is None or end - begin < 3:
        return set()
    text = np.frombuffer(keys.buffers()[2], np.uint8)[begin:end]
    at = np.flatnonzero(text[:-2] == ord("%"))
    codes = np.unique(text[at + 1].astype(np.uint16) << 8 | text[at + 2])
    return {b"%" + bytes(divmod(int(code), 256)) for code in codes}
