"""Makes of a manifest what listing the folder itself would give: the objects in the order of their keys.

A list names its files, and says of each what it knows; the store is asked for the rest, for many files side by side.
What lies elsewhere is left out and counted. A report of S3 Inventory stands for a listing, with all its rules: hidden
names and datasets are no input.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError
from shardkit.storage.base import is_remote
from shardkit.storage.list_files import with_datasets
from shardkit.storage.list_rows import META, checked
from shardkit.storage.manifest import open_manifest
from shardkit.storage.object_keys import wanted_keys, without_folders
from shardkit.storage.open import folder
from shardkit.tables.arrays import arrow, numpy, scalar, texts
from shardkit.tables.spill import LISTED, Spill, batches_of, gathered, values_of
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardkit.storage.base import Access, Entry, Folder
    from shardkit.storage.manifest import Manifest
    from shardkit.tables.spill import Piece

FILES_AT_ONCE = max(2, min(8, os.cpu_count() or 1))  # data files of an inventory
ASKED_AT_ONCE = 32  # files whose size or etag a list lacks
MANY_ASKED = 20_000  # which takes longer than a user waits without a word
NAMED = 3
OUTSIDE_HINT = (
    "Give input.uri, a folder that holds all of them; or make it several inputs, input: [...], each with a uri and "
    "with this manifest."
)
MODIFIED = LISTED.field("modified").type


@dataclass
class ListFacts:
    """How a manifest compares with the listing that it stands for.

    It has so many ``rows``, of which ``outside`` name files that lie elsewhere. The store was ``asked`` for what the
    list does not say of some; of these ``missing`` are not there, and ``missing_sample`` names the first.
    """

    manifest: str
    rows: int = 0
    outside: int = 0
    asked: int = 0
    missing: int = 0
    missing_sample: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listed:
    """The objects of a folder, as `Folder.objects` has them, from a manifest; what else that says is in `META`."""

    objects: pa.Table
    facts: ListFacts


def list_from(
    uri: str,
    root: str,
    access: Access,
    *,
    leave_out: Folder,
    need: Sequence[str],
    all_inside: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Listed:
    """List a folder by a manifest.

    Args:
        uri: that of a list, or of an inventory's ``manifest.json``.
        root: the folder whose files are input.
        access: to the folder, and to the manifest.
        leave_out: the folder of the output, which is no input of an inventory.
        need: which of ``etag`` and ``modified`` every object must have, besides its size.
        all_inside: whether a list may name no files elsewhere; an inventory always may.
        say: is told if so many files lack something that asking for it takes long.

    Raises:
        InputError: the manifest is none; or it names a file twice, or none in the folder.
        StorageError: the store cannot be asked.
    """
    manifest = open_manifest(uri, root, access)
    place = folder(manifest.root, access)
    facts = ListFacts(manifest.uri)
    datasets: set[str] = set()
    wanted = wanted_keys(_inside(place, leave_out), datasets) if manifest.of_inventory else None
    spill = Spill(_schema(manifest))
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="shardkit-lists") as pool:
        reads = [pool.submit(_pieces, spill, _Rows(manifest, read(), wanted)) for read in manifest.readers]
        results = [read.result() for read in reads]
    for _, rows, outside in results:
        facts.rows += rows
        facts.outside += outside
    table = spill.sorted_table([piece for pieces, _, _ in results for piece in pieces])
    if datasets:
        table = without_folders(table, datasets)
    _check_some(table, manifest, facts, all_inside=all_inside)
    _check_once(table, manifest.uri)
    if is_remote(place.uri):
        lacking = int(values_of(table, lambda batch: _lacking(batch, need)).sum())
        if lacking > MANY_ASKED:
            say(f"{manifest.uri} does not say how large {lacking:,} files are, or their etags: the store is asked.")
    filled = _filled_in(table, place, need, facts)
    return Listed(with_datasets(filled, datasets), facts)


def _schema(manifest: Manifest) -> pa.Schema:
    return LISTED.append(manifest.schema.field(META)) if META in manifest.schema.names else LISTED


def _inside(place: Folder, other: Folder) -> str:
    """The path of another folder within this one; empty if it is not in this one."""
    within = f"{other.uri}/"
    return within[len(place.uri) + 1 :] if within.startswith(f"{place.uri}/") else ""


class _Rows:
    """The rows of a list that lie in its folder; ``rows`` counts all that were read, ``outside`` the others."""

    def __init__(
        self,
        manifest: Manifest,
        batches: Iterator[pa.RecordBatch],
        wanted: Callable[[pa.StringArray], pa.BooleanArray] | None,
    ) -> None:
        self._manifest = manifest
        self._batches = batches
        self._wanted = wanted
        self.rows = self.outside = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        schema = _schema(self._manifest)
        for batch in self._batches:
            if not self._manifest.of_inventory:
                checked(batch["name"], self._manifest.uri)
            keys = self._manifest.keys(batch["name"])
            self.rows += len(batch)
            self.outside += keys.null_count
            inside = pc.is_valid(keys)
            if self._wanted is not None:
                inside = pc.and_(inside, self._wanted(pc.fill_null(keys, scalar(""))))
            found = pa.RecordBatch.from_arrays([keys, *batch.columns[1:]], schema=schema)
            yield found if inside.true_count == len(found) else found.filter(inside)


def _pieces(spill: Spill, rows: _Rows) -> tuple[list[Piece], int, int]:
    """The pieces of a list's rows, how many rows were read, and how many of them lie elsewhere."""
    pieces = [spill.keep_sorted(batch) for batch in gathered(rows) if len(batch)]
    return pieces, rows.rows, rows.outside


