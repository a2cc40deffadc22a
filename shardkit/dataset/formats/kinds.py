"""The table of formats.

A new format is a subclass of `Format` in a module of its own, and a line in this table. Another package adds one by an
entry point in the group ``shardkit.formats``, whose name is the value of ``output.format``.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

from shardkit.dataset.formats.base import Format
from shardkit.errors import PipelineError
from shardkit.plugins import Registry
from shardkit.storage.local import writing

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from shardkit.dataset.formats.base import FileWriter

FORMATS: Registry[type[Format]] = Registry(
    "shardkit.formats",
    {
        "parquet": "shardkit.dataset.formats.parquet:Parquet",
        "jsonl": "shardkit.dataset.formats.json_lines:JsonLines",
        "csv": "shardkit.dataset.formats.csv_text:Csv",
        "lance": "shardkit.dataset.formats.lance_files:Lance",
        "mds": "shardkit.dataset.formats.mds_shards:Mds",
        "tfrecord": "shardkit.dataset.formats.tf_records:TfRecord",
        "webdataset": "shardkit.dataset.formats.webdataset_tar:WebDataset",
        "hf": "shardkit.dataset.formats.hugging_face:HuggingFace",
        "arrow": "shardkit.dataset.formats.arrow_ipc:ArrowIpc",
    },
    error=PipelineError,
    fits=lambda kind: isinstance(kind, type) and issubclass(kind, Format),
    wanted="a subclass of shardkit.dataset.formats.base.Format",
)


@functools.lru_cache(maxsize=16)
def format_of(name: str) -> Format:
    """The format of that name.

    Raises:
        PipelineError: there is none.
    """
    kind = FORMATS.find(name)
    if kind is None:
        raise PipelineError(
            f"output.format: no format {name!r} is known here{FORMATS.near(name) or '.'}",
            hint=f"There are {', '.join(FORMATS.names())}. Is the package with another one installed?",
        )
    return kind()


def check_installed(name: str, *, what: str = "") -> None:
    """Check that the library of that format is there, if it takes one: to write files, or for ``what`` else.

    Raises:
        PipelineError: it is not, or there is no such format.
    """
    kind = format_of(name)
    if kind.library and importlib.util.find_spec(kind.library) is None:
        raise PipelineError(
            f"{what or f'output.format: {name}'} needs the library {kind.library}, which is not installed.",
            hint=f"Install it with: pip install 'shardkit[{kind.extra}]'" if kind.extra else "",
        )


def open_writer(path: Path, schema: pa.Schema, format: str, *, threads: int) -> FileWriter:
    """Begin a file; ``threads`` is how many may encode it.

    Raises:
        PipelineError: the format cannot hold a column of ``schema``, or its library is not installed.
        StorageError: the file cannot be written.
    """
    import pyarrow as pa

    check_installed(format)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return format_of(format).writer(path, schema, threads=threads)
        except pa.ArrowException as error:
            raise PipelineError(f"output.format: {format} cannot hold the columns: {error}.") from error


def known_format(value: Any) -> Any:
    """Check that a format exists.

    Raises:
        ValueError: it does not; the text is like pydantic's own.
    """
    if isinstance(value, str) and value in FORMATS:
        return value
    from pydantic_core import PydanticKnownError

    *others, last = map(repr, FORMATS.names())
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
