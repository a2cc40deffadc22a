"""Folders in object stores: prefixes of buckets, reached through obstore.

What is not there is a FileNotFoundError; every other failure is a StorageError that names the object.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import os
import re
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shardkit.errors import InputError, ObjectChanged, PipelineError, StorageError
from shardkit.storage.base import STATE_DIR, Access, Entry, File, Folder, State
from shardkit.storage.buckets import Bucket, NoCredentials, amazon_client, open_bucket
from shardkit.storage.large_copy import copy_in_parts, is_too_large
from shardkit.storage.lease import Lease, is_held, seen, state_of
from shardkit.storage.list_files import with_datasets
from shardkit.storage.list_objects import list_objects, whole_list
from shardkit.storage.local import writing
from shardkit.storage.refusals import CUT_SHORT, EXPIRED, Denied, Unanswered, strange
from shardkit.storage.requests import asking, repeated
from shardkit.tables.spill import NoRoom, batches_of, filtered, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa

    from shardkit.storage.locks import Held

T = TypeVar("T")

CONCURRENT_REQUESTS = 32
REMOVED_AT_ONCE = 1000  # objects: S3 takes no more with a request
WHOLE_BYTES = 8 << 20
LARGE_BYTES = 32 << 20
RANGE_BYTES = 8 << 20
RANGES_AT_ONCE = 4
SEVERAL_PARTS_BYTES = 5 << 20  # obstore uploads what is larger in several parts
_MAKING_SCRATCH = threading.Lock()
NOWHERE = "_shardkit/no-object-of-this-name"
PROVEN_FOR_S = 60.0
_PROVEN: dict[str, float] = {}  # when which bucket was last seen to be one
HIDDEN = r"(^|/)[._]"  # names that are no input
ANONYMOUS_HINT = "A public bucket can be read without credentials: set input.anonymous: true."
DENIED_HINT = (
    "Give yourself, or the job's role, the permission. If the bucket bills whoever reads it, set "
    "input.requester_pays: true; if it is public, input.anonymous: true."
)


def _empty(table: pa.Table) -> list[str]:
    """The keys of the objects of a listing that have no bytes."""
    import pyarrow.compute as pc

    from shardkit.tables.arrays import scalar

    nothing = scalar(0)
    found = (batch["key"].filter(pc.equal(batch["bytes"], nothing)) for batch in batches_of(table))
    return [key for keys in found for key in keys.to_pylist()]


def _dataset_folders(keys: pa.StringArray) -> list[str]:
    """The folders of which the state is among some keys."""
    import pyarrow.compute as pc

    states = keys.filter(pc.match_substring(keys, f"/{STATE_DIR}/"))
    folders = pc.replace_substring_regex(states, f"(?s)/{STATE_DIR}/.*", "").unique().to_pylist()
    return [folder for folder in folders if not re.search(HIDDEN, folder)]


def without_folders(table: pa.Table, folders: Iterable[str]) -> pa.Table:
    """A table in key order without what lies in some folders."""
    import numpy as np

    keys, wanted = table["key"], np.ones(len(table), bool)
    at = functools.partial(bisect.bisect_left, range(len(table)), key=lambda row: keys[row].as_py())
    for folder in folders:
        wanted[at(f"{folder}/") : at(f"{folder}0")] = False  # what comes next after a slash
    return filtered(table, wanted)


@dataclass(frozen=True)
class ObjectFolder(Folder):
    """A prefix of a bucket; ``prefix`` is empty or ends with a slash."""

    scheme: str
    bucket: str
    prefix: str
    access: Access

    @classmethod
    def of(cls, uri: str, access: Access) -> ObjectFolder:
        """The folder that ``uri`` names."""
        scheme, _, rest = uri.partition("://")
        bucket, _, path = rest.partition("/")
        path = path.strip("/")
        if not bucket:
            raise PipelineError(f"{uri} names no bucket.", hint=f"Write {scheme}://bucket/prefix.")
        if bucket.startswith("arn:"):
            raise PipelineError(
                f"{uri}: an access point is named by its alias here, not by its ARN.",
                hint="Write s3://ALIAS/prefix; aws s3control get-access-point shows it (it ends with -s3alias).",
            )
        return cls(scheme, bucket, f"{path}/" if path else "", access)

    @property
    def uri(self) -> str:  # type: ignore[override]  # read-only here
        """``s3://bucket/prefix``, without a slash at its end."""
        return f"{self.root}/{self.prefix}".rstrip("/")

    @property
    def session(self) -> Any:
        """The boto3 session that the folder was given, if it was."""
        return self.access.session

    @property
    def root(self) -> str:
        """The whole bucket's URI, without a slash at its end."""
        return f"{self.scheme}://{self.bucket}"

    @property
    def _opened(self) -> Bucket:
        return open_bucket(self.scheme, self.bucket, self.access)

    @property
    def _store(self) -> Any:
        return self._opened.store

    def _asking(self, key: str = "") -> contextlib.AbstractContextManager[None]:
        """What turns the errors of a request about an object into ours."""
        return asking(f"{self.uri}/{key}" if key else self.uri, self._opened.renew)

    def child(self, name: str) -> ObjectFolder:
        """The folder of that name in this one."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name.strip('/')}/")

    def encrypted(self, kms_key: str | None) -> ObjectFolder:
        """The same folder, with that key for what is written."""
        if kms_key is None or self.scheme != "s3":
            return self
        return dataclasses.replace(self, access=dataclasses.replace(self.access, kms_key=kms_key))

    @repeated
    def read(self, key: str) -> bytes:
        """An object's content."""
        with self._asking(key):
            return bytes(self._found(key).bytes())

    def _found(self, key: str) -> Any:
        """An object, of which what the store tells comes first; to be called within `_asking`."""
        found = self._store.get(self.prefix + key)
        self._check_told(key, found.meta)
        return found

    def _check_told(self, key: str, meta: Any) -> None:
        """See that a store has told of an object: all give an etag, and hardly any page on the way has one."""
        if not meta["e_tag"]:
            raise strange(f"{self.uri}/{key}", f"it has no etag, but {meta['size']:,} bytes")

    @repeated
    def prove(self) -> None:
        """See that it is a store that answers: such a one says of what nobody has made that it is not there.

        A page to sign in to a network, say, may look like a list without objects.
        """
        try:
            with self._asking(NOWHERE):
                found = self._store.get(self.prefix + NOWHERE)
        except FileNotFoundError as error:
            if self.scheme == "s3" and "<Code>" not in str(error.__cause__):
                raise strange(self.uri, "it tells no reason why an object is not there") from None
        except Denied:
            pass  # as who may not list is told
        else:
            raise strange(self.uri, f"it has {found.meta['size']:,} bytes for a name that nobody has given")

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """The content of several objects, read side by side."""
        if len(keys) < 2:
            return [self.read(key) for key in keys]
        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(keys))) as pool:
            return list(pool.map(self.read, keys))

    @repeated
    def write(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""
        with self._asking(key):
            opened = self._opened
            (opened.patient if len(data) > SEVERAL_PARTS_BYTES else opened.store).put(self.prefix + key, data)

    @repeated
    def state(self, key: str) -> State:
        """An object's etag and version."""
        try:
            return state_of(self._head(key))
        except FileNotFoundError:
            return {}

    @repeated
    def read_state(self, key: str) -> tuple[bytes | None, State]:
        """An object's content and its state."""
        try:
            with self._asking(key):
                found = self._found(key)
                return bytes(found.bytes()), state_of(found.meta)
        except FileNotFoundError:
            return None, {}

    def write_if(self, key: str, data: bytes, state: State) -> State | None:
        """Write an object by a conditional request; of several who know the same state, one does."""
        from obstore import exceptions

        try:
            return self._put_if(key, data, state)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError):
            there, now = self.read_state(key)
            return now if there == data else None

    @repeated
    def _put_if(self, key: str, data: bytes, state: State) -> State:
        with self._asking(key):
            opened = self._opened
            store = opened.patient if len(data) > SEVERAL_PARTS_BYTES else opened.store
            return state_of(store.put(self.prefix + key, data, mode=state or "create"))

    @repeated
    def size(self, key: str) -> int | None:
        """An object's size in bytes; None if it is not there."""
        try:
            return int(self._head(key)["size"])
        except FileNotFoundError:
            return None

    def _head(self, key: str) -> Any:
        """What the store tells of an object without giving it out."""
        try:
            with self._asking(key):
                meta = self._store.head(self.prefix + key)
                self._check_told(key, meta)
                return meta
        except StorageError as error:
            if isinstance(error, Denied) or (isinstance(error, Unanswered) and error.kind == EXPIRED):
                self._learn_why(key)
            raise

    def _learn_why(self, key: str) -> None:
        """Raise why a HEAD was refused, whose answer has no body to say so in: a GET of a byte is told."""
        with contextlib.suppress(FileNotFoundError), self._asking(key):
            self._store.get_range(self.prefix + key, start=0, end=1)

    @repeated
    def entries(self, prefix: str = "") -> list[Entry]:
        """The objects in the folder ``prefix`` and below, in key order."""
        start = self.prefix + (f"{prefix.strip('/')}/" if prefix else "")
        found: list[Entry] = []
        with asking(f"{self.root}/{start}", self._opened.renew):
            for page in whole_list(self._opened.patient, start):
                columns = (page[name].to_pylist() for name in ("path", "size", "e_tag", "last_modified"))
                for path, size, etag, moment in zip(*columns, strict=True):
                    found.append(Entry(path[len(self.prefix) :], size, (etag or "").strip('"'), moment.timestamp()))
        if not found:
            self._prove_lately()
        return sorted(found, key=lambda entry: entry.key)

    def _prove_lately(self) -> None:
        """As `prove`, unless that was done a moment ago."""
        proven = _PROVEN.get(self.root)
        if proven is None or time.monotonic() - proven > PROVEN_FOR_S:
            self.prove()
            _PROVEN[self.root] = time.monotonic()

    @repeated
    def children(self, key: str) -> list[str]:
        """The names of the folders in the folder ``key``."""
        start = self.prefix + (f"{key.strip('/')}/" if key else "")
        with asking(f"{self.root}/{start}", self._opened.renew):
            listed = self._opened.patient.list_with_delimiter(start or None)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in listed["common_prefixes"])

    @repeated
    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._asking(key):
            self._store.delete(self.prefix + key)

    def remove_all(self, key: str) -> None:
        """Remove all objects of the folder ``key``."""
        while paths := [self.prefix + entry.key for entry in self.entries(key)]:
            with contextlib.suppress(FileNotFoundError):  # another process has removed one; some stores end there
                self._remove(key, paths)
                return

    def remove_many(self, keys: Sequence[str], before: Callable[[], object]) -> None:
        """Remove objects, as many with a request as it takes."""
        for begin in range(0, len(keys), REMOVED_AT_ONCE):
            some = keys[begin : begin + REMOVED_AT_ONCE]
            before()
            try:
                self._remove(some[0], [self.prefix + key for key in some])
            except FileNotFoundError:  # another process has removed one; some stores end there
                for key in some:
                    before()
                    self.remove(key)

    def remove_remains(self) -> None:
        """There is nothing else in a bucket."""

    @repeated
    def _remove(self, key: str, paths: list[str]) -> None:
        with self._asking(key):
            self._opened.patient.delete(paths)

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

    @repeated
    def place(self, source: str, target: File) -> None:
        """Copy an object within the store."""
        to = target.folder
        if not isinstance(to, ObjectFolder) or to.root != self.root:
            raise StorageError(f"{self.uri}/{source} cannot be copied to {target}.", hint="They lie in two stores.")
        try:
            with asking(str(target), self._opened.renew):
                self._opened.patient.copy(self.prefix + source, to.prefix + target.key)
        except StorageError as error:
            if self.scheme != "s3" or not is_too_large(error):
                raise
            client = amazon_client(self.access, self._opened.place)
            copy_in_parts(client, self.bucket, self.prefix + source, to.prefix + target.key, self.access)

    @repeated
    def put_file(self, path: Path, key: str) -> None:
        """Upload a file, a large one in several parts at once."""
        with self._asking(key):
            opened = self._opened
            several = path.stat().st_size > SEVERAL_PARTS_BYTES
            (opened.patient if several else opened.store).put(self.prefix + key, path)

    def get_file(self, key: str, path: Path, *, etag: str | None = None, size: int | None = None) -> None:
        """Download an object, whole or not at all; a large one in several ranges at once."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not etag or size is None or size <= LARGE_BYTES:
            now, size = self._get_whole(key, path, etag)
            etag = etag or now
        if size > LARGE_BYTES:
            self._get_ranges(key, path, etag, size)

    @repeated
    def _get_whole(self, key: str, path: Path, etag: str | None) -> tuple[str, int]:
        """Download an object unless it is large; returns its etag and its size."""
        with self._asking(key):
            found = self._found(key)
            size, now = int(found.meta["size"]), (found.meta["e_tag"] or "").strip('"')
            if etag is not None and now != etag:
                self.prove()
                raise self._changed(key, etag)
            if size <= LARGE_BYTES:
                data = found.bytes()
                if len(data) != size:
                    raise Unanswered(f"{self.uri}/{key}: the answer was cut short.", kind=CUT_SHORT)
                with writing(path), open(path, "wb", buffering=0) as file:
                    file.write(data)
        return now, size

    def _get_ranges(self, key: str, path: Path, etag: str, size: int) -> None:
        """Download an object a range at a time; each request asks for the same etag."""
        from obstore import exceptions

        @repeated
        def get(file: int, start: int) -> None:
            end = min(start + RANGE_BYTES, size)
            options = {"range": (start, end)} | ({"if_match": f'"{etag}"'} if etag else {})
            with self._asking(key):
                data = self._store.get(self.prefix + key, options=options).bytes()
            if len(data) != end - start:
                raise Unanswered(f"{self.uri}/{key}: the answer was cut short.", kind=CUT_SHORT)
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

    @repeated
    def open(self, key: str) -> Any:
        """The object as Arrow reads it: a small one at once, of a large one the ranges that are asked for."""
        import pyarrow as pa

        with self._asking(key):
            found = self._found(key)
            size = found.meta["size"]
            if size <= WHOLE_BYTES:
                return pa.BufferReader(pa.py_buffer(found.bytes()))
        from shardkit.storage.arrow_files import as_file

        return as_file(self, key, size)

    @repeated
    def read_range(self, key: str, start: int, end: int) -> memoryview:
        """The bytes of an object from ``start`` up to ``end``."""
        with self._asking(key):
            return memoryview(self._store.get_range(self.prefix + key, start=start, end=end))

    def arrow(self) -> tuple[Any, str]:
        """Arrow's own file system for S3, which is the fastest; for other stores one that reads through this folder."""
        if self.scheme == "s3":
            return _amazon_in_arrow(self.bucket, self._opened), f"{self.bucket}/{self.prefix}".rstrip("/")
        from shardkit.storage.arrow_files import file_system

        return file_system(self), ""

    def objects(self, *, leave_out: Folder | None = None) -> pa.Table:
        """What lies under the prefix as input."""
        import pyarrow.compute as pc

        from shardkit.tables.arrays import texts

        try:
            datasets: set[str] = set()
            wanted = self._wanted(leave_out, datasets)
            table = without_folders(list_objects(self._opened.patient, self.prefix, self._ask, wanted), datasets)
            self.prove()
            markers = self._markers(_empty(table))
        except NoCredentials as error:
            raise PipelineError(error.message, hint=f"{error.hint} {ANONYMOUS_HINT}") from None
        except NoRoom:
            raise
        except StorageError as error:
            unclear = isinstance(error, Denied) and self.scheme == "s3" and self.access == Access(self.session)
            raise InputError(error.message, hint=DENIED_HINT if unclear else error.hint) from error
        if markers:
            those = texts(sorted(markers))
            table = filtered(table, ~values_of(table, lambda batch: pc.is_in(batch["key"], value_set=those)))
        if not len(table) and not datasets:
            raise InputError(
                f"The input {self.uri} holds no objects.", hint="Is the prefix right, with no typing error?"
            )
        return with_datasets(table, datasets)

    @repeated
    def _ask(self, request: Callable[[], T]) -> T:
        with self._asking():
            return request()

    def _wanted(self, leave_out: Folder | None, datasets: set[str]) -> Callable[[pa.StringArray], pa.BooleanArray]:
        """Tells which keys are input: not those of hidden names, nor those under another folder.

        Folders that keys show to be datasets are added to ``datasets``, but for this one and the one that is left out.
        """
        import pyarrow.compute as pc

        inside = ""
        if isinstance(leave_out, ObjectFolder) and leave_out.root == self.root:
            inside = leave_out.prefix[len(self.prefix) :] if leave_out.prefix.startswith(self.prefix) else ""

        def wanted(keys: pa.StringArray) -> pa.BooleanArray:
            shown = pc.invert(pc.match_substring_regex(keys, HIDDEN))
            if shown.true_count < len(keys):
                datasets.update(folder for folder in _dataset_folders(keys) if f"{folder}/" != inside)
            return pc.and_not(shown, pc.starts_with(keys, inside)) if inside else shown

        return wanted

    def _markers(self, empty: list[str]) -> set[str]:
        """Those of the empty objects that stand for folders: their keys end with a slash, which the list leaves out."""
        if not empty:
            return set()
        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(empty))) as pool:
            return {key for key, there in zip(empty, pool.map(self.exists, empty), strict=True) if not there}

    @contextlib.contextmanager
    def lock(self, key: str, busy: str, *, patience_s: float = 0.0) -> Iterator[Held]:
        """Hold a lease: an object that is written anew while the block runs."""
        lease = Lease(self._store, self.prefix + key, f"{self.uri}/{key}", busy, self._ask)
        lease.take(patience_s)
        try:
            yield lease
        finally:
            lease.let_go()

    def is_locked(self, key: str) -> bool:
        """Whether a lease seems to be held."""
        data, state = self.read_state(key)
        if data is None:
            return False
        seen(f"{self.uri}/{key}", state)
        return is_held(data)


