"""The rows of a run as a dataset of PyTorch, which deals them to the workers of all ranks."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pt
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from shardkit.dataset.loaders.order import PLACES, Cursor, Order, Share
from shardkit.dataset.loaders.tensors import are_numbers, as_tensors, no_nulls
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.dataset.loaders.rows import Rows

ROWS_AT_ONCE = 256  # that are made before the first of them is given, without a batch_size


class TorchRows(IterableDataset):  # type: ignore[misc]  # torch is not there where types are checked
    """The rows of a run: dicts by column or, with a batch size, dicts of whole columns.

    It can say in ``state_dict`` where it is, and go on from there: `torchdata.stateful_dataloader.StatefulDataLoader`
    asks each worker's.
    """

    def __init__(self, rows: Rows, *, batch_size: int | None, shuffle: bool, seed: int, even: bool) -> None:
        if batch_size is not None and batch_size < 1:
            raise PipelineError(f"batch_size: expected a number of rows, not {batch_size}.")
        for field in rows.schema:
            fraction = pt.is_floating(field.type)
            if are_numbers(field.type) and not fraction and field.name in rows.columns_with_nulls:
                raise no_nulls(field.name)
        self._rows = rows
        self._batch_size = batch_size
        self._settings: dict[str, Any] = {"run": rows.run_id, "shuffle": shuffle, "seed": seed, "even": even}
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # which workers that stay see change
        self._ranks: tuple[int, int] | None = None
        self._done = 0
        self._loaded: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ranks": self._rank_of_ranks()}  # a worker that is a new program may not know

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes, before its first row is asked for: each has an order of its own, if it is shuffled."""
        self._epoch[0] = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where this worker is."""
        at = {"epoch": int(self._epoch[0]), "rows": self._done, "share": _named(self._share())}
        return {**at, **(self._loaded or {}), **self._settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there the next time that rows are asked for.

        Raises:
            PipelineError: it is of another run, or of another order.
        """
        other = next((name for name, value in self._settings.items() if state[name] != value), None)
        if other is not None:
            raise PipelineError(
                f"The state is of a dataset with {other} {state[other]!r}, not {self._settings[other]!r}."
            )
        self._loaded = {name: state[name] for name in ("epoch", "rows", "share")}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        share, loaded = self._share(), self._loaded
        self._done, self._loaded = 0, None
        if loaded is not None:
            if loaded["share"] != _named(share):
                raise PipelineError(
                    f"The state is of {loaded['share']}, and this is {_named(share)}.",
                    hint="Go on with as many ranks and workers as there were.",
                )
            self.set_epoch(loaded["epoch"])
            self._done = loaded["rows"]
        for table in self._tables(share):
            columns = {name: as_tensors(_together(table[name]), name) for name in table.column_names}
            if self._batch_size is not None:
                self._done += len(table)
                yield columns
            else:
                for values in zip(*map(_one_by_one, columns.values()), strict=True):
                    self._done += 1
                    yield dict(zip(columns, values, strict=True))

    def _tables(self, share: Share) -> Iterator[pa.Table]:
        """The rows from the present place on, so many as make a batch."""
        size = self._batch_size or ROWS_AT_ONCE
        left = self._rows.schema.empty_table()
        for table in self._windows(share):
            left = pa.concat_tables([left, table]) if len(left) else table
            while len(left) >= size:
                yield left.slice(0, size)
                left = left.slice(size)
        if len(left):
            yield left

    def _windows(self, share: Share) -> Iterator[pa.Table]:
        settings = self._settings
        order = Order(self._rows, settings["shuffle"], settings["seed"], int(self._epoch[0]))
        cursors = [Cursor(self._rows) for _ in range(PLACES)]
        skipped = self._done
        for number, steps in enumerate(order.windows(share, even=settings["even"])):
            count = sum(step.end - step.begin for step in steps if step is not None)
            if count <= skipped:
                skipped -= count
                continue
            read = [cursor.read(step) for cursor, step in zip(cursors, steps, strict=False) if step is not None]
            batches = itertools.chain.from_iterable(read)
            table = pa.Table.from_batches(batches, self._rows.schema)
            mixed = order.mixed(number, count, share)
            yield table.slice(skipped) if mixed is None else table.take(mixed.slice(skipped))
            skipped = 0

    def _share(self) -> Share:
        rank, ranks = self._rank_of_ranks()
        worker = get_worker_info()
        return Share(rank, ranks) if worker is None else Share(rank, ranks, worker.id, worker.num_workers)

    def _rank_of_ranks(self) -> tuple[int, int]:
        if self._ranks is not None:
            return self._ranks
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _named(share: Share) -> str:
    return f"worker {share.worker} of {share.workers} in rank {share.rank} of {share.ranks}"


def _together(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _one_by_one(values: Any) -> Any:
    return values.unbind(0) if isinstance(values, torch.Tensor) else values
