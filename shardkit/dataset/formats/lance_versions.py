"""The versions of a Lance dataset: where it is, what a version says of its run, and its fragments."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pt

from shardkit.errors import ShardkitError, StorageError
from shardkit.storage.aws_locations import reach_of
from shardkit.storage.base import is_remote
from shardkit.storage.local import sync_file
from shardkit.storage.side_by_side import together
from shardkit.tables.type_text import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardkit.runfolder.document_types import Result, ResultFile
    from shardkit.storage.base import Folder

VERSIONS = "_versions"
FOLDERS = (VERSIONS, "_transactions", "_indices", "_deletions", "data")  # of a Lance dataset
FILE_VERSION = "2.1"  # of the format: all files of a dataset have the same
RUN, SWITCH = "shardkit.run-id", "shardkit.switch"


class Place:
    """Where a Lance dataset is, and how it is reached: in the same way as shardkit reaches it."""

    def __init__(self, output: Folder) -> None:
        self.output = output
        self.uri = output.uri if is_remote(output.uri) else str(output.path)
        self.options = _access(output) if is_remote(output.uri) else None

    def open(self) -> Any:
        """The present version of the dataset; None if there is none."""
        import lance

        return lance.dataset(self.uri, storage_options=self.options) if self.output.entries(VERSIONS) else None

    def sync(self) -> None:
        """Make what was committed durable, on this machine."""
        if self.options is None:
            for entry in self.output.entries(VERSIONS):
                sync_file(self.output.path / entry.key)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn what Lance raises into an error of ours.

        Raises:
            StorageError: something was raised.
        """
        try:
            yield
        except ShardkitError:
            raise
        except Exception as error:  # Lance raises OSError, ValueError, RuntimeError and its own
            said = " ".join(str(error).split())[:500]
            raise StorageError(f"The Lance dataset in {self.output.uri}: {type(error).__name__}: {said}.") from error


def _access(output: Folder) -> dict[str, str]:
    """How Lance reaches the store of an output."""
    reach = reach_of(output, "Lance")
    access = {
        "region": reach.region,
        "access_key_id": reach.access_key,
        "secret_access_key": reach.secret_key,
        "session_token": reach.token,
        "endpoint": reach.endpoint,
        "allow_http": str(reach.endpoint.startswith("http://")).lower() if reach.endpoint is not None else None,
    }
    return {name: value for name, value in access.items() if value}


def is_of(dataset: Any, result: Result) -> bool:
    """Whether a version has the files of that switch; if others have rewritten them since, they still are its own."""
    said: dict[bytes, bytes] = dataset.schema.metadata or {}
    return all(said.get(name.encode()) == value.encode() for name, value in _noted(result).items())


def _noted(result: Result) -> dict[str, str]:
    return {RUN: result["run_id"], SWITCH: str(result["switched"])}


def new_version(place: Place, result: Result, folder: str) -> Any:
    """The operation that makes the files of ``result``, which lie in ``folder``, the dataset."""
    from lance import LanceOperation

    columns = schema_of(result, without=result["partition_by"])
    ids = {}
    first = 0
    for field in columns:
        ids[field.name], first = _leaves(field.type, first)
    files = sorted(result["files"], key=lambda file: (file["partition"], file["path"]))
    schemas = together([partial(_columns, place, file["path"]) for file in files])
    fragments = [
        _fragment(file, [number for name in schema.names for number in ids[name]], folder)
        for file, schema in zip(files, schemas, strict=True)
    ]
    return LanceOperation.Overwrite(columns.with_metadata(_noted(result)), fragments)


def _columns(place: Place, path: str) -> pa.Schema:
    """The columns that a file has, in the order in which it has them."""
    from lance.file import LanceFileReader

    return LanceFileReader(f"{place.uri}/{path}", storage_options=place.options).metadata().schema


def _leaves(kind: pa.DataType, first: int) -> tuple[list[int], int]:
    """The numbers of the columns that a file has for a type, and the number after them.

    Lance numbers all types in a schema from ``first`` on, each before those that are in it; a file has columns for the
    innermost alone.
    """
    if pt.is_struct(kind):
        inner = [field.type for field in kind]
    else:
        inner = [kind.value_type] if pt.is_list(kind) or pt.is_large_list(kind) else []
    if not inner:
        return [first], first + 1
    numbers, following = [], first + 1
    for child in inner:
        some, following = _leaves(child, following)
        numbers += some
    return numbers, following


def _fragment(file: ResultFile, numbers: list[int], folder: str) -> Any:
    from lance.fragment import FragmentMetadata

    major, minor = map(int, FILE_VERSION.split("."))
    data = {
        "path": file["path"].removeprefix(folder),
        "fields": numbers,
        "column_indices": list(range(len(numbers))),
        "file_major_version": major,
        "file_minor_version": minor,
        "file_size_bytes": file["bytes"],
        "base_id": None,
    }
    nothing: Mapping[str, Any] = {"id": 0, "deletion_file": None, "row_id_meta": None}
    return FragmentMetadata.from_json(json.dumps({**nothing, "files": [data], "physical_rows": file["rows"]}))
