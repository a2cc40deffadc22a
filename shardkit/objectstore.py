"""Folders in object stores: prefixes of S3 buckets, reached through obstore.

Requests are repeated with back-off by obstore itself. What is not there is a FileNotFoundError; every other failure
is a StorageError that names the object.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shardkit.errors import InputError, ObjectChanged, PipelineError, RunBusy, StorageError
from shardkit.storage import Entry, File, Folder, writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

CONCURRENT_REQUESTS = 32
LIST_PAGE = 1000
WHOLE_BYTES = 8 << 20
LARGE_BYTES = 32 << 20
RANGE_BYTES = 8 << 20
RANGES_AT_ONCE = 4
LEASE_S = 60.0
LEASE_RENEWAL_S = 15.0
RESUME_HINT = "What was committed is kept; resume the run when the storage can be reached."


@functools.lru_cache(maxsize=64)
def _bucket_store(bucket: str, session: Any) -> Any:
    """The store of one bucket; endpoint, region and credentials are what ``session`` says."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    session = session or boto3.Session()
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    endpoint = client.meta.endpoint_url
    if session.get_credentials() is None:
        raise PipelineError(
            f"There are no AWS credentials for s3://{bucket}.",
            hint="Sign in (aws configure, aws sso login), set AWS_PROFILE, or give the job's role access.",
        )
    config: dict[str, Any] = {"region": client.meta.region_name}
    if not endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    return S3Store(
        bucket,
        config=config,  # type: ignore[arg-type]  # its keys are told apart above
        credential_provider=Boto3CredentialProvider(session),
        client_options={"allow_http": endpoint.startswith("http://"), "timeout": "120s"},
    )


@contextlib.contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Turn obstore's errors into ours."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise FileNotFoundError(f"{uri} is not there") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise StorageError(
            f"Access to {uri} is denied: {_first_line(error)}", hint="Give yourself, or the job's role, the permission."
        ) from error
    except exceptions.BaseError as error:
        raise StorageError(f"{uri}: {_first_line(error)}", hint=RESUME_HINT) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]


