"""The table of the kinds of storage, by the scheme of their URIs; a folder of this machine has none, or ``file``.

A further kind is a subclass of ``shardkit.storage.base.Folder`` in a module of its own, and a line here; one of another
package is an entry point in the group ``shardkit.storages``, by its scheme. What is registered is called with the URI
of a folder and the `Access` to it, and returns the folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.plugins import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = "memory"
STORAGES: Registry[Callable[..., Any]] = Registry(
    "shardkit.storages",
    {
        "s3": "shardkit.storage.objects:ObjectFolder.of",
        "gs": "shardkit.storage.objects:ObjectFolder.of",
        "az": "shardkit.storage.objects:ObjectFolder.of",
        "abfss": "shardkit.storage.objects:ObjectFolder.of",
        MEMORY: "shardkit.storage.objects:ObjectFolder.of",
    },
    error=PipelineError,
    fits=callable,
    wanted="a callable that takes a URI and an Access",
)
THIS_MACHINE = ("", "file")


def is_in_process(scheme: str) -> bool:
    """Whether only the process that makes a store of that kind can reach it."""
    return scheme == MEMORY


def access_fields(scheme: str) -> tuple[str, ...]:
    """Which fields of an `Access` that a user may set mean anything to a kind of storage."""
    if scheme in THIS_MACHINE:
        return ()
    return ("requester_pays", "anonymous") if scheme == "s3" else ("anonymous",)
