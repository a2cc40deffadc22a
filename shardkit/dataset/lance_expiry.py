"""Old versions of a Lance dataset, and the files that only they need."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from shardkit.dataset.current import current_result
from shardkit.dataset.formats.lance_versions import Place
from shardkit.dataset.iceberg.expiry import ExpiredSnapshots
from shardkit.dataset.index_file import versioned_folder
from shardkit.dataset.switch import SWITCH_PATIENCE_S, dataset_lock

if TYPE_CHECKING:
    from shardkit.storage.base import Folder

KEPT = timedelta(days=5)  # how long a version stays that another has replaced
NAME = "the Lance dataset"


def expire_versions(output: Folder, *, dry_run: bool = False) -> ExpiredSnapshots | None:
    """Let the versions go that were replaced long ago and have no tag, and the files that none that stays needs.

    None if the dataset has no versions.

    Raises:
        RunBusy: a run is switching the dataset.
        StorageError: the versions cannot be read, or a file not removed.
    """
    if not (folder := versioned_folder(current_result(output))):
        return None
    place = Place(output)
    with dataset_lock(output, patience_s=SWITCH_PATIENCE_S), place.reporting():
        dataset = place.open()
        if dataset is None:
            return None
        versions: list[dict[str, Any]] = sorted(dataset.versions(), key=lambda one: int(one["version"]))
        tagged = {tag["version"] for tag in dataset.tags.list().values()}
        old = [
            one["version"]
            for one, later in pairwise(versions)
            if one["version"] not in tagged and datetime.now(later["timestamp"].tzinfo) - later["timestamp"] > KEPT
        ]
        staying = {one["version"] for one in versions} - set(old)
        files = _files(dataset, set(old)) - _files(dataset, staying)
        sizes = [output.size(f"{folder}{name}") or 0 for name in sorted(files)]
        if old and not dry_run:
            dataset.cleanup_old_versions(versions=old, error_if_tagged_old_versions=False)
        return ExpiredSnapshots({NAME: len(old)}, len(files), sum(sizes))


def _files(dataset: Any, versions: set[int]) -> set[str]:
    """The data files of some versions."""
    fragments = [f for version in versions for f in dataset.checkout_version(version).get_fragments()]
    return {file.path for fragment in fragments for file in fragment.data_files()}