@dataclass(frozen=True)
class ObjectFolder(Folder):
    """A prefix of a bucket; ``prefix`` is empty or ends with a slash."""

    bucket: str
    prefix: str
    session: Any = None

    @classmethod
    def of(cls, uri: str, *, session: Any = None) -> ObjectFolder:
        """The folder that ``uri`` names."""
        parts = urlsplit(uri, allow_fragments=False)
        path = uri.split("://", 1)[1].partition("/")[2].strip("/")
        if not parts.netloc:
            raise PipelineError(f"{uri} names no bucket.", hint="Write s3://bucket/prefix.")
        return cls(parts.netloc, f"{path}/" if path else "", session)

    @property
    def uri(self) -> str:  # type: ignore[override]  # read-only here
        """``s3://bucket/prefix``, without a slash at its end."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def _store(self) -> Any:
        return _bucket_store(self.bucket, self.session)

    def child(self, name: str) -> ObjectFolder:
        """The folder of that name in this one."""
        return ObjectFolder(self.bucket, f"{self.prefix}{name.strip('/')}/", self.session)

    def read(self, key: str) -> bytes:
        """An object's content."""
        with _asking(f"{self.uri}/{key}"):
            return bytes(self._store.get(self.prefix + key).bytes())

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """The content of several objects, read side by side."""
        if len(keys) < 2:
            return [self.read(key) for key in keys]
        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(keys))) as pool:
            return list(pool.map(self.read, keys))

    def write(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""
        with _asking(f"{self.uri}/{key}"):
            self._store.put(self.prefix + key, data)

    def size(self, key: str) -> int | None:
        """An object's size in bytes; None if it is not there."""
        try:
            with _asking(f"{self.uri}/{key}"):
                return int(self._store.head(self.prefix + key)["size"])
        except FileNotFoundError:
            return None

    def entries(self, prefix: str = "") -> list[Entry]:
        """The objects in the folder ``prefix`` and below, in key order."""
        start = self.prefix + (f"{prefix.strip('/')}/" if prefix else "")
        found = []
        with _asking(f"s3://{self.bucket}/{start}"):
            for page in self._store.list(start, chunk_size=LIST_PAGE):
                for item in page:
                    key = item["path"][len(self.prefix) :]
                    etag = (item["e_tag"] or "").strip('"')
                    found.append(Entry(key, item["size"], etag, item["last_modified"].timestamp()))
        return sorted(found, key=lambda entry: entry.key)

    def children(self, key: str) -> list[str]:
        """The names of the folders in the folder ``key``."""
        start = f"{self.prefix}{key.strip('/')}/"
        with _asking(f"s3://{self.bucket}/{start}"):
            listed = self._store.list_with_delimiter(start)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in listed["common_prefixes"])

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), _asking(f"{self.uri}/{key}"):
            self._store.delete(self.prefix + key)

    def remove_all(self, key: str) -> None:
        """Remove all objects of the folder ``key``."""
        paths = [self.prefix + entry.key for entry in self.entries(key)]
        with _asking(f"{self.uri}/{key}"):
            if paths:
                self._store.delete(paths)

    def remove_empty_parents(self, key: str) -> None:
        """A prefix without objects does not exist."""

    def begin(self, key: str) -> Path:
        """A new file in the scratch folder of this process."""
        path = _scratch() / uuid.uuid4().hex / key.rpartition("/")[2]
        with writing(path):
            path.parent.mkdir()
        return path

    def finish(self, key: str, path: Path) -> None:
        """Upload the file and remove it here."""
        self.put_file(path, key)
        path.unlink()
        path.parent.rmdir()

    def place(self, source: str, target: File) -> None:
        """Copy an object within the store."""
        to = target.folder
        if not isinstance(to, ObjectFolder) or to.bucket != self.bucket:
            raise StorageError(f"{self.uri}/{source} cannot be copied to {target}.", hint="They lie in two stores.")
        with _asking(str(target)):
            self._store.copy(self.prefix + source, to.prefix + target.key)

    def put_file(self, path: Path, key: str) -> None:
        """Upload a file, a large one in several parts at once."""
        with _asking(f"{self.uri}/{key}"):
            self._store.put(self.prefix + key, path)

    def get_file(self, key: str, path: Path, *, etag: str | None = None, size: int | None = None) -> None:
        """Download an object, whole or not at all; a large one in several ranges at once."""
        with _asking(f"{self.uri}/{key}"), writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if etag and size is not None and size > LARGE_BYTES:
                self._get_ranges(key, path, etag, size)
                return
            found = self._store.get(self.prefix + key)
            meta = found.meta
            now = (meta["e_tag"] or "").strip('"')
            if etag is not None and now != etag:
                raise self._changed(key, etag)
            with open(path, "wb", buffering=0) as file:
                if meta["size"] <= LARGE_BYTES:
                    file.write(found.bytes())
                else:
                    file.writelines(found.stream(min_chunk_size=1 << 20))
        if path.stat().st_size != meta["size"]:
            raise StorageError(f"{self.uri}/{key}: the answer was cut short.", hint=RESUME_HINT)

    def _get_ranges(self, key: str, path: Path, etag: str, size: int) -> None:
        """Download an object a range at a time; each request asks for the same etag."""
        from obstore import exceptions

        def get(file: int, start: int) -> None:
            end = min(start + RANGE_BYTES, size)
            options = {"range": (start, end), "if_match": f'"{etag}"'}
            os.pwrite(file, self._store.get(self.prefix + key, options=options).bytes(), start)

        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
                list(pool.map(lambda start: get(file, start), range(0, size, RANGE_BYTES)))
        except exceptions.PreconditionError:
            raise self._changed(key, etag) from None
        finally:
            os.close(file)

    def _changed(self, key: str, etag: str) -> ObjectChanged:
        return ObjectChanged(
            f"{self.uri}/{key} has changed since it was listed (its etag was {etag}).",
            hint="Start a new run, which lists the input again.",
        )

    def open(self, key: str) -> Any:
        """The object as Arrow reads it: a small one at once, of a large one the ranges that are asked for."""
        import pyarrow as pa

        with _asking(f"{self.uri}/{key}"):
            found = self._store.get(self.prefix + key)
            size = found.meta["size"]
            if size <= WHOLE_BYTES:
                return pa.BufferReader(pa.py_buffer(found.bytes()))
        return pa.PythonFile(_Ranges(self, key, size), mode="r")

    def read_range(self, key: str, start: int, end: int) -> memoryview:
        """The bytes of an object from ``start`` up to ``end``."""
        with _asking(f"{self.uri}/{key}"):
            return memoryview(self._store.get_range(self.prefix + key, start=start, end=end))

    def arrow(self) -> tuple[Any, str]:
        """Arrow's own S3 file system, with the same endpoint and credentials."""
        import boto3
        from pyarrow.fs import S3FileSystem

        session = self.session or boto3.Session()
        client = session.client("s3", region_name=session.region_name or "us-east-1")
        credentials = session.get_credentials().get_frozen_credentials()
        options: dict[str, Any] = {"region": client.meta.region_name}
        if not client.meta.endpoint_url.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            scheme, _, host = client.meta.endpoint_url.partition("://")
            options |= {"endpoint_override": host, "scheme": scheme}
        keys = {
            "access_key": credentials.access_key,
            "secret_key": credentials.secret_key,
            "session_token": credentials.token,
        }
        return S3FileSystem(**keys, **options), f"{self.bucket}/{self.prefix}".rstrip("/")

    def objects(self, *, leave_out: Folder | None = None) -> pa.Table:
        """What lies under the prefix as input."""
        import pyarrow as pa

        kept = self._input_entries(leave_out)
        if not kept:
            raise InputError(
                f"The input {self.uri} holds no objects.", hint="Is the prefix right, with no typing error?"
            )
        return pa.table(
            {
                "key": pa.array([entry.key for entry in kept], pa.large_string()),
                "bytes": pa.array([entry.bytes for entry in kept], pa.int64()),
                "etag": pa.array([entry.etag for entry in kept], pa.large_string()),
                "modified": pa.array([int(entry.modified * 1e6) for entry in kept], pa.timestamp("us", "UTC")),
            }
        )

    def _input_entries(self, leave_out: Folder | None) -> list[Entry]:
        same = isinstance(leave_out, ObjectFolder) and leave_out.bucket == self.bucket
        left_out = leave_out.prefix if same and isinstance(leave_out, ObjectFolder) else None
        try:
            entries = self.entries()
        except FileNotFoundError:
            raise InputError(f"There is no bucket {self.bucket}.", hint="Is its name right?") from None
        except StorageError as error:
            raise InputError(error.message, hint=error.hint) from error
        return [
            entry
            for entry in entries
            if not any(name[:1] in {"_", "."} for name in entry.key.split("/"))
            and not (left_out is not None and (self.prefix + entry.key).startswith(left_out))
        ]

    @contextlib.contextmanager
    def lock(self, key: str, busy: str, *, patience_s: float = 0.0) -> Iterator[None]:
        """Hold a lease: an object that says until when, renewed while the block runs."""
        lease = _Lease(self, key, busy)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                lease.take()
                break
            except RunBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
        try:
            yield
        finally:
            lease.let_go()

    def is_locked(self, key: str) -> bool:
        """Whether a lease runs now."""
        try:
            return bool(json.loads(self.read(key))["until"] > time.time())
        except (FileNotFoundError, ValueError):
            return False


