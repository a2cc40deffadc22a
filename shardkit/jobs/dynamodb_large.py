"""Requests that are too large for an item of DynamoDB: they are in S3, and the item has their place and digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shardkit.jobs.calls import EXPECTED, words
from shardkit.jobs.dynamodb_items import COLD_BYTES, Item, attr, packed, request_text, text_of, unpacked
from shardkit.jobs.errors import JobError, StoreError

if TYPE_CHECKING:
    from shardkit.jobs.dynamodb_calls import Table

SHOWN = ("request", "request_at", "request_digest")  # where an item has its request


class Requests:
    """Puts requests into items or into S3, and reads them.

    Args:
        table: The table.
        prefix: Where in S3 the large ones go, ``s3://bucket/prefix``; empty if nowhere.
    """

    def __init__(self, table: Table, prefix: str) -> None:
        if prefix and not (prefix.startswith("s3://") and urlsplit(prefix).netloc):
            raise JobError(f"{prefix!r} is no place for large requests.", hint="Give s3://BUCKET/PREFIX.")
        self._table, self._prefix = table, prefix.rstrip("/")

    def attributes(self, job_id: str, text: str, *, besides: int) -> Item:
        """The attributes of an item that hold the request, or say where it is.

        Args:
            job_id: Whose request it is.
            text: The request as JSON.
            besides: The bytes of everything else that is written once.

        Raises:
            StoreError: It is too large, and there is no place for large ones.
        """
        data = packed(text)
        if len(data) + besides <= COLD_BYTES:
            return {"request": {"B": data}}
        if not self._prefix:
            raise StoreError(
                f"The request of job {job_id} is {len(text):,} bytes ({len(data):,} packed), more than an item of "
                f"DynamoDB takes.",
                hint=f"Name a place in S3 for such requests: dynamodb://{self._table.name}?requests=s3://BUCKET/PREFIX.",
            )
        digest = hashlib.sha256(data).hexdigest()
        uri = f"{self._prefix}/{job_id}-{digest[:16]}.json.zlib"
        bucket, key = _split(uri)
        try:
            self._table.client("s3").put_object(Bucket=bucket, Key=key, Body=data)
        except EXPECTED as error:
            raise StoreError(
                f"The request of job {job_id} could not be written to {uri}: {words(error)}.",
                hint="See that the bucket is there and that this role may put objects into it.",
            ) from error
        return {"request_at": attr(uri), "request_digest": attr(digest)}

    def text(self, item: Item) -> str:
        """The request of an item, as JSON.

        Raises:
            StoreError: It is not where it was put, or has been changed.
        """
        if "request" in item:
            return request_text(item)
        uri = text_of(item, "request_at")
        bucket, key = _split(uri)
        try:
            data = self._table.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        except EXPECTED as error:
            raise StoreError(
                f"The request of an item of table {self._table.name} could not be read from {uri}: {words(error)}.",
                hint="See that it was not deleted, and that this role may get it.",
            ) from error
        if hashlib.sha256(data).hexdigest() != text_of(item, "request_digest"):
            raise StoreError(f"{uri} is not what was written there as a request.", hint="Put the object back.")
        return unpacked(data)


def _split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")
