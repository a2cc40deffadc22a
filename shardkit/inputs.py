"""The objects of a record, as files of this machine while its function runs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.storage import LocalFolder, folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.storage import Folder


def open_inputs(uri: str) -> LocalInputs | RemoteInputs:
    """The way to the objects under ``uri``."""
    source = folder(uri)
    return LocalInputs(uri) if isinstance(source, LocalFolder) else RemoteInputs(source)


class LocalInputs:
    """Objects that are files of this machine already."""

    def __init__(self, root: str) -> None:
        self._root = root

    def fetch(self, objects: Sequence[str], etags: Sequence[str] | None) -> str:
        """The folder that the objects' keys count from."""
        return self._root

    def release(self) -> None:
        """The files stay where they are."""


class RemoteInputs:
    """Objects of a store: fetched side by side before a record's turn, and removed after it."""

    def __init__(self, source: Folder) -> None:
        self._source = source
        self._scratch = tempfile.TemporaryDirectory(prefix="shardkit-input-")
        self._root = Path(self._scratch.name) / "record"

    def fetch(self, objects: Sequence[str], etags: Sequence[str] | None) -> str:
        """Download the objects, under their own keys; returns the folder that these count from.

        Raises:
            FileNotFoundError: an object is gone.
            ObjectChanged: one is not what it was when it was listed.
            StorageError: the store cannot be reached.
        """
        from concurrent.futures import ThreadPoolExecutor

        known = etags if etags is not None else [None] * len(objects)

        def get(key: str, etag: str | None) -> None:
            self._source.get_file(key, self._root / key, etag=etag)

        if len(objects) == 1:
            get(objects[0], known[0])
        else:
            with ThreadPoolExecutor(min(8, len(objects))) as pool:
                list(pool.map(get, objects, known))
        return str(self._root)

    def release(self) -> None:
        """Remove what was fetched last."""
        shutil.rmtree(self._root, ignore_errors=True)
