"""Small files of a record that are held in memory, and made where they belong when somebody asks for a path."""

from __future__ import annotations

import io
import locale
import os
import sys
import threading
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

PATHS: Any = PosixPath  # its private methods differ between versions of Python
READING = {"r", "rt", "tr", "rb", "br"}
LAZY_PARTS = ("_raw_paths",) if sys.version_info >= (3, 12) else ("_drv", "_root", "_parts")
FAILED: list[StorageError] = []  # why files could not be made, whatever the function did with the error


class Held:
    """The contents of files by their names, until they are made; ``make`` makes them."""

    __slots__ = ("_contents", "_lock", "_make")

    def __init__(self, contents: dict[str, bytes], make: Callable[[dict[str, bytes]], None]) -> None:
        self._contents: dict[str, bytes] | None = contents
        self._make = make
        self._lock = threading.Lock()

    def content(self, name: str) -> bytes | None:
        """What is in a file; None if it is not held here, or not any more."""
        contents = self._contents
        return None if contents is None else contents.get(name)

    def make(self) -> None:
        """Make the files, if they have not been made; from then on they alone count.

        Raises:
            StorageError: there is no room for them.
        """
        if self._contents is not None:
            with self._lock:
                self._make_held()

    def _make_held(self) -> None:
        if self._contents is not None:  # another thread may have been here
            try:
                self._make(self._contents)
            except StorageError as error:
                FAILED.append(error)
                raise
            self._contents = None

    def drop(self) -> None:
        """Hold nothing more, because the record is done."""
        with self._lock:
            self._contents = None


class HeldPath(PosixPath):
    """The path of a file that may be held in memory: to read it takes no file, and all else finds the file made.

    Whatever is derived from it is a plain path.
    """

    __slots__ = ("_folder", "_held", "_local")

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Make one without arguments, which older versions of Python would read as parts of a path."""
        return object.__new__(cls)

    def __init__(self, folder: str, local: str, held: Held | None = None) -> None:
        self._folder = folder
        self._local = local
        self._held = held

    if not TYPE_CHECKING:  # or every name would do for a type checker

        def __getattr__(self, name: str) -> Any:
            """What Python keeps of a path, made on its first use: most functions only open it."""
            if name not in LAZY_PARTS:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            whole = Path(self.__fspath__())
            for part in LAZY_PARTS:
                setattr(self, part, getattr(whole, part))
            return getattr(self, name)

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """A path of these parts."""
        return Path(*segments)

    if sys.version_info < (3, 12):

        @classmethod
        def _from_parts(cls, *given: Any) -> Path:
            made: Path = PATHS._from_parts(*given)  # noqa: SLF001
            return made

        @classmethod
        def _from_parsed_parts(cls, *given: Any) -> Path:
            made: Path = PATHS._from_parsed_parts(*given)  # noqa: SLF001
            return made

    def with_suffix(self, suffix: str) -> Path:  # type: ignore[override]
        """The path with another suffix."""
        return Path(self.__fspath__()).with_suffix(suffix)

    def __fspath__(self) -> str:
        if self._held is not None:
            self._held.make()
        return f"{self._folder}/{self._local}"

    def __reduce__(self) -> Any:
        return Path, (self.__fspath__(),)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._local.rpartition("/")[2]

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """The file, opened as `open` opens it; to read what is held takes no file."""
        content = self._content()
        if content is None or mode not in READING:
            return super().open(mode, buffering, encoding, errors, newline)
        file = HeldFile(content, self)
        if "b" in mode:
            return file
        # Python 3.10 asks the descriptor of a file for its encoding, if none is given.
        return io.TextIOWrapper(file, encoding or locale.getpreferredencoding(False), errors, newline)  # noqa: FBT003

    def read_bytes(self) -> bytes:
        """All that is in the file."""
        content = self._content()
        return super().read_bytes() if content is None else content

    def read_text(self, *args: Any, **options: Any) -> str:
        """All that is in the file, as text."""
        content = self._content()
        if content is None:
            return super().read_text(*args, **options)
        with io.TextIOWrapper(io.BytesIO(content), *args, **options) as file:
            return file.read()

    def _content(self) -> bytes | None:
        return None if self._held is None else self._held.content(self._local)


class HeldFile(io.BytesIO):
    """A file that is held in memory, opened for reading; who asks for a descriptor gets that of the file made."""

    def __init__(self, content: bytes, path: HeldPath) -> None:
        super().__init__(content)
        self._path = path
        self._made: io.FileIO | None = None

    @property
    def name(self) -> str:
        """The path of the file."""
        return os.fspath(self._path)

    @property
    def mode(self) -> str:
        """How it has been opened."""
        return "rb"

    def fileno(self) -> int:
        """The descriptor of the file made."""
        if self._made is None:
            self._made = io.FileIO(os.fspath(self._path))
        return self._made.fileno()

    def writable(self) -> bool:
        """It is open for reading."""
        return False

    def write(self, _: Buffer, /) -> int:
        """Refuse.

        Raises:
            io.UnsupportedOperation: it is open for reading.
        """
        raise io.UnsupportedOperation("not writable")

    def close(self) -> None:
        """Close it, and the file made."""
        if self._made is not None:
            self._made.close()
        super().close()
