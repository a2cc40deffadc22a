"""Objects of any store as Arrow reads them: one as a file, and a folder of them as a file system to read from."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

from shardkit.storage.base import File

if TYPE_CHECKING:
    from shardkit.storage.base import Folder
    from shardkit.storage.buckets import Bucket


def as_file(folder: Folder, key: str, size: int) -> pa.PythonFile:
    """An object of a known size, fetched range by range as Arrow asks for them."""
    return pa.PythonFile(_Ranges(folder, key, size), mode="r")


class _Ranges(io.RawIOBase):
    """An object as a file; each read is a request."""

    def __init__(self, folder: Folder, key: str, size: int) -> None:
        self._folder = folder
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._folder.read_range(self._key, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def file_system(folder: Folder) -> pafs.FileSystem:
    """A folder as an Arrow file system whose root it is, for reading files whose names are known."""
    return pafs.PyFileSystem(_Handler(folder))


class _Handler(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler) and other._folder == self._folder

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return "shardkit"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        size = self._folder.size(path.strip("/"))
        kind = pafs.FileType.NotFound if size is None else pafs.FileType.File
        return pafs.FileInfo(path, kind, size=size)

    def open_input_file(self, path: str) -> Any:
        return File(self._folder, path.strip("/")).open()

    open_input_stream = open_input_file

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        raise PermissionError("The files of a dataset are in its result; nothing is listed here.")

    def _read_only(self, *_: Any) -> Any:
        raise PermissionError("This file system is for reading.")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _read_only
    move = copy_file = open_output_stream = open_append_stream = _read_only


def amazon_file_system(name: str, bucket: Bucket) -> Any:
    """Arrow's S3 file system for a bucket, with the credentials that there are now."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options: dict[str, Any] = {"retry_strategy": AwsStandardS3RetryStrategy(max_attempts=10)}
    if (location := bucket.location) is not None:
        scheme, _, host = location.endpoint.partition("://")
        options |= {"region": location.region, "endpoint_override": host.removeprefix(f"{name}."), "scheme": scheme}
        options["force_virtual_addressing"] = location.virtual
    if bucket.credentials is None:
        return S3FileSystem(anonymous=True, **options)
    now = bucket.credentials()
    keys = {
        "access_key": now["access_key_id"],
        "secret_key": now["secret_access_key"],
        "session_token": now["token"],
    }
    return S3FileSystem(**keys, **options)
