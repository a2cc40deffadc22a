"""The rows that a run has made, as users read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from shardkit.dataset.checks import result_on_disk
from shardkit.dataset.current import current_result
from shardkit.errors import PipelineError, RunNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import pyarrow.dataset as pads

    from shardkit.runfolder.document_types import Result
    from shardkit.runfolder.folder import RunFolder


class RunRows:
    """What of a run is about its dataset."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def dataset(self, *, as_of: str | None = None) -> pads.Dataset:
        """The dataset's files, exactly those that the run wrote.

        If the dataset is in an Iceberg table, ``as_of`` is any run: it is the dataset as that run has left it.

        Raises:
            RunNotFound: the run has no dataset yet, or files of it are gone; or there is no snapshot of ``as_of``.
            RunReplaced: a later run has replaced it.
        """
        from shardkit.dataset.read import open_dataset

        result = result_on_disk(self.folder) if as_of is None else self._as_of(as_of)
        return open_dataset(self.folder.output, result)

    def _as_of(self, run_id: str) -> Result:
        from shardkit.dataset.iceberg.history import result_as_of

        present = current_result(self.folder.output)
        if present is None:
            raise RunNotFound(f"{self.folder.output.uri} holds no dataset.", hint="Run the pipeline first.")
        return result_as_of(self.folder.output, run_id, present)

    def snapshots(self) -> pd.DataFrame:
        """The snapshots of the dataset's Iceberg table, the newest first, each a state that ``as_of`` can name.

        Columns: made (UTC), run_id, rows, files, snapshot_id, table, and is_present.

        Raises:
            PipelineError: the dataset is in no Iceberg table.
            CatalogError: the table cannot be looked at.
        """
        import pandas as pd

        from shardkit.dataset.iceberg.history import COLUMNS, snapshots_of

        rows = [[getattr(one, name) for name in COLUMNS] for one in snapshots_of(self.folder.output)]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=COLUMNS)
        return frame

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

    def torch(
        self,
        *,
        columns: Sequence[str] | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        even: bool = False,
    ) -> Any:
        """Open the dataset as a `torch.utils.data.IterableDataset`, which deals its rows to workers and ranks.

        The workers of all ranks get each row exactly once an epoch, and all as many rows, up to one. A row is a dict;
        with ``batch_size`` the dataset yields batches, made much faster, and the DataLoader has to have
        ``batch_size=None``. Numbers and lists of them are tensors, all else is Python's.

        Args:
            columns: those to read, by default all.
            batch_size: rows in a batch; the last one of a worker may have fewer.
            shuffle: another order of files and row groups in each epoch, of which some at a time are mixed row by row.
                Call ``set_epoch`` before each epoch.
            seed: of that order.
            even: leave out as many rows, fewer than there are ranks, that all ranks get as many, and as many batches.

        Raises:
            RunNotFound, RunReplaced: as for `dataset`.
            PipelineError: PyTorch is not installed, there is no column of a name, or the format has its own loader.
        """
        try:
            from shardkit.dataset.loaders.torch_rows import TorchRows
        except ImportError as error:
            if error.name != "torch":
                raise
            raise PipelineError("run.torch() needs PyTorch, which is not installed.", hint="See pytorch.org.") from None
        from shardkit.dataset.loaders.rows import Rows

        rows = Rows(self.folder.output, result_on_disk(self.folder), columns)
        return TorchRows(rows, batch_size=batch_size, shuffle=shuffle, seed=seed, even=even)

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
