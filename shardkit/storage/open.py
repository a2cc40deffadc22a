"""The folder that a URI names, in whatever kind of store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shardkit.storage.base import Access, local_root, scheme_of
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.schemes import STORAGES, THIS_MACHINE

if TYPE_CHECKING:
    from shardkit.storage.base import Folder


def folder(uri: str | os.PathLike[str], access: Access | None = None) -> Folder:
    """The folder that ``uri`` names: a path, ``file://``, ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.

    ``memory://name`` is a store of this process alone. Other packages may add kinds of their own.

    Raises:
        PipelineError: there is no storage of that kind, or there are no credentials for it.
    """
    scheme = scheme_of(uri)
    opener = STORAGES.find(scheme) if scheme not in THIS_MACHINE else None
    if opener is None:
        return LocalFolder(local_root(uri))
    opened: Folder = opener(os.fspath(uri), access or Access())
    return opened