class _Ranges(io.RawIOBase):
    """An object as a file of which each read is a request."""

    def __init__(self, folder: ObjectFolder, key: str, size: int) -> None:
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


class _Lease:
    """A lock that ends by itself when its holder does: conditional writes let one process win."""

    def __init__(self, folder: ObjectFolder, key: str, busy: str) -> None:
        self._store = folder._store  # noqa: SLF001  they are one module
        self._uri = f"{folder.uri}/{key}"
        self._path = folder.prefix + key
        self._busy = busy
        self._etag: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="shardkit-lease", daemon=True)

    def take(self) -> None:
        from obstore import exceptions

        try:
            self._put("create")
        except exceptions.AlreadyExistsError:
            self._take_over()
        self._thread.start()

    def _take_over(self) -> None:
        """Take a lease that has run out; of several that try, one wins."""
        from obstore import exceptions

        with _asking(self._uri):
            found = self._store.get(self._path)
            held = json.loads(bytes(found.bytes()))
        if held["until"] > time.time():
            raise RunBusy(f"{self._busy[:-1]} on {held['host']}.", hint="Wait for it to end, or stop it first.")
        try:
            self._put({"e_tag": found.meta["e_tag"]})
        except (exceptions.PreconditionError, exceptions.AlreadyExistsError):
            raise RunBusy(self._busy, hint="Wait for it to end, or stop it first.") from None

    def _put(self, mode: Any) -> None:
        lease = {"host": socket.gethostname(), "pid": os.getpid(), "until": time.time() + LEASE_S}
        self._etag = self._store.put(self._path, json.dumps(lease).encode(), mode=mode)["e_tag"]

    def _renew(self) -> None:
        while not self._end.wait(LEASE_RENEWAL_S):
            with contextlib.suppress(Exception):  # the next time, perhaps; else the lease runs out
                self._put({"e_tag": self._etag})

    def let_go(self) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it runs out by itself
            self._store.delete(self._path)


@functools.lru_cache(maxsize=1)
def _scratch_of(pid: int) -> tempfile.TemporaryDirectory[str]:  # noqa: ARG001  a child process has its own
    return tempfile.TemporaryDirectory(prefix="shardkit-")


def _scratch() -> Path:
    """A folder of this process for files on their way; it goes with the process."""
    return Path(_scratch_of(os.getpid()).name)
