"""Folders in object stores: prefixes of buckets, reached through obstore.

A missing object raises FileNotFoundError; every other failure raises a StorageError that names the object.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from shardkit.errors import InputError, ObjectChanged, PipelineError, StorageError
from shardkit.storage.base import Access, Entry, File, Folder
from shardkit.storage.buckets import NoCredentials, amazon_client
from shardkit.storage.large_copy import copy_in_parts, is_too_large
from shardkit.storage.lease import Lease, is_held, seen
from shardkit.storage.list_files import with_datasets
from shardkit.storage.list_objects import list_objects, whole_list
from shardkit.storage.local import writing
from shardkit.storage.object_contents import CONCURRENT_REQUESTS, SEVERAL_PARTS_BYTES, ObjectContents
from shardkit.storage.object_keys import wanted_keys, without_bytes, without_folders
from shardkit.storage.refusals import CUT_SHORT, Denied, Unanswered
from shardkit.storage.requests import asking, repeated
from shardkit.storage.scratch import scratch
from shardkit.tables.spill import NoRoom, filtered, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from shardkit.storage.locks import Held

T = TypeVar("T")

REMOVED_AT_ONCE = 1000  # objects: S3 takes no more in one request
WHOLE_BYTES = 8 << 20
LARGE_BYTES = 32 << 20
RANGE_BYTES = 8 << 20
RANGES_AT_ONCE = 4
PROVEN_FOR_S = 60.0
_PROVEN: dict[str, float] = {}  # when each bucket last proved to be one
ANONYMOUS_HINT = "A public bucket can be read without credentials: set input.anonymous: true."
DENIED_HINT = (
    "Give yourself, or the job's role, the permission. If the bucket bills its readers, set "
    "input.requester_pays: true; if it is public, input.anonymous: true."
)


@dataclass(frozen=True)
class ObjectFolder(ObjectContents):
    """A prefix of a bucket as a folder."""

    @repeated
    def entries(self, prefix: str = "") -> list[Entry]:
        """The objects in the folder ``prefix`` and below, in key order."""
        start = self.prefix + (f"{prefix.strip('/')}/" if prefix else "")
        entries: list[Entry] = []
        with asking(f"{self.root}/{start}", self._opened.renew):
            for page in whole_list(self._opened.patient, start):
                columns = [page[name].to_pylist() for name in ("path", "size", "e_tag")]
                columns.append(page["last_modified"].cast("int64").to_pylist())  # as times they would load pandas
                for path, size, etag, moment_us in zip(*columns, strict=True):
                    entries.append(Entry(path[len(self.prefix) :], size, (etag or "").strip('"'), moment_us / 1e6))
        if not entries:
            self._prove_lately()
        return sorted(entries, key=lambda entry: entry.key)

    def _prove_lately(self) -> None:
        """Like `prove`, but only if that was not done a moment ago."""
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
        """Remove objects, as many per request as the store takes."""
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
        """Do nothing: there is nothing else in a bucket."""

    @repeated
    def _remove(self, key: str, paths: list[str]) -> None:
        with self._asking(key):
            self._opened.patient.delete(paths)

    def remove_empty_parents(self, key: str) -> None:
        """Do nothing: a prefix without objects does not exist."""

    def begin(self, key: str) -> Path:
        """A new file in the scratch folder of this process."""
        path = scratch() / uuid.uuid4().hex / key.rpartition("/")[2]
        with writing(path):
            path.parent.mkdir()
        return path

    def finish(self, key: str, path: Path) -> None:
        """Upload the file and remove it here."""
        self.put_file(path, key)
        path.unlink()
        path.parent.rmdir()

    @repeated
    def copy_to(self, source: str, target: File) -> None:
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
            client = amazon_client(self.access, self._opened.location)
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
            answer = self._get(key)
            size, now = int(answer.meta["size"]), (answer.meta["e_tag"] or "").strip('"')
            if etag is not None and now != etag:
                self.prove()
                raise self._changed(key, etag)
            if size <= LARGE_BYTES:
                data = answer.bytes()
                if len(data) != size:
                    raise Unanswered(f"{self.uri}/{key}: the answer was cut short.", kind=CUT_SHORT)
                with writing(path), open(path, "wb", buffering=0) as file:
                    file.write(data)
        return now, size

    def _get_ranges(self, key: str, path: Path, etag: str, size: int) -> None:
        """Download an object a range at a time; each request asks for the same etag."""

        def get(file: int, start: int) -> None:
            data = self.read_unchanged(key, start, min(start + RANGE_BYTES, size), etag=etag)
            with writing(path):
                os.pwrite(file, data, start)

        with writing(path):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
                list(pool.map(lambda start: get(file, start), range(0, size, RANGE_BYTES)))
        finally:
            os.close(file)

    def read_unchanged(self, key: str, start: int, end: int, *, etag: str | None) -> memoryview:
        """The bytes of an object from ``start`` up to ``end``; the request asks for the etag."""
        from obstore import exceptions

        try:
            return self._get_range(key, start, end, etag)
        except exceptions.PreconditionError:
            raise self._changed(key, str(etag)) from None

    @repeated
    def _get_range(self, key: str, start: int, end: int, etag: str | None) -> memoryview:
        options = {"range": (start, end)} | ({"if_match": f'"{etag}"'} if etag else {})
        with self._asking(key):
            data = self._store.get(self.prefix + key, options=options).bytes()
        if len(data) != end - start:
            raise Unanswered(f"{self.uri}/{key}: the answer was cut short.", kind=CUT_SHORT)
        return memoryview(data)

    def _changed(self, key: str, etag: str) -> ObjectChanged:
        return ObjectChanged(
            f"{self.uri}/{key} has changed since it was listed (its etag was {etag}).",
            hint="Start a new run, which lists the input again.",
        )

    @repeated
    def open(self, key: str) -> Any:
        """The object as a file for Arrow: a small one is read at once, a large one range by range as needed."""
        import pyarrow as pa

        with self._asking(key):
            answer = self._get(key)
            size = answer.meta["size"]
            if size <= WHOLE_BYTES:
                return pa.BufferReader(pa.py_buffer(answer.bytes()))
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
            from shardkit.storage.arrow_files import amazon_file_system

            return amazon_file_system(self.bucket, self._opened), f"{self.bucket}/{self.prefix}".rstrip("/")
        from shardkit.storage.arrow_files import file_system

        return file_system(self), ""

    def objects(self, *, leave_out: Folder | None = None) -> pa.Table:
        """The objects under the prefix as input."""
        import pyarrow.compute as pc

        from shardkit.tables.arrays import texts

        try:
            datasets: set[str] = set()
            wanted = wanted_keys(self._inside(leave_out), datasets)
            table = without_folders(list_objects(self._opened.patient, self.prefix, self._ask, wanted), datasets)
            self.prove()
            markers = self._markers(without_bytes(table))
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

    def _inside(self, other: Folder | None) -> str:
        """The path of another folder within this one; empty if it is not in this one."""
        if isinstance(other, ObjectFolder) and other.root == self.root and other.prefix.startswith(self.prefix):
            return other.prefix[len(self.prefix) :]
        return ""

    def _markers(self, empty: list[str]) -> set[str]:
        """The empty objects that stand for folders: their keys end with a slash, which the list leaves out."""
        if not empty:
            return set()
        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(empty))) as pool:
            return {key for key, there in zip(empty, pool.map(self.exists, empty), strict=True) if not there}

    @contextlib.contextmanager
    def lock(self, key: str, busy: str, *, patience_s: float = 0.0) -> Iterator[Held]:
        """Hold a lease: an object that is rewritten while the block runs."""
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
