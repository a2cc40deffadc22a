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
import random
import re
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from shardkit.errors import InputError, ObjectChanged, PipelineError, RunBusy, StorageError
from shardkit.lease import Lease
from shardkit.objectlist import list_objects
from shardkit.storage import Entry, File, Folder, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

P = ParamSpec("P")
T = TypeVar("T")

CONCURRENT_REQUESTS = 32
LIST_PAGE = 1000
WHOLE_BYTES = 8 << 20
LARGE_BYTES = 32 << 20
RANGE_BYTES = 8 << 20
RANGES_AT_ONCE = 4
REPEAT_AFTER_S = (0.1, 0.5, 2.0, 8.0)
REPEATED = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}  # by obstore: throttling, 5xx, lost connections
ODD_KEY_HINT = (
    "Keys with // in them, with . or .. between two slashes or with control characters cannot be read: rename these "
    "objects, or choose an input without them."
)
_MAKING = threading.Lock()
# What boto3 goes by where it is given no session; a notebook may change it at any time.
SURROUNDINGS = (
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
HIDDEN = r"(^|/)[._]"  # names that are no input
RESUME_HINT = "What was committed is kept; resume the run when the storage can be reached."


def _bucket_store(bucket: str, session: Any, kms_key: str | None) -> Any:
    """The store of one bucket, the same for all threads: a client is worth 20 MB and 0.2 s of CPU to make."""
    surroundings = tuple(os.environ.get(name) for name in SURROUNDINGS) if session is None else ()
    with _MAKING:
        return _make_store(bucket, session, kms_key, surroundings)


@functools.lru_cache(maxsize=64)
def _make_store(bucket: str, session: Any, kms_key: str | None, surroundings: tuple[str | None, ...]) -> Any:  # noqa: ARG001  a key of the cache
    """A store whose endpoint, region and credentials are what ``session`` says, or else the environment."""
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
    if endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        config["region"] = bucket_region(client, bucket)
    else:
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if kms_key is not None:
        config |= {"server_side_encryption": "aws:kms", "sse_kms_key_id": kms_key}
    return S3Store(
        bucket,
        config=config,  # type: ignore[arg-type]  # its keys are told apart above
        credential_provider=Boto3CredentialProvider(session),
        retry_config=REPEATED,  # type: ignore[arg-type]  # its other fields have defaults
        client_options={"allow_http": endpoint.startswith("http://"), "timeout": "120s"},
    )


def bucket_region(client: Any, bucket: str) -> str:
    """The region of a bucket, which need not be the session's own; that one where S3 does not tell."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:  # even a refusal tells it
        answer = error.response
    except BotoCoreError:
        answer = {}
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region") or client.meta.region_name)


@contextlib.contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Turn obstore's errors into ours."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.BaseError) as error:
        text = str(error)
        code, message = _answer(text)
        if code == "NoSuchBucket":
            bucket = uri.split("/")[2]
            raise StorageError(f"There is no bucket {bucket}.", hint="Is its name right?") from error
        if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
            raise FileNotFoundError(f"{uri} is not there") from error
        if "403 Forbidden" in text or "401 Unauthorized" in text:
            hint = "Give yourself, or the job's role, the permission."
            raise StorageError(f"Access to {uri} is denied: {code}: {message}", hint=hint) from error
        if "invalid path" in text:
            raise StorageError(f"{uri}: {message}", hint=ODD_KEY_HINT) from error
        raise _Unanswered(f"{uri}: {message}", hint=RESUME_HINT) from error


class _Unanswered(StorageError):
    """A request that failed for no reason of its own: the same one again may succeed."""


def _repeated(request: Callable[P, T]) -> Callable[P, T]:
    """Make a request again that was not answered, or not to the end, which obstore does not do by itself."""

    @functools.wraps(request)
    def again(*arguments: P.args, **options: P.kwargs) -> T:
        for wait_s in REPEAT_AFTER_S:
            try:
                return request(*arguments, **options)
            except _Unanswered:
                time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311  so that not all come back at once
        return request(*arguments, **options)

    return again


def _answer(text: str) -> tuple[str, str]:
    """The store's own error code and message out of obstore's, or an empty code and its first line."""
    found = re.search(r"<Code>(.*?)</Code>\s*(?:<Message>(.*?)</Message>)?", text, re.DOTALL)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return (found[1], (found[2] or found[1])[:500]) if found else ("", first[:500])


def _texts(keys: set[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(sorted(keys), pa.large_string())


@dataclass(frozen=True)
class ObjectFolder(Folder):
    """A prefix of a bucket; ``prefix`` is empty or ends with a slash. ``kms_key`` encrypts what is written there."""

    bucket: str
    prefix: str
    session: Any = None
    kms_key: str | None = None

    @classmethod
    def of(cls, uri: str, *, session: Any = None, kms_key: str | None = None) -> ObjectFolder:
        """The folder that ``uri`` names."""
        parts = urlsplit(uri, allow_fragments=False)
        path = uri.split("://", 1)[1].partition("/")[2].strip("/")
        if not parts.netloc:
            raise PipelineError(f"{uri} names no bucket.", hint="Write s3://bucket/prefix.")
        return cls(parts.netloc, f"{path}/" if path else "", session, kms_key)

    @property
    def uri(self) -> str:  # type: ignore[override]  # read-only here
        """``s3://bucket/prefix``, without a slash at its end."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def _store(self) -> Any:
        return _bucket_store(self.bucket, self.session, self.kms_key)

    def child(self, name: str) -> ObjectFolder:
        """The folder of that name in this one."""
        return ObjectFolder(self.bucket, f"{self.prefix}{name.strip('/')}/", self.session, self.kms_key)

    def encrypted(self, kms_key: str | None) -> ObjectFolder:
        """The same folder, with that key for what is written."""
        return self if kms_key is None else ObjectFolder(self.bucket, self.prefix, self.session, kms_key)

    @_repeated
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

    @_repeated
    def write(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""
        with _asking(f"{self.uri}/{key}"):
            self._store.put(self.prefix + key, data)

    @_repeated
    def size(self, key: str) -> int | None:
        """An object's size in bytes; None if it is not there."""
        try:
            with _asking(f"{self.uri}/{key}"):
                return int(self._store.head(self.prefix + key)["size"])
        except FileNotFoundError:
            return None

    @_repeated
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

    @_repeated
    def children(self, key: str) -> list[str]:
        """The names of the folders in the folder ``key``."""
        start = f"{self.prefix}{key.strip('/')}/"
        with _asking(f"s3://{self.bucket}/{start}"):
            listed = self._store.list_with_delimiter(start)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in listed["common_prefixes"])

    @_repeated
    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), _asking(f"{self.uri}/{key}"):
            self._store.delete(self.prefix + key)

    @_repeated
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

    @_repeated
    def place(self, source: str, target: File) -> None:
        """Copy an object within the store."""
        to = target.folder
        if not isinstance(to, ObjectFolder) or to.bucket != self.bucket:
            raise StorageError(f"{self.uri}/{source} cannot be copied to {target}.", hint="They lie in two stores.")
        with _asking(str(target)):
            self._store.copy(self.prefix + source, to.prefix + target.key)

    @_repeated
    def put_file(self, path: Path, key: str) -> None:
        """Upload a file, a large one in several parts at once."""
        with _asking(f"{self.uri}/{key}"):
            self._store.put(self.prefix + key, path)

    @_repeated
    def get_file(self, key: str, path: Path, *, etag: str | None = None, size: int | None = None) -> None:
        """Download an object, whole or not at all; a large one in several ranges at once."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _asking(f"{self.uri}/{key}"):
            if etag and size is not None and size > LARGE_BYTES:
                self._get_ranges(key, path, etag, size)
                return
            found = self._store.get(self.prefix + key)
            meta = found.meta
            now = (meta["e_tag"] or "").strip('"')
            if etag is not None and now != etag:
                raise self._changed(key, etag)
            with writing(path), open(path, "wb", buffering=0) as file:
                if meta["size"] <= LARGE_BYTES:
                    file.write(found.bytes())
                else:
                    file.writelines(found.stream(min_chunk_size=1 << 20))
        if path.stat().st_size != meta["size"]:
            raise _Unanswered(f"{self.uri}/{key}: the answer was cut short.", hint=RESUME_HINT)

    def _get_ranges(self, key: str, path: Path, etag: str, size: int) -> None:
        """Download an object a range at a time; each request asks for the same etag."""
        from obstore import exceptions

        def get(file: int, start: int) -> None:
            end = min(start + RANGE_BYTES, size)
            options = {"range": (start, end), "if_match": f'"{etag}"'}
            data = self._store.get(self.prefix + key, options=options).bytes()
            with writing(path):
                os.pwrite(file, data, start)

        with writing(path):
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

    @_repeated
    def open(self, key: str) -> Any:
        """The object as Arrow reads it: a small one at once, of a large one the ranges that are asked for."""
        import pyarrow as pa

        with _asking(f"{self.uri}/{key}"):
            found = self._store.get(self.prefix + key)
            size = found.meta["size"]
            if size <= WHOLE_BYTES:
                return pa.BufferReader(pa.py_buffer(found.bytes()))
        return pa.PythonFile(_Ranges(self, key, size), mode="r")

    @_repeated
    def read_range(self, key: str, start: int, end: int) -> memoryview:
        """The bytes of an object from ``start`` up to ``end``."""
        with _asking(f"{self.uri}/{key}"):
            return memoryview(self._store.get_range(self.prefix + key, start=start, end=end))

    def arrow(self) -> tuple[Any, str]:
        """Arrow's own S3 file system, with the same endpoint and credentials."""
        import boto3
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        session = self.session or boto3.Session()
        client = session.client("s3", region_name=session.region_name or "us-east-1")
        credentials = session.get_credentials().get_frozen_credentials()
        options: dict[str, Any] = {
            "region": client.meta.region_name,
            "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=10),
        }
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
        import pyarrow.compute as pc

        try:
            table = list_objects(self._store, self.prefix, self._ask)
            table = table.filter(pc.invert(pc.match_substring_regex(table["key"], HIDDEN)))
            table = self._without(table, leave_out)
            empty = pc.equal(table["bytes"], 0)
            markers = self._markers(table.filter(empty)["key"].to_pylist())
        except StorageError as error:
            raise InputError(error.message, hint=error.hint) from error
        if markers:
            table = table.filter(pc.invert(pc.is_in(table["key"], value_set=_texts(markers))))
        if not len(table):
            raise InputError(
                f"The input {self.uri} holds no objects.", hint="Is the prefix right, with no typing error?"
            )
        return table

    @_repeated
    def _ask(self, request: Callable[[], T]) -> T:
        with _asking(self.uri):
            return request()

    def _without(self, table: pa.Table, leave_out: Folder | None) -> pa.Table:
        """The listing without what lies under another folder."""
        import pyarrow.compute as pc

        if not isinstance(leave_out, ObjectFolder) or leave_out.bucket != self.bucket:
            return table
        if not leave_out.prefix.startswith(self.prefix):
            return table
        inside = leave_out.prefix[len(self.prefix) :]
        return table.filter(pc.invert(pc.starts_with(table["key"], inside))) if inside else table

    def _markers(self, empty: list[str]) -> set[str]:
        """Those of the empty objects that stand for folders: their keys end with a slash, which the list leaves out."""
        if not empty:
            return set()
        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(empty))) as pool:
            return {key for key, there in zip(empty, pool.map(self.exists, empty), strict=True) if not there}

    @contextlib.contextmanager
    def lock(self, key: str, busy: str, *, patience_s: float = 0.0) -> Iterator[None]:
        """Hold a lease: an object that says until when, renewed while the block runs."""
        lease = Lease(self._store, self.prefix + key, busy)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with _asking(f"{self.uri}/{key}"):
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


@functools.lru_cache(maxsize=1)
def _scratch_of(pid: int) -> tempfile.TemporaryDirectory[str]:  # noqa: ARG001  a child process has its own
    return tempfile.TemporaryDirectory(prefix="shardkit-")


def _scratch() -> Path:
    """A folder of this process for files on their way; it goes with the process."""
    return Path(_scratch_of(os.getpid()).name)