def _check_some(table: pa.Table, manifest: Manifest, facts: ListFacts, *, all_inside: bool) -> None:
    """See that there is input, and that it is all of the list if it has to be.

    Raises:
        InputError: it has not.
    """
    if all_inside and facts.outside and not manifest.of_inventory:
        raise InputError(
            f"{facts.outside:,} of {facts.rows:,} rows of {manifest.uri} name files outside of {manifest.root}.",
            hint=OUTSIDE_HINT,
        )
    if not len(table):
        why = f"none of its {facts.rows:,} rows names a file in {manifest.root}" if facts.rows else "it has no rows"
        raise InputError(f"{manifest.uri} names no input: {why}.", hint="Is input.uri right?")


def _check_once(table: pa.Table, uri: str) -> None:
    """See that each key is there once; the table is in the order of its keys.

    Raises:
        InputError: one is not.
    """
    last = None
    for batch in batches_of(table.select(["key"])):
        keys = batch["key"]
        if not len(keys):
            continue
        again = keys.slice(1).filter(pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1)))
        twice = last if keys[0].as_py() == last else again[0].as_py() if len(again) else None
        if twice is not None:
            raise InputError(f"{uri} names {twice} more than once.", hint="Each file is one row.")
        last = keys[-1].as_py()


def _filled_in(table: pa.Table, place: Folder, need: Sequence[str], facts: ListFacts) -> pa.Table:
    """The table with what its list does not say, from the store.

    Files of this machine are looked at in any case, which costs little. What is not there has no bytes and no etag:
    reading it will fail, and with it its record alone.
    """
    spill = Spill(table.schema)
    kept = []
    remote = is_remote(place.uri)
    with ThreadPoolExecutor(ASKED_AT_ONCE if remote else 1, thread_name_prefix="shardkit-look") as pool:
        for batch in batches_of(table):
            rows = np.flatnonzero(numpy(_lacking(batch, need))) if remote else np.arange(len(batch))
            if not len(rows):
                kept.append(spill.keep(_without_nulls(batch)))
                continue
            keys = batch["key"].take(arrow(rows)).to_pylist()
            entries = list(pool.map(place.look, keys)) if remote else [place.look(key) for key in keys]
            gone = [key for key, entry in zip(keys, entries, strict=True) if entry is None]
            facts.asked += len(keys) if remote else 0
            facts.missing += len(gone)
            facts.missing_sample += gone[: NAMED - len(facts.missing_sample)]
            kept.append(spill.keep(_without_nulls(_with(batch, rows, entries))))
    if facts.missing == len(table):
        raise InputError(
            f"{facts.manifest} names {counted(len(table), 'file')}, and none of them is there: "
            f"{place.uri}/{facts.missing_sample[0]}{', ...' if len(table) > 1 else ''}.",
            hint="Is input.uri right?",
        )
    return spill.table(kept)


def _lacking(batch: pa.RecordBatch, need: Sequence[str]) -> pa.BooleanArray:
    """Which rows lack their size, or what is needed besides."""
    lacking = pc.is_null(batch["bytes"])
    if "etag" in need:
        lacking = pc.or_(lacking, pc.equal(pc.fill_null(batch["etag"], scalar("")), scalar("")))
    if "modified" in need:
        lacking = pc.or_(lacking, pc.is_null(batch["modified"]))
    return lacking


def _with(batch: pa.RecordBatch, rows: np.ndarray, entries: list[Entry | None]) -> pa.RecordBatch:
    """A batch in which some rows are as the store says."""
    mask = np.zeros(len(batch), bool)
    mask[rows] = True
    sizes = np.array([entry.bytes if entry else 0 for entry in entries], np.int64)
    times = np.array([round(entry.modified * 1e6) if entry else 0 for entry in entries], np.int64)
    found = {
        "bytes": arrow(sizes),
        "etag": texts([entry.etag if entry else "" for entry in entries]),
        "modified": arrow(times).cast(pa.timestamp("us")).cast(MODIFIED),
    }
    for name, values in found.items():
        column = pc.replace_with_mask(batch[name], arrow(mask), values)
        batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), column)
    return batch


def _without_nulls(batch: pa.RecordBatch) -> pa.RecordBatch:
    number = batch.schema.get_field_index("etag")
    return batch.set_column(number, batch.schema.field(number), pc.fill_null(batch["etag"], scalar("")))
