"""Selects the objects under a prefix that are input, by their keys."""

from __future__ import annotations

import bisect
import functools
import re
from typing import TYPE_CHECKING

from shardkit.storage.base import STATE_DIR
from shardkit.tables.spill import batches_of, filtered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pyarrow as pa

HIDDEN = r"(^|/)[._]"  # names that are not input


def without_bytes(table: pa.Table) -> list[str]:
    """The keys of the objects of a listing that have no bytes."""
    import pyarrow.compute as pc

    from shardkit.tables.arrays import scalar

    nothing = scalar(0)
    batches = (batch["key"].filter(pc.equal(batch["bytes"], nothing)) for batch in batches_of(table))
    return [key for keys in batches for key in keys.to_pylist()]


def _dataset_folders(keys: pa.StringArray) -> list[str]:
    """The folders whose state is among some keys."""
    import pyarrow.compute as pc

    states = keys.filter(pc.match_substring(keys, f"/{STATE_DIR}/"))
    folders = pc.replace_substring_regex(states, f"(?s)/{STATE_DIR}/.*", "").unique().to_pylist()
    return [folder for folder in folders if not re.search(HIDDEN, folder)]


def without_folders(table: pa.Table, folders: Iterable[str]) -> pa.Table:
    """A table in key order without what lies in some folders."""
    import numpy as np

    keys, wanted = table["key"], np.ones(len(table), bool)
    at = functools.partial(bisect.bisect_left, range(len(table)), key=lambda row: keys[row].as_py())
    for folder in folders:
        wanted[at(f"{folder}/") : at(f"{folder}0")] = False  # what comes next after a slash
    return filtered(table, wanted)


def wanted_keys(inside: str, datasets: set[str]) -> Callable[[pa.StringArray], pa.BooleanArray]:
    """Tells which keys are input: not those of hidden names, nor those that begin with ``inside``, if that is given.

    Folders that keys show to be datasets are added to ``datasets``, but for this one and the one that is left out.
    """
    import pyarrow.compute as pc

    def wanted(keys: pa.StringArray) -> pa.BooleanArray:
        shown = pc.invert(pc.match_substring_regex(keys, HIDDEN))
        if shown.true_count < len(keys):
            datasets.update(folder for folder in _dataset_folders(keys) if f"{folder}/" != inside)
        return pc.and_not(shown, pc.starts_with(keys, inside)) if inside else shown

    return wanted
