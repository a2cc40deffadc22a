"""Lists an input folder of this machine as an Arrow table."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

from shardkit.errors import InputError
from shardkit.storage.base import STATE_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa

LISTED_AT_ONCE = 1 << 16
DATASETS = b"datasets"


def list_files(root: Path, *, leave_out: Path | None = None) -> pa.Table:
    """Every file under ``root``, in key order: ``key`` and ``etag`` (strings), ``bytes`` (int64), ``modified`` (UTC).

    Hidden files, and files and folders whose names start with ``_`` or ``.``, are not input; neither is what lies
    under ``leave_out``, nor in folders that are datasets themselves; `datasets_in` names those. Links to folders
    are followed, unless they lead back to a folder on the way to them.
    The etag of a local file is made of its modification time in nanoseconds and its size.

    Raises:
        InputError: ``root`` is no folder, cannot be read, or holds a name that is not valid UTF-8.
        NoRoom: the listing is long, and the temporary folder cannot take it.
    """
    from shardkit.tables.spill import LISTED, Spill

    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise InputError(f"The input {root} {what}.", hint="Give the folder that holds the files.")
    spill = Spill(LISTED)
    datasets: list[str] = []
    walk = _walk(str(root), str(leave_out) if leave_out else None, datasets)
    table = spill.sorted_table([spill.keep_sorted(_batch(root, *files)) for files in walk if files[0]])
    return with_datasets(table, datasets)


def with_datasets(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """A listing with the folders that were left out because they are datasets of shardkit's own."""
    listed = sorted(names)
    return table.replace_schema_metadata({DATASETS: json.dumps(listed)}) if listed else table


def datasets_in(table: pa.Table) -> list[str]:
    """The folders that a listing has left out, relative to its root."""
    noted = (table.schema.metadata or {}).get(DATASETS)
    return json.loads(noted) if noted else []


def _batch(root: Path, names: list[str], sizes: list[int], times: list[int]) -> pa.RecordBatch:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from shardkit.tables.arrays import arrow
    from shardkit.tables.spill import LISTED

    size, time_ns = np.array(sizes, np.int64), np.array(times, np.int64)
    dash = _strings(["-"], root)[0]
    etag = pc.binary_join_element_wise(arrow(time_ns).cast(pa.string()), arrow(size).cast(pa.string()), dash)
    modified = arrow(time_ns // 1000).cast(pa.timestamp("us", "UTC"))
    return pa.RecordBatch.from_arrays([_strings(names, root), arrow(size), etag, modified], schema=LISTED)


def _strings(names: list[str], root: Path) -> pa.Array:
    from shardkit.tables.arrays import texts

    try:
        return texts(names)
    except UnicodeEncodeError:
        bad = next(name for name in names if _undecodable(name))
        raise InputError(
            f"The name of {os.fsencode(bad)!r} under {root} is not valid UTF-8.",
            hint="Rename the file; a dataset could not name it.",
        ) from None


def _undecodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def _walk(root: str, leave_out: str | None, datasets: list[str]) -> Iterator[tuple[list[str], list[int], list[int]]]:
    """Batches of (keys, sizes in bytes, modification times in ns) of the files under ``root``.

    Folders that hold the state of a dataset are added to ``datasets`` instead, but for ``root`` itself.
    """
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
        below = []
        shown = [entry for entry in entries if entry.name[0] not in "._"]
        if len(shown) < len(entries) and folder != root and any(entry.name == STATE_DIR for entry in entries):
            datasets.append(folder[cut:])
            continue
        for entry in shown:
            try:
                if entry.is_dir():
                    if not left_out(entry) and not (entry.is_symlink() and _leads_back(entry.path, folder, root)):
                        below.append(f"{entry.path}/")
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
            if len(names) >= LISTED_AT_ONCE:
                yield names, sizes, times
                names, sizes, times = [], [], []
        # In the order of the keys, so that there is little to sort.
        folders += (path[:-1] for path in sorted(below, reverse=True))
    yield names, sizes, times


def _sameness(folder: str | None) -> Callable[[os.DirEntry[str]], bool]:
    """A test whether an entry is ``folder``, by whatever path either was reached."""
    try:
        status = os.stat(folder) if folder is not None else None
    except OSError:
        status = None
    if status is None:
        return lambda _: False
    # An entry's inode costs no system call, so stat only what may be the same.
    return lambda entry: (
        (entry.is_symlink() or entry.inode() == status.st_ino) and os.path.samestat(os.stat(entry.path), status)
    )


def _leads_back(link: str, folder: str, root: str) -> bool:
    """Whether ``link``, which lies in ``folder``, points to a folder on the way from ``root``, or above."""
    target = os.path.realpath(link).rstrip("/") + "/"
    while not f"{os.path.realpath(folder)}/".startswith(target):
        if folder == root:
            return False
        folder = os.path.dirname(folder)
    return True
