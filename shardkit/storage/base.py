"""One face for the places where files lie: folders of this machine, and prefixes of object stores.

A folder is rooted at a URI; keys are relative to it, with ``/`` between their parts. Files appear under their key
whole or not at all.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from shardkit.checksums import Sums, verified
from shardkit.errors import PipelineError
from shardkit.storage.schemes import STORAGES, THIS_MACHINE

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from shardkit.storage.locks import Held

State = dict[str, str]  # equal as long as a file is unchanged; empty: it is not there
STATE_DIR = "_shardkit"  # in the folder of a dataset: what shardkit itself keeps there
ACCESS_FIELDS = ("requester_pays", "anonymous")  # of a pipeline's input: how it is read, not what it is


def scheme_of(uri: str | os.PathLike[str]) -> str:
    """The kind of storage that ``uri`` names: what stands before ``://``; nothing for a path."""
    return urlsplit(text).scheme if "://" in (text := os.fspath(uri)) else ""


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether ``uri`` names an object store, or another kind of storage, not a folder of this machine."""
    return (scheme := scheme_of(uri)) not in THIS_MACHINE and scheme in STORAGES


def local_root(uri: str | os.PathLike[str]) -> Path:
    """The folder that ``uri`` (a path or a ``file://`` URI) names, absolute.

    Raises:
        PipelineError: the URI names another kind of storage.
    """
    text = os.fspath(uri)
    parts = urlsplit(text)
    if parts.scheme == "file":
        text = unquote(parts.path)
    elif "://" in text:
        raise PipelineError(
            f"{text}: shardkit knows no storage of kind {parts.scheme}:// here{STORAGES.near(parts.scheme) or '.'}",
            hint="Give a path, a file:// URI, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.",
        )
    return Path(os.path.abspath(os.path.expanduser(text)))


def absolute_uri(uri: str | os.PathLike[str]) -> str:
    """``uri`` as another process may read it: an absolute path, or the URI without a slash at its end."""
    return os.fspath(uri).rstrip("/") if is_remote(uri) else str(local_root(uri))


@dataclass(frozen=True)
class Access:
    """How to reach an object store, where that differs from the default of its own tools.

    ``session`` is a boto3 session, for S3 alone. ``kms_key`` encrypts what is written to S3; without it
    the bucket's own rule holds. ``requester_pays`` means that the reader is billed, and ``anonymous`` that no request
    is signed.
    ``region`` and ``endpoint`` (a URL) are those of a bucket of S3, if another process has looked them up already;
    ``virtual`` says that the URL is the bucket's own, its name in the host's.
    """

    session: Any = None
    kms_key: str | None = None
    requester_pays: bool = False
    anonymous: bool = False
    region: str | None = None
    endpoint: str | None = None
    virtual: bool = False


@dataclass(frozen=True)
class Entry:
    """A file of a folder: its ``key``, size in bytes, etag, and the time of its last change in seconds since 1970."""

    key: str
    bytes: int
    etag: str
    modified: float


@dataclass(frozen=True)
class File:
    """One file, in whatever kind of folder; ``sums`` are the checksums of its stretches, if there are any."""

    folder: Folder
    key: str
    sums: Sums = dataclasses.field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.folder.uri}/{self.key}"

    def open(self) -> Any:
        """The file as Arrow reads it.

        Raises:
            OSError: it is not there, or cannot be read.
            Damaged: it is not as it was written.
        """
        opened = self.folder.open(self.key)
        return verified(opened, self.sums, str(self)) if self.sums else opened


class Folder(ABC):
    """Files under one root; has no state but what it needs to reach them."""

    uri: str

    @property
    def path(self) -> Path:
        """Where the folder lies on this machine.

        Raises:
            PipelineError: it does not.
        """
        raise PipelineError(f"{self.uri} is no folder of this machine.", hint="Use its URI instead.")

    @abstractmethod
    def child(self, name: str) -> Folder:
        """The folder of that name in this one."""

    def encrypted(self, kms_key: str | None) -> Folder:
        """The same folder, which encrypts what is written with that key if it can."""
        return self

    @abstractmethod
    def read(self, key: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read.
        """

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """The content of several files."""
        return [self.read(key) for key in keys]

    def read_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        """The bytes of a file from ``start`` up to ``end``."""
        return self.read(key)[start:end]

    def read_unchanged(self, key: str, start: int, end: int, *, etag: str | None) -> bytes | memoryview:
        """The same bytes of a file that must still have that etag, if one is given and the kind of storage has them.

        Raises:
            FileNotFoundError: there is none.
            ObjectChanged: it has another etag by now.
        """
        return self.read_range(key, start, end)

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write a file atomically and durably, replacing what was there.

        Raises:
            StorageError: it could not be written.
        """

    @abstractmethod
    def state(self, key: str) -> State:
        """The state of a file: equal as long as the file is unchanged."""

    @abstractmethod
    def read_state(self, key: str) -> tuple[bytes | None, State]:
        """A file's content, if it is there, and its state.

        Raises:
            StorageError: it cannot be read.
        """

    @abstractmethod
    def write_if(self, key: str, data: bytes, state: State) -> State | None:
        """Write a file as `write` does, if it is still in that state; its new state, or None if it is not.

        A file that holds ``data`` already counts as written: the answer to an earlier request may have been lost.

        Raises:
            StorageError: it could not be written.
        """

    @abstractmethod
    def size(self, key: str) -> int | None:
        """A file's size in bytes; None if it is not there."""

    def look(self, key: str) -> Entry | None:
        """A file as a listing has it; None if it is not there.

        Raises:
            StorageError: the store cannot be asked.
        """
        size = self.size(key)
        return None if size is None else Entry(key, size, "-".join(self.state(key).values()), 0.0)

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        return self.size(key) is not None

    @abstractmethod
    def entries(self, prefix: str = "") -> list[Entry]:
        """The files in the folder ``prefix`` and below, in key order; none where there is no such folder."""

    @abstractmethod
    def children(self, key: str) -> list[str]:
        """The names of the folders in the folder ``key``."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def remove_all(self, key: str) -> None:
        """Remove the folder ``key`` and all that it holds, if it is there."""

    @abstractmethod
    def remove_many(self, keys: Sequence[str], before: Callable[[], object]) -> None:
        """Remove files, those that are there; ``before`` is called before each step, and ends it by an error."""

    @abstractmethod
    def remove_remains(self) -> None:
        """Remove what no listing shows: empty folders, and what a process left that was killed while it wrote."""

    @abstractmethod
    def remove_empty_parents(self, key: str) -> None:
        """Remove the folders that the removed file ``key`` leaves empty."""

    @abstractmethod
    def begin(self, key: str) -> Path:
        """Where on this machine to write what will be the file ``key``; `finish` puts it there."""

    @abstractmethod
    def finish(self, key: str, path: Path) -> None:
        """Make ``path``, which `begin` gave and which is written and synced, the file ``key``."""

    @abstractmethod
    def copy_to(self, source: str, target: File) -> None:
        """Make the file ``source`` of this folder appear as ``target`` too; both lie in the same kind of store."""

    @abstractmethod
    def put_file(self, path: Path, key: str) -> None:
        """Copy a file of this machine to ``key``."""

    @abstractmethod
    def get_file(self, key: str, path: Path, *, etag: str | None = None, size: int | None = None) -> None:
        """Copy the file ``key`` to ``path`` of this machine; ``etag`` is what it must still have.

        With its ``size`` in bytes, a large file comes in several parts at once.

        Raises:
            FileNotFoundError: there is none.
            ObjectChanged: it has another etag by now.
        """

    @abstractmethod
    def open(self, key: str) -> Any:
        """The file as Arrow reads it."""

    @abstractmethod
    def arrow(self) -> tuple[Any, str]:
        """An Arrow file system to read with (None: this machine's), and the path that stands for the folder in it."""

    @abstractmethod
    def objects(self, *, leave_out: Folder | None = None) -> pa.Table:
        """The objects of the folder as input, in key order: ``key``, ``bytes``, ``etag`` and ``modified``.

        Names that start with ``_`` or ``.`` are no input; neither is what lies under ``leave_out``.

        Raises:
            InputError: the folder is not there or cannot be listed.
        """

    @abstractmethod
    def lock(self, key: str, busy: str, *, patience_s: float = 0.0) -> contextlib.AbstractContextManager[Held]:
        """Keep other processes from what the lock ``key`` stands for; wait ``patience_s`` for one that holds it.

        It yields the lock, which can be asked whether it is still held.

        Raises:
            RunBusy: another process holds it; ``busy`` says so.
        """

    @abstractmethod
    def is_locked(self, key: str) -> bool:
        """Whether a process holds the lock ``key`` now."""
