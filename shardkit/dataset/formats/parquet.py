"""Parquet, which is also the format of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from shardkit.dataset.formats.base import Format, PlainWriter
from shardkit.storage.local import writing
from shardkit.tables.rowgroups import RowGroupsFile, repetitive

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow.parquet as pq

    from shardkit.tables.rowgroups import Stretch


class Parquet(Format):
    """Parquet files."""

    suffix: ClassVar[str] = ".parquet"
    describes_itself: ClassVar[bool] = True
    like_parts: ClassVar[bool] = True
    in_catalogs: ClassVar[bool] = True

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a file."""
        return _Writer(path, schema, threads=threads)

    def reader(self, columns: pa.Schema) -> Any:
        """What pyarrow reads the files with."""
        return "parquet"

    def count_rows(self, file: Any) -> int:
        """The rows of a file, as its footer says."""
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_rows)

    def counts(self, file: Any) -> tuple[int, dict[str, int] | None]:
        """The rows, and the nulls of the columns that are not nested, as the statistics in the footer say."""
        import pyarrow.parquet as pq

        footer = pq.read_metadata(file)
        return int(footer.num_rows), _nulls(footer)

    def bytes_of_rows(self, path: Path) -> int:
        """The bytes of the columns: the footer does not grow with the rows."""
        import pyarrow.parquet as pq

        footer = pq.read_metadata(path)
        return sum(
            footer.row_group(group).column(column).total_compressed_size
            for group in range(footer.num_row_groups)
            for column in range(footer.num_columns)
        )


def _nulls(footer: pq.FileMetaData) -> dict[str, int] | None:
    nulls: dict[str, int] = {}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            statistics, name = chunk.statistics, chunk.path_in_schema
            if "." in name:
                continue
            if statistics is None or not statistics.has_null_count:
                return None
            if statistics.null_count:
                nulls[name] = nulls.get(name, 0) + statistics.null_count
    return nulls


class _Writer(PlainWriter):
    def __init__(self, path: Path, schema: pa.Schema, *, threads: int) -> None:
        self._path = path
        self._file = pa.OSFile(str(path), "wb")
        self._groups = RowGroupsFile(self._file, schema, threads=threads)
        self._use_dictionary: list[str] | None = None

    def write(self, table: pa.Table) -> None:
        if self._use_dictionary is None:
            self._use_dictionary = repetitive(table)
        with writing(self._path):
            self._groups.encode(table, use_dictionary=self._use_dictionary)

    def copy(self, stretch: Stretch) -> None:
        with writing(self._path):
            self._groups.copy(stretch)

    def _end(self) -> None:
        self._groups.close()
