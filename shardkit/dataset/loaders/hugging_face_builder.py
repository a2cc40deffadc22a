"""A builder of `datasets` whose tables are the rows of a run's files: for its cache, or as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.dataset.loaders.rows import Rows


class RunFiles(datasets.ArrowBasedBuilder):  # type: ignore[misc]  # datasets has no types
    """The files of one run, each a shard of the stream."""

    def __init__(self, *, rows: Rows, **options: Any) -> None:
        self._rows = rows
        super().__init__(**options)

    def _info(self) -> Any:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(self._rows.schema))

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        files = list(range(len(self._rows.paths)))
        return [datasets.SplitGenerator(name="train", gen_kwargs={"files": files})]

    def _generate_shards(self, files: list[int]) -> Iterator[str]:
        yield from (self._rows.paths[file] for file in files)

    def _generate_tables(self, files: list[int]) -> Iterator[tuple[Any, pa.Table]]:
        for number, file in enumerate(files):
            pieces = self._rows.pieces(file)
            batches = (batch for piece in pieces for batch in self._rows.batches(piece))
            for count, batch in enumerate(batches):
                yield datasets.builder.Key(number, count), pa.Table.from_batches([batch])
