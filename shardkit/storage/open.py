"""The folder that a URI names, in whatever kind of store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shardkit.storage.base import Access, is_remote, local_root
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from shardkit.storage.base import Folder


def folder(uri: str | os.PathLike[str], access: Access | None = None) -> Folder:
    """The folder that ``uri`` names: a path, ``file://``, ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.

    ``memory://name`` is a store of this process alone.

    Raises:
        PipelineError: no storage of that kind is known, or there are no credentials for it.
    """
    if is_remote(uri):
        from shardkit.storage.objects import ObjectFolder

        return ObjectFolder.of(os.fspath(uri), access or Access())
    return LocalFolder(local_root(uri))
