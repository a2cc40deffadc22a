"""Objects under a prefix of a bucket, read and written one by one, with errors that name the object and the cure."""

from __future__ import annotations

import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, StorageError
from shardkit.storage.base import Access, Entry, Folder, State
from shardkit.storage.buckets import Bucket, open_bucket
from shardkit.storage.lease import state_of
from shardkit.storage.refusals import EXPIRED, Denied, Unanswered, strange
from shardkit.storage.requests import asking, repeated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

CONCURRENT_REQUESTS = 32
SEVERAL_PARTS_BYTES = 5 << 20  # obstore uploads what is larger in several parts
NOWHERE = "_shardkit/no-object-of-this-name"


@dataclass(frozen=True)
class ObjectContents(Folder):
    """A prefix of a bucket; ``prefix`` is empty or ends with a slash."""

    scheme: str
    bucket: str
    prefix: str
    access: Access

    @classmethod
    def of(cls, uri: str, access: Access) -> Self:
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
        """The boto3 session of the folder, if it has one."""
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
        """A block that turns the errors of a request about an object into ours."""
        return asking(f"{self.uri}/{key}" if key else self.uri, self._opened.renew)

    def child(self, name: str) -> Self:
        """The folder of that name in this one."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name.strip('/')}/")

    def encrypted(self, kms_key: str | None) -> Self:
        """The same folder, which encrypts what is written with that key."""
        if kms_key is None or self.scheme != "s3":
            return self
        return dataclasses.replace(self, access=dataclasses.replace(self.access, kms_key=kms_key))

    @repeated
    def read(self, key: str) -> bytes:
        """An object's content."""
        with self._asking(key):
            return bytes(self._get(key).bytes())

    def _get(self, key: str) -> Any:
        """An object whose metadata is here and whose bytes are still to come; call it within `_asking`."""
        answer = self._store.get(self.prefix + key)
        self._check_etag(key, answer.meta)
        return answer

    def _check_etag(self, key: str, meta: Any) -> None:
        """Check that the answer comes from a store: every store sends an etag, and hardly any other page has one."""
        if not meta["e_tag"]:
            raise strange(f"{self.uri}/{key}", f"it has no etag, but {meta['size']:,} bytes")

    @repeated
    def prove(self) -> None:
        """Check that a store answers: asked for an object that nobody has made, a store says that it is not there.

        The sign-in page of a network, for instance, may look like a list without objects.
        """
        try:
            with self._asking(NOWHERE):
                answer = self._store.get(self.prefix + NOWHERE)
        except FileNotFoundError as error:
            if self.scheme == "s3" and "<Code>" not in str(error.__cause__):
                raise strange(self.uri, "it gives no reason why an object is not there") from None
        except Denied:
            pass  # the answer to callers who may not list
        else:
            raise strange(self.uri, f"it has {answer.meta['size']:,} bytes for a name that nobody has used")

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
                answer = self._get(key)
                return bytes(answer.bytes()), state_of(answer.meta)
        except FileNotFoundError:
            return None, {}

    def write_if(self, key: str, data: bytes, state: State) -> State | None:
        """Write an object by a conditional request; of several callers with the same state, one succeeds."""
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

    @repeated
    def look(self, key: str) -> Entry | None:
        """An object as a listing has it; None if it is not there."""
        try:
            meta = self._head(key)
        except FileNotFoundError:
            return None
        return Entry(key, int(meta["size"]), (meta["e_tag"] or "").strip('"'), meta["last_modified"].timestamp())

    def _head(self, key: str) -> Any:
        """The metadata of an object, without its bytes."""
        try:
            with self._asking(key):
                meta = self._store.head(self.prefix + key)
                self._check_etag(key, meta)
                return meta
        except StorageError as error:
            if isinstance(error, Denied) or (isinstance(error, Unanswered) and error.kind == EXPIRED):
                self._learn_why(key)
            raise

    def _learn_why(self, key: str) -> None:
        """Raise the reason why a HEAD was refused. Its answer has no body, so get one byte: that answer has one."""
        with contextlib.suppress(FileNotFoundError), self._asking(key):
            self._store.get_range(self.prefix + key, start=0, end=1)
