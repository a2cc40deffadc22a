"""A folder of this machine for what is expensive to get, such as a model's weights, and kept between runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOME = "SHARDKIT_CACHE"
MAKING = ".making"


class Cache:
    """A folder of this machine for files that take long to get; it is neither in the input nor in the output.

    It is ``$SHARDKIT_CACHE``, by default ``shardkit`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``, and in a job a folder
    of its container. It is a path: ``cache / "name"`` and ``os.fspath(cache)`` work.

    Examples:
        >>> class Score:
        ...     def __init__(self):  # once in each worker, and the download once on each machine
        ...         self.model = load(shardkit.Cache().once("model.bin", download))

    Attributes:
        path: the folder, which is there.
    """

    def __init__(self) -> None:
        self.path = Path(os.environ.get(HOME) or _default())
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file or folder of that name, which ``make`` writes to the path that it is given, if it is not there.

        Only one process of the machine makes it, and all others wait for it. What ``make`` has begun when it fails or
        its process ends is removed, and the next one makes it.

        Raises:
            StorageError: ``make`` has written nothing.
            ValueError: ``name`` leads out of the folder.
            Exception: whatever ``make`` raises.
        """
        target = self.path / name
        if not name or os.path.isabs(name) or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is no name in the cache {self.path}")
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        making = target.with_name(f".{target.name}{MAKING}")
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _remove(making)  # of a process that has ended on the way
                try:
                    make(making)
                    if not making.exists():
                        raise StorageError(
                            f"{name} is not in the cache {self.path}: the function that makes it wrote no file.",
                            hint="It is called with the path that it is to write to.",
                        )
                    _sync(making)
                    making.rename(target)
                finally:
                    _remove(making)
        return target

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"


def _default() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "shardkit")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, which ends with the process at the latest."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _sync(path: Path) -> None:
    """See that what has been written is on the disk before it has its name."""
    for each in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        with each.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