def _amazon_in_arrow(name: str, bucket: Bucket) -> Any:
    """Arrow's S3 file system for a bucket, with the credentials that there are now."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options: dict[str, Any] = {"retry_strategy": AwsStandardS3RetryStrategy(max_attempts=10)}
    if (place := bucket.place) is not None:
        scheme, _, host = place.endpoint.partition("://")
        options |= {"region": place.region, "endpoint_override": host.removeprefix(f"{name}."), "scheme": scheme}
        options["force_virtual_addressing"] = place.virtual
    if bucket.credentials is None:
        return S3FileSystem(anonymous=True, **options)
    now = bucket.credentials()
    keys = {
        "access_key": now["access_key_id"],
        "secret_key": now["secret_access_key"],
        "session_token": now["token"],
    }
    return S3FileSystem(**keys, **options)


@functools.lru_cache(maxsize=1)
def _scratch_of(pid: int) -> tempfile.TemporaryDirectory[str]:  # noqa: ARG001  a child process has its own
    return tempfile.TemporaryDirectory(prefix="shardkit-")


def _scratch() -> Path:
    """A folder of this process for files on their way; it goes with the process."""
    with _MAKING_SCRATCH:  # of two threads that come first, each would make one, and one of these would go at once
        return Path(_scratch_of(os.getpid()).name)
