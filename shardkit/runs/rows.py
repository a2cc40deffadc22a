"""The rows that a run has made, as users read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from shardkit.dataset.checks import result_on_disk

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import pyarrow.dataset as pads

    from shardkit.runfolder.folder import RunFolder


class RunRows:
    """What of a run is about its dataset."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def dataset(self) -> pads.Dataset:
        """The dataset's files, exactly those that the run wrote.

        Raises:
            RunNotFound: the run has no dataset yet, or files of it are gone.
            RunReplaced: a later run has replaced it.
        """
        from shardkit.dataset.read import open_dataset

        return open_dataset(self.folder.output, result_on_disk(self.folder))

    def files(self) -> list[str]:
        """The paths or URIs of the dataset's files, in order: what loaders of training data take.

        Raises:
            RunNotFound, RunReplaced: as for `dataset`.
        """
        return [f"{self.folder.output.uri}/{file['path']}" for file in result_on_disk(self.folder)["files"]]

    def hf(self, *, columns: Sequence[str] | None = None, streaming: bool = False) -> Any:
        """Open the dataset as a `datasets.Dataset` of Hugging Face, with the columns in the names of folders.

        Shards of format ``hf`` on this machine are mapped into memory where they lie. Other files are converted once,
        into the cache of `datasets`; with ``streaming`` they are not, and it is an `IterableDataset`, of which each
        file is a shard. ``columns`` are those to read, by default all.

        Raises:
            RunNotFound, RunReplaced: as for `dataset`.
            PipelineError: `datasets` is not installed, or cannot hold a column; or there is no column of a name.
            StorageError: a file cannot be read.
        """
        from shardkit.dataset.loaders.hugging_face import open_with_datasets

        return open_with_datasets(self.folder.output, result_on_disk(self.folder), columns, streaming=streaming)

    def sql(
        self, query: str, *, using: Literal["athena", "duckdb"] | None = None, as_of: str | None = None
    ) -> pd.DataFrame:
        """Ask SQL of the present dataset, whose name in the query is the pipeline's, or ``dataset``.

        By default Athena is asked if the dataset is in a Glue catalogue, else DuckDB on this machine; or say ``using``.
        If the dataset is in an Iceberg table, ``as_of`` is a run: it is read as that run has left it.

        Raises:
            QueryError: the query cannot be answered.
            RunNotFound: there is no snapshot of the run ``as_of``.
            PipelineError: DuckDB, or for Athena awswrangler, is not installed.
        """
        from shardkit.dataset.query import read_sql

        return read_sql(query, self.folder, using=using, as_of=as_of)
