"""Arrow's own file format, also called Feather."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from shardkit.dataset.formats.base import Format, PlainWriter
from shardkit.storage.local import writing

if TYPE_CHECKING:
    from pathlib import Path


class ArrowIpc(Format):
    """Files in Arrow's own format."""

    suffix: ClassVar[str] = ".arrow"
    describes_itself: ClassVar[bool] = True

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a file."""
        return _Writer(path, schema)

    def reader(self, columns: pa.Schema) -> Any:
        """What pyarrow reads the files with."""
        return "arrow"

    def count_rows(self, file: Any) -> int:
        """The rows of a file, as its blocks say."""
        import pyarrow.dataset as pads

        return int(pads.IpcFileFormat().make_fragment(file).count_rows())


class _Writer(PlainWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path)
        self._writer = pa.ipc.new_file(self._file, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            self._writer.write_table(table.combine_chunks())

    def _end(self) -> None:
        self._writer.close()
