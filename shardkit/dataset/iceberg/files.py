"""Files of a dataset as the data files of an Iceberg table: what a manifest says of them is read from their footers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.dataset.iceberg.tables import uri_of
from shardkit.dataset.read import FOOTERS_AT_ONCE
from shardkit.dataset.writer import NULL_PARTITION
from shardkit.storage.base import File

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyiceberg.manifest import DataFile
    from pyiceberg.table.metadata import TableMetadata

    from shardkit.runfolder.document_types import ResultFile
    from shardkit.storage.base import Folder


def data_files(
    output: Folder, files: Sequence[ResultFile], metadata: TableMetadata, partitions: pa.Schema
) -> list[DataFile]:
    """The files as data files; ``partitions`` are the columns in their folders' names, as the table has them."""
    describing = _Describing(output, metadata, partitions)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE, thread_name_prefix="shardkit-footers") as pool:  # each is a request or two
        return list(pool.map(describing.data_file, files))


class _Describing:
    """Describes files of one table."""

    def __init__(self, output: Folder, metadata: TableMetadata, partitions: pa.Schema) -> None:
        from pyiceberg.io.pyarrow import compute_statistics_plan, parquet_path_to_id_mapping

        schema = metadata.schema()
        self._output, self._partitions = output, partitions
        self._spec_id = metadata.default_spec_id
        self._plan = compute_statistics_plan(schema, metadata.properties)
        self._ids = parquet_path_to_id_mapping(schema)

    def data_file(self, file: ResultFile) -> DataFile:
        from pyiceberg.io.pyarrow import data_file_statistics_from_parquet_metadata
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

        with File(self._output, file["path"]).open() as opened:
            footer = pq.read_metadata(opened)
        statistics = data_file_statistics_from_parquet_metadata(footer, self._plan, self._ids)
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=uri_of(self._output, file["path"]),
            file_format=FileFormat.PARQUET,
            partition=self._partition(file["path"]),
            file_size_in_bytes=file["bytes"],
            spec_id=self._spec_id,
            sort_order_id=None,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )

    def _partition(self, path: str) -> Any:
        """The values in the names of a file's folders. The files themselves do not have these columns."""
        from pyiceberg.typedef import Record

        steps = path.split("/")[:-1]
        texts = [unquote(step.partition("=")[2]) for step in steps]
        kinds = [field.type for field in self._partitions]
        return Record(*(_value(text, kind) for text, kind in zip(texts, kinds, strict=True)))


def _value(text: str, kind: pa.DataType) -> Any:
    """The value that a folder is named after; a date as the number of its day, which is how manifests have it."""
    if text == NULL_PARTITION:
        return None
    value = pa.scalar(text).cast(kind)
    return value.cast(pa.int32()).as_py() if pa.types.is_date32(kind) else value.as_py()
