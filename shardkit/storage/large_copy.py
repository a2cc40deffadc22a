"""Copies objects that are too large for one copy request of S3 (over 5 GiB): within S3, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError

if TYPE_CHECKING:
    from shardkit.storage.base import Access

PART_BYTES = 256 << 20
TOO_LARGE = ("InvalidRequest", "EntityTooLarge", "maximum allowable size")


def is_too_large(error: StorageError) -> bool:
    """Whether S3 has refused a copy because of the object's size."""
    return any(word in error.message for word in TOO_LARGE)


def copy_in_parts(client: Any, bucket: str, source: str, target: str, access: Access) -> None:
    """Copy an object within a bucket of S3; it appears whole or not at all.

    Raises:
        StorageError: it could not be copied.
    """
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import BotoCoreError, ClientError

    extra: dict[str, Any] = {"RequestPayer": "requester"} if access.requester_pays else {}
    if access.kms_key is not None:
        extra |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": access.kms_key}
    config = TransferConfig(multipart_threshold=1, multipart_chunksize=PART_BYTES)
    try:
        client.copy({"Bucket": bucket, "Key": source}, bucket, target, ExtraArgs=extra, Config=config)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(
            f"s3://{bucket}/{source} cannot be copied to s3://{bucket}/{target} in parts: {error}.",
            hint="What was committed is kept; resume the run when this is mended.",
        ) from error
