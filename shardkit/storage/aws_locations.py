"""Where a bucket of S3 is: what boto3 resolves of endpoint, region and address is used as it is.

China, GovCloud, FIPS, dual-stack, interface endpoints of a VPC, acceleration: all that the environment, the profile and
the session say of S3 ends in the URL that botocore would ask, and that URL is ours.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from shardkit.errors import PipelineError
from shardkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.storage.base import Access

AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
CONNECT_S, READ_S, TRIES = 5, 20, 3  # for the request that asks where a bucket is


class Location(NamedTuple):
    """Where a bucket is: its region, and the URL for requests; ``virtual`` says that the URL is the bucket's own."""

    region: str
    endpoint: str
    virtual: bool = False


def session_of(folder: Any, about: str) -> Any:
    """The boto3 session with which a folder is reached, for requests to other services; the default one if it has none.

    Raises:
        PipelineError: botocore cannot use its settings; the message says what they are ``about``.
    """
    import boto3

    with aws_settings(about):
        return getattr(folder, "session", None) or boto3.Session()


class Reach(NamedTuple):
    """How a folder in S3 is reached: what another library has to be given; None is what the library finds by itself."""

    region: str | None
    endpoint: str | None
    access_key: str | None = None
    secret_key: str | None = None
    token: str | None = None


def reach_of(folder: Any, about: str) -> Reach:
    """How shardkit reaches a folder in S3, for a library that asks S3 itself; credentials stay in memory.

    Raises:
        PipelineError: as for `session_of` and `named_endpoint`.
    """
    session = session_of(folder, about)
    with aws_settings(about):
        credentials = session.get_credentials()
    reach = Reach(session.region_name, named_endpoint())
    if credentials is None:
        return reach
    keys = credentials.get_frozen_credentials()
    return reach._replace(access_key=keys.access_key, secret_key=keys.secret_key, token=keys.token)


@contextlib.contextmanager
def aws_settings(about: str) -> Iterator[None]:
    """Turn botocore's errors about settings that it cannot use into an error of ours, which names their purpose."""
    try:
        yield
    except LookupError:
        raise
    except (OSError, ValueError) as error:
        raise unusable(about, error) from error
    except Exception as error:
        if not is_of_boto3(error):
            raise
        raise unusable(about, error) from error


def is_of_boto3(error: BaseException) -> bool:
    """Whether an error is one of botocore's or boto3's own."""
    return type(error).__module__.startswith(("botocore.", "boto3."))


def unusable(about: str, error: Exception) -> PipelineError:
    """The error about settings that botocore cannot use."""
    said = masked(str(error)).strip().rstrip(".")
    return PipelineError(
        f"{about} cannot be reached with the AWS settings that there are: {said}.",
        hint="Look at the AWS_* variables, ~/.aws/config and ~/.aws/credentials (aws configure list shows them).",
    )


def find_bucket(bucket: str, access: Access, surroundings: int) -> Location:
    """Where a bucket is; ``surroundings`` is a number that changes with the environment."""
    named = named_endpoint() if access.session is None else None
    if named is not None and not is_amazon(named) and not _has_settings_of_s3():
        return Location(os.environ.get("AWS_DEFAULT_REGION") or _configured_region() or "us-east-1", named)
    client = s3_client(access.session, access.anonymous, surroundings)
    if is_amazon(client.meta.endpoint_url):
        region = bucket_region(client, bucket)
        if region != client.meta.region_name:
            client = s3_client(access.session, access.anonymous, surroundings, region)
    return Location(client.meta.region_name, *_address(client, bucket))


def is_amazon(endpoint: str) -> bool:
    """Whether a URL is one of Amazon's own."""
    return (urlsplit(endpoint).hostname or "").endswith(AMAZON)


def named_endpoint() -> str | None:
    """The URL of S3 in the environment, which overrides that of a file; no client is needed to find it.

    Raises:
        PipelineError: it is no URL.
    """
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    variable = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if variable is None:
        return None
    named = os.environ[variable].strip()
    if not _is_url(named):
        raise PipelineError(
            f"{variable} is {masked(named)!r}, which is no URL of a server.",
            hint=f"Write it with http:// or https:// before the host, such as {variable}=http://localhost:9000.",
        )
    return named.rstrip("/")


def _is_url(text: str) -> bool:
    with contextlib.suppress(ValueError):
        parts = urlsplit(text)
        _ = parts.port  # or it is none
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and not set(text) & set(' \t\n<>"')
    return False


def _has_settings_of_s3() -> bool:
    """Whether the file with the profiles may say how to address S3; a look costs less than botocore does."""
    path = Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    with contextlib.suppress(OSError):
        text = path.read_text(errors="replace")
        return any(words in text for words in ("addressing_style", "ca_bundle", "_endpoint"))
    return False


def _configured_region() -> str | None:
    import botocore.session

    region: str | None = botocore.session.get_session().get_config_variable("region")
    return region


@functools.lru_cache(maxsize=8)
def s3_client(session: Any, anonymous: bool, surroundings: int, region: str | None = None) -> Any:  # noqa: ARG001, FBT001  keys of the cache
    """boto3's client for S3, which takes 0.1 s of CPU and 20 MB to make."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = session or boto3.Session()
    config = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"total_max_attempts": TRIES})
    if anonymous:
        config = config.merge(Config(signature_version=UNSIGNED))
    return session.client("s3", region_name=region or session.region_name or "us-east-1", config=config)


def bucket_region(client: Any, bucket: str) -> str:
    """The region of a bucket, which need not be the session's; the session's if S3 does not say."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:  # even a refusal names it
        answer = error.response
    except BotoCoreError:
        answer = {}
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region") or client.meta.region_name)


def _address(client: Any, bucket: str) -> tuple[str, bool]:
    """The URL that a client would use for a bucket, and whether it is the bucket's own; makes no request."""
    asked: list[str] = []

    def note(params: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        asked.append(params["url"])
        return SimpleNamespace(status_code=200), {}

    client.meta.events.register_first("before-call.s3.HeadBucket", note)
    try:
        client.head_bucket(Bucket=bucket)
    finally:
        client.meta.events.unregister("before-call.s3.HeadBucket", note)
    url = asked[0].partition("?")[0].rstrip("/")
    return (url.removesuffix(f"/{bucket}"), False) if url.endswith(f"/{bucket}") else (url, True)


def trusted(endpoint: str) -> dict[str, str]:
    """The certificates that a client trusts beside the system's, from the same settings as boto3."""
    bundle = os.environ.get("AWS_CA_BUNDLE") if endpoint.startswith("https://") else None
    if not bundle:
        return {}
    try:
        return {"root_certificate": Path(bundle).read_text(encoding="ascii", errors="replace")}
    except OSError as error:
        raise PipelineError(
            f"AWS_CA_BUNDLE names {bundle}, which cannot be read: {error.strerror}.",
            hint="Set it to the file with your authority's certificates, or unset it.",
        ) from None
