"""Old snapshots of a dataset's Iceberg tables, and the files that only they need."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.dataset.accounts import is_ours
from shardkit.dataset.iceberg.snapshots import SWITCH_PATIENCE_S, data_files_of, our_snapshots
from shardkit.dataset.iceberg.tables import path_of, tables_of, write_tables
from shardkit.dataset.switch import dataset_lock
from shardkit.storage.base import STATE_DIR
from shardkit.times import interval
from shardkit.units import counted, human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from shardkit.dataset.iceberg.tables import IcebergTable
    from shardkit.dataset.switch_steps import LockedDataset
    from shardkit.storage.base import Entry, Folder


@dataclass(frozen=True)
class ExpiredSnapshots:
    """What goes of the tables: ``expired`` snapshots by table, and the ``files`` and ``bytes`` that only they need."""

    expired: dict[str, int]
    files: int
    bytes: int

    def __bool__(self) -> bool:
        """Whether anything goes."""
        return bool(self.files or any(self.expired.values()))

    def line(self, *, dry_run: bool) -> str:
        """One line about it."""
        size = f"{counted(self.files, 'file')} and {human_bytes(self.bytes)}"
        tables = ", ".join(f"{counted(count, 'snapshot')} of {table}" for table, count in self.expired.items())
        return f"{tables}, and {size} that no other needs, {'would go' if dry_run else 'removed'}."


def expire_snapshots(output: Folder, *, dry_run: bool = False) -> ExpiredSnapshots | None:
    """Expire the snapshots that are older than their table keeps them, and remove what none that stays needs.

    The present snapshot stays, and so do those that have a tag or a branch. Snapshots go first; if this is killed
    before their files are gone, the next time removes them. None if the dataset has no table.

    Raises:
        CatalogError: a table cannot be looked at, and nothing more is removed.
        RunBusy: a run is switching the dataset.
    """
    if not tables_of(output):
        return None
    with dataset_lock(output, patience_s=SWITCH_PATIENCE_S) as dataset:  # so that all files here are some snapshot's
        tables = tables_of(output)
        expired: dict[str, int] = {}
        needed: set[str] = set()
        there = []
        for table in tables:
            with table.reporting(f"The Iceberg table {table.table} of {output.uri} cannot be cleaned."):
                existing = table.load(table.open(output))
                if existing is None:
                    continue
                there.append(table)
                expired[table.table], names = _expire(table, existing, dry_run=dry_run)
                needed |= {path for name in names if (path := path_of(output, name)) is not None}
        going = _not_needed(dataset, needed)
        if not dry_run:
            output.remove_many([entry.key for entry in going], dataset.lock.check)
            for entry in going:
                output.remove_empty_parents(entry.key)
            if there != tables:
                write_tables(there, output)
        return ExpiredSnapshots(expired, len(going), sum(entry.bytes for entry in going))


def _expire(table: IcebergTable, existing: Table, *, dry_run: bool) -> tuple[int, set[str]]:
    """Expire a table's old snapshots; returns how many, and the data files that the others need, by their URIs."""
    old = _old_snapshots(table, existing)
    ids = {snapshot.snapshot_id for snapshot in old}
    if old and not dry_run:
        before = _metadata_files(existing, existing.snapshots())
        existing.maintenance.expire_snapshots().by_ids(sorted(ids)).commit()
        existing.refresh()
        for name in before - _metadata_files(existing, existing.snapshots()):
            existing.io.delete(name)
    staying = [s for s in existing.snapshots() if not (dry_run and s.snapshot_id in ids)]
    return len(old), set(data_files_of(existing, staying))


def _old_snapshots(table: IcebergTable, existing: Table) -> list[Snapshot]:
    """The snapshots that go: neither tagged nor a branch's last one, nor that of the present dataset."""
    keep = interval(table.keep)
    latest = time.time() - keep.total_seconds() if keep is not None else 0.0
    staying = {ref.snapshot_id for ref in existing.refs().values()}
    staying |= {snapshot.snapshot_id for snapshot in list(our_snapshots(existing))[:1]}
    # A snapshot is replaced when the next one is made: it has been the present one until then.
    replaced = _replaced_at(existing)
    return [
        snapshot
        for snapshot in existing.snapshots()
        if snapshot.snapshot_id not in staying
        and replaced.get(snapshot.snapshot_id, snapshot.timestamp_ms) / 1000 < latest
    ]


def _replaced_at(existing: Table) -> dict[int, int]:
    """When each snapshot was replaced by the one that followed it, in milliseconds since 1970."""
    return {s.parent_snapshot_id: s.timestamp_ms for s in existing.snapshots() if s.parent_snapshot_id is not None}


def _metadata_files(existing: Table, snapshots: Iterable[Snapshot]) -> set[str]:
    """The lists of manifests, and the manifests, of some snapshots."""
    names = set()
    for snapshot in snapshots:
        names |= {snapshot.manifest_list, *(manifest.manifest_path for manifest in snapshot.manifests(existing.io))}
    return names


def _not_needed(dataset: LockedDataset, needed: set[str]) -> list[Entry]:
    """The files of earlier switches that neither the dataset nor a snapshot needs."""
    listed = needed | set(dataset.files)
    entries = dataset.output.entries()
    return [e for e in entries if e.key not in listed and not e.key.startswith(f"{STATE_DIR}/") and is_ours(e.key)]
