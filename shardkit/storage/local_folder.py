"""Folders of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from dataclasses import dataclass
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from shardkit.errors import ObjectChanged, StorageError
from shardkit.storage.base import Entry, File, Folder, State
from shardkit.storage.list_files import list_files
from shardkit.storage.local import copy_file, create_bytes, link_file, write_bytes, writing
from shardkit.storage.locks import FileLock, is_file_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from shardkit.storage.locks import Held


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder of this machine."""

    root: Path
    uri: str = dataclasses.field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", str(self.root))

    @property
    def path(self) -> Path:
        """Where the folder lies."""
        return self.root

    def child(self, name: str) -> LocalFolder:
        """The folder of that name in this one."""
        return LocalFolder(self.root / name)

    def read(self, key: str) -> bytes:
        """A file's content."""
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"Cannot read {self.root / key}: {error.strerror}.") from error

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes of a file from ``start`` up to ``end``; the others are not read."""
        return self.read_unchanged(key, start, end, etag=None)

    def read_unchanged(self, key: str, start: int, end: int, *, etag: str | None) -> bytes:
        """Some bytes of a file that has that etag before they are read and afterwards."""
        path = self.root / key
        try:
            with open(path, "rb", buffering=0) as file:
                before = _etag_of(os.fstat(file.fileno()))
                data = os.pread(file.fileno(), end - start, start)
                after = _etag_of(os.fstat(file.fileno()))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
        if etag is not None and not before == after == etag:
            raise ObjectChanged(
                f"{path} has changed since it was listed.", hint="Start a new run, which lists the input again."
            )
        return data

    def write(self, key: str, data: bytes) -> None:
        """Write a file atomically and durably."""
        write_bytes(self.root / key, data)

    def state(self, key: str) -> State:
        """The file's number in its file system, its time and its size: it is never written in its place."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self.root / key)
            return {"file": f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"}
        return {}

    def read_state(self, key: str) -> tuple[bytes | None, State]:
        """A file's content and its state."""
        state = self.state(key)
        try:
            return (self.read(key), state) if state else (None, {})
        except FileNotFoundError:
            return None, {}

    def write_if(self, key: str, data: bytes, state: State) -> State | None:
        """Write a file that is in that state: a missing one in a single step, else under the caller's lock."""
        path = self.root / key
        if not state:
            written = create_bytes(path, data)
        elif written := self.state(key) == state:
            write_bytes(path, data)
        if not written and self.read_state(key)[0] != data:
            return None
        return self.state(key)

    def size(self, key: str) -> int | None:
        """A file's size in bytes; None if it is not there."""
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def look(self, key: str) -> Entry | None:
        """A file as a listing has it; None if it is not there."""
        try:
            status = os.stat(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"Cannot look at {self.root / key}: {error.strerror}.") from error
        return Entry(key, status.st_size, _etag_of(status), status.st_mtime) if S_ISREG(status.st_mode) else None

    def entries(self, prefix: str = "") -> list[Entry]:
        """The files in the folder ``prefix`` and below, in key order."""
        entries = []
        for top, _, names in os.walk(self.root / prefix):
            for name in names:
                if not name.startswith("."):
                    path = os.path.join(top, name)
                    with contextlib.suppress(FileNotFoundError):  # it was removed while the folder was read
                        status = os.stat(path)
                        etag = _etag_of(status)
                        key = os.path.relpath(path, self.root)
                        entries.append(Entry(key, status.st_size, etag, status.st_mtime))
        return sorted(entries, key=lambda entry: entry.key)

    def children(self, key: str) -> list[str]:
        """The names of the folders in the folder ``key``."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry.name for entry in os.scandir(self.root / key) if entry.is_dir())
        return []

    def remove(self, key: str) -> None:
        """Remove a file, if it is there."""
        with writing(self.root / key):
            (self.root / key).unlink(missing_ok=True)

    def remove_all(self, key: str) -> None:
        """Remove the folder ``key`` and all that it holds."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    def remove_many(self, keys: Sequence[str], before: Callable[[], object]) -> None:
        """Remove files one by one."""
        for key in keys:
            before()
            self.remove(key)
            self.remove_empty_parents(key)

    def remove_remains(self) -> None:
        """Remove empty folders, and files whose writing was not finished: nobody else's, if another has begun here."""
        for top, _, names in os.walk(self.root, topdown=False):
            with contextlib.suppress(OSError):
                for name in names:
                    if name.startswith("."):
                        os.unlink(os.path.join(top, name))
                os.rmdir(top)

    def remove_empty_parents(self, key: str) -> None:
        """Remove the folders that the removed file ``key`` leaves empty."""
        for parent in (self.root / key).parents:
            if parent == self.root:
                break
            try:
                os.rmdir(parent)
            except OSError:
                break

    def begin(self, key: str) -> Path:
        """The file itself: nothing counts on it before a marker or a commit does."""
        path = self.root / key
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, key: str, path: Path) -> None:
        """The file is where it belongs already."""

    def copy_to(self, source: str, target: File) -> None:
        """Make ``source`` appear as ``target`` too, by a hard link where the file system has them."""
        link_file(self.root / source, target.folder.path / target.key)

    def put_file(self, path: Path, key: str) -> None:
        """Copy a file to ``key``, atomically."""
        target = self.root / key
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(path, target)

    def get_file(self, key: str, path: Path, *, etag: str | None = None, size: int | None = None) -> None:
        """Copy the file ``key`` to ``path``."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / key, path)

    def open(self, key: str) -> Any:
        """The file as Arrow reads it."""
        import pyarrow as pa

        # An open file, not a path: resolving a path takes pyarrow longer than reading a small part.
        return pa.OSFile(str(self.root / key))

    def arrow(self) -> tuple[Any, str]:
        """The folder's path, in this machine's file system."""
        return None, str(self.root)

    def objects(self, *, leave_out: Folder | None = None) -> pa.Table:
        """The files of the folder as input."""
        return list_files(self.root, leave_out=leave_out.path if isinstance(leave_out, LocalFolder) else None)

    @contextlib.contextmanager
    def lock(self, key: str, busy: str, *, patience_s: float = 0.0) -> Iterator[Held]:
        """Hold an advisory lock; the system lets go of it when the process ends, however it ends."""
        path = self.root / key
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
        try:
            lock.take(busy, patience_s)
            yield lock
        finally:
            lock.let_go()

    def is_locked(self, key: str) -> bool:
        """Whether a process of this machine holds the lock."""
        return is_file_locked(self.root / key)


def _etag_of(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def changes_since(root: str, keys: Sequence[str], etags: Sequence[str] | None) -> list[str]:
    """A sentence for each file that is not as it was when it was listed with its etag."""
    changes = []
    for key, etag in zip(keys, etags or (), strict=False):
        try:
            if _etag_of(os.stat(os.path.join(root, key))) != etag:
                changes.append(f"{key} has changed since it was listed.")
        except OSError:
            changes.append(f"{key} is gone.")
    return changes
