"""One face for the places where files lie. This version knows local folders.

A store is rooted at a URI; its keys are relative, with ``/`` between their parts. Files appear under their
name whole or not at all: they are written beside it, flushed to the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from shardkit.errors import InputError, PipelineError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

TEMPORARY_PREFIX = ".shardkit-tmp-"


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
            f"{text}: this version of shardkit reads and writes local folders only.",
            hint=f"Give a path or a file:// URI instead of {parts.scheme}://.",
        )
    return Path(os.path.abspath(os.path.expanduser(text)))


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


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` at ``path`` atomically and durably, replacing what was there.

    Raises:
        StorageError: the file could not be written; nothing is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync_file(path: Path) -> None:
    """Flush ``path`` to the disk, so that what is written after it may rely on it."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def place_file(source: Path, target: Path) -> None:
    """Make ``source`` appear at ``target`` too, by a hard link where the file system has them."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:
            pass
        except OSError:
            temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
            try:
                shutil.copyfile(source, temporary)
                sync_file(temporary)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)


def list_objects(root: Path, *, leave_out: Path | None = None) -> pa.Table:
    """Every file under ``root``: ``key`` (string), ``bytes`` (int64) and ``etag`` (string), in key order.

    Hidden files, and files and folders whose names start with ``_`` or ``.``, are not input; neither is what
    lies under ``leave_out``. Links to folders are followed, unless they lead back to a folder on the way to them.
    The etag of a local file is made of its modification time in nanoseconds and its size.

    Raises:
        InputError: ``root`` is no folder, cannot be read, or holds a name that is not valid UTF-8.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from shardkit.arrays import arrow

    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise InputError(f"The input {root} {what}.", hint="Give the folder that holds the files.")
    names, sizes, times = [], [], []
    walk = _walk(str(root), str(leave_out) if leave_out else None)
    for folder_names, folder_sizes, folder_times in walk:
        names.append(_strings(folder_names, root))
        sizes.append(np.array(folder_sizes, dtype=np.int64))
        times.append(np.array(folder_times, dtype=np.int64))
    key = pa.chunked_array(names, type=pa.large_string()).combine_chunks()
    size = arrow(np.concatenate(sizes) if sizes else np.zeros(0, np.int64))
    time = arrow(np.concatenate(times) if times else np.zeros(0, np.int64))
    dash = _strings(["-"], root)[0]
    etag = pc.binary_join_element_wise(time.cast(pa.large_string()), size.cast(pa.large_string()), dash)
    table = pa.table({"key": key, "bytes": size, "etag": etag})
    return table.take(pc.sort_indices(key))


def _strings(names: list[str], root: Path) -> pa.Array:
    """A string array made without pyarrow's conversion from Python objects, which would import pandas."""
    import numpy as np
    import pyarrow as pa

    try:
        data = "".join(names).encode()
        lengths = np.fromiter((len(name) for name in names), np.int64, len(names))
        if len(data) != int(lengths.sum()):
            lengths = np.fromiter((len(name.encode()) for name in names), np.int64, len(names))
    except UnicodeEncodeError:
        bad = next(name for name in names if _undecodable(name))
        raise InputError(
            f"The name of {os.fsencode(bad)!r} under {root} is not valid UTF-8.",
            hint="Rename the file; a dataset could not name it.",
        ) from None
    offsets = np.zeros(len(names) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return pa.LargeStringArray.from_buffers(len(names), pa.py_buffer(offsets), pa.py_buffer(data))


def _undecodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def _walk(root: str, leave_out: str | None) -> Iterator[tuple[list[str], list[int], list[int]]]:
    """Batches of (keys, sizes in bytes, modification times in ns) of the files under ``root``."""
    names: list[str] = []
    sizes: list[int] = []
    times: list[int] = []
    cut = len(root.rstrip("/")) + 1
    folders = [root]
    left_out = _sameness(leave_out)
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(
                f"Cannot list the input folder {folder}: {error.strerror}.",
                hint="Make it readable, or exclude it by starting its name with '_' or '.'.",
            ) from error
        for entry in entries:
            if entry.name[0] in "._":
                continue
            try:
                if entry.is_dir():
                    if not left_out(entry) and not (entry.is_symlink() and _leads_back(entry.path, folder, root)):
                        folders.append(entry.path)
                    continue
                status = entry.stat()
            except OSError as error:
                if entry.is_symlink():
                    raise InputError(
                        f"The input file {entry.path} is a link to nothing.", hint="Mend or remove the link."
                    ) from error
                if isinstance(error, FileNotFoundError):
                    continue  # it vanished while the folder was read
                raise InputError(f"Cannot look at the input file {entry.path}: {error.strerror}.") from error
            if not stat.S_ISREG(status.st_mode):
                continue  # a pipe, a socket or a device
            names.append(entry.path[cut:])
            sizes.append(status.st_size)
            times.append(status.st_mtime_ns)
        if len(names) >= 1 << 16:
            yield names, sizes, times
            names, sizes, times = [], [], []
    yield names, sizes, times


def _sameness(folder: str | None) -> Callable[[os.DirEntry[str]], bool]:
    """Tells whether an entry is ``folder``, by whatever path either was reached."""
    try:
        known = os.stat(folder) if folder is not None else None
    except OSError:
        known = None
    if known is None:
        return lambda _: False
    # An entry's inode costs no system call, so only what may be the same is looked at.
    return lambda entry: (
        (entry.is_symlink() or entry.inode() == known.st_ino) and os.path.samestat(os.stat(entry.path), known)
    )


def _leads_back(link: str, folder: str, root: str) -> bool:
    """Whether ``link``, which lies in ``folder``, points to a folder on the way from ``root``, or above."""
    target = os.path.realpath(link).rstrip("/") + "/"
    while not f"{os.path.realpath(folder)}/".startswith(target):
        if folder == root:
            return False
        folder = os.path.dirname(folder)
    return True
