"""Each pass alone, on plain folders."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shardkit.dataset.accounts import Account
from shardkit.dataset.checks import check_owner
from shardkit.dataset.merge import write_merged
from shardkit.dataset.next_state import switching
from shardkit.dataset.part_folders import check_inputs, ledgers_of, noted_of, parquet_files
from shardkit.dataset.source import read_source
from shardkit.errors import NothingMade
from shardkit.hints import Hint
from shardkit.runfolder.attempt import Attempt
from shardkit.runfolder.display import make_progress
from shardkit.runfolder.find import run_folder
from shardkit.runfolder.meters import RowMeter
from shardkit.runfolder.names import WHOLE
from shardkit.runs.handle import Run, naming
from shardkit.runs.start import start
from shardkit.spec.spec import Spec
from shardkit.storage.base import File
from shardkit.storage.open import folder as folder_at
from shardkit.tables.arrays import arrow
from shardkit.times import new_run_id, now
from shardkit.units import counted

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from shardkit.dataset.merge import Merge


def preprocess(function: str, group: str | os.PathLike[str], output: str | os.PathLike[str], **fields: Any) -> Run:
    """Pass 1 alone: the files of one folder to parts, which lie in ``output`` as plain Parquet files.

    Args:
        function: ``module:callable``.
        group: the folder with the files.
        output: the folder of the parts; its ``_shardkit`` folder has all about the run.
        fields: any other field of Pipeline, and ``run_id`` and ``quiet``.

    Raises:
        PipelineError, RunFailed, RunInterrupted: as for `shardkit.run`.
    """
    run_id, quiet = fields.pop("run_id", None), fields.pop("quiet", False)
    return start(Spec.flat(function, group, output, **fields), run_id=run_id, quiet=quiet, merge=False)


def combine_folders(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    merge: Merge,
    *,
    name: str = "pass2",
    quiet: bool = False,
) -> Run:
    """Pass 2 alone: the Parquet files of some folders, in order of their names, to one dataset.

    Args:
        inputs: folders, for instance those that pass 1 wrote. If one holds runs, the latest must be finished.
        output: the folder of the dataset.
        merge: what to make of the parts.
        name: only a pipeline of the same name may later replace the dataset.
        quiet: show no progress.

    Raises:
        InputError: an input holds no Parquet files, or its run is not finished.
        SchemaConflict, CombineError, StorageError: as for a run.
    """
    target = folder_at(output)
    check_owner(target, name)
    roots = [folder_at(place) for place in inputs]
    files_and_sizes = [item for root in roots for item in parquet_files(root)]
    parts = [part for part, _ in files_and_sizes]
    noted = {File(root, path): rows for root in roots for path, rows in noted_of(root).items()}
    folder = run_folder(target, new_run_id())
    attempt = Attempt(folder, make_progress(quiet=quiet), begun=time.monotonic(), command="pass2")
    no_records = pa.table({name: arrow(np.zeros(0, np.int64)) for name in ("key", "shard", "chunk", "bytes")})
    with naming(Run(folder)), folder.lock(new=True) as held, attempt.holding(held):
        folder.write_plan({"created": now(), "merge_of": [root.uri for root in roots]}, no_records, None)
        with switching(folder, attempt, name=name) as build:
            source = read_source(parts, schema=merge.schema, widen_ints=merge.widen_ints)
            check_inputs(noted, dict(zip(parts, (rows for rows, _ in source.sizes), strict=True)))
            build.accounts[WHOLE] = Account(None if merge.combine is not None else source.num_rows, None)
            with attempt.pass2(RowMeter(source.num_rows, lambda: sum(source.read))):
                files, schema = write_merged(build.staging, source, merge, token=build.token, threads=None)
                build.add(WHOLE, files, [], schema)
            size = sum(size for _, size in files_and_sizes)
            build.describe(merge.layout, records=ledgers_of(roots), bytes_in=size)
            if not (build.result["rows"] or merge.allow_empty):
                raise NothingMade(
                    f"{counted(len(roots), 'folder')} of parts gave no row, so there is nothing to make a dataset of; "
                    "what was there stays.",
                    hint=Hint(
                        "If there may be no row, pass a merge with allow_empty=True.",
                        "If there may be no row, add --allow-empty.",
                    ),
                )
    return Run(folder)
