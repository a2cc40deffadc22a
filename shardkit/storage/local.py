"""Files of this machine, written so that they are there whole or not at all, with errors that name the cure."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPORARY_PREFIX = ".shardkit-tmp-"


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that names the file and the cure."""
    try:
        yield
    except OSError as error:
        cures = {
            errno.ENOSPC: "Free some space, then resume the run.",
            errno.EDQUOT: "Free some of your quota, then resume the run.",
            errno.EACCES: "Give yourself write permission there, then resume the run.",
            errno.EPERM: "Give yourself write permission there, then resume the run.",
            errno.EROFS: "Choose an output that is not mounted read-only.",
        }
        reason = error.strerror or str(error)
        hint = cures.get(error.errno or 0, "What was committed is kept; resume the run when this is mended.")
        raise StorageError(f"Cannot write {os.fspath(path)}: {reason}.", hint=hint) from error


def open_new(path: str) -> Any:
    """A file to write to, in a folder that is made if it is missing."""
    try:
        return open(path, "wb")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "wb")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` at ``path`` atomically and durably, replacing what was there.

    Raises:
        StorageError: the file could not be written; nothing is left behind.
    """
    with _written(path, data) as temporary:
        os.replace(temporary, path)


def create_bytes(path: Path, data: bytes) -> bool:
    """The same if there is nothing yet, in one step; return whether there was nothing.

    Raises:
        StorageError: as `write_bytes`.
    """
    with _written(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            os.replace(temporary, path)
    return True


@contextlib.contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside ``path`` that holds ``data``, flushed to the disk; it goes with the block."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def sync_file(path: Path) -> None:
    """Flush ``path`` to the disk, so that later writes may rely on it."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_file(source: Path, target: Path) -> None:
    """Make ``source`` appear at ``target`` too, by a hard link where the file system has them."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:
            pass
        except OSError:
            copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Make ``target`` a copy of ``source``, atomically and durably."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        shutil.copyfile(source, temporary)
        sync_file(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
