"""Opens obstore's stores: one bucket of S3, of Google's or Azure's storage, or of this process's memory.

For S3, a boto3 session gives the endpoint, region and credentials; the other storages read the environment, as their
own tools do. Each bucket is opened twice. One store repeats nothing, so that we see, count and repeat what fails. The
other is for calls that make many requests (lists, uploads in several parts) and repeats by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from shardkit.errors import PipelineError
from shardkit.storage.aws_locations import Location, aws_settings, find_bucket, s3_client, trusted
from shardkit.storage.interruption import watched
from shardkit.storage.schemes import MEMORY, STORAGES

if TYPE_CHECKING:
    from shardkit.storage.base import Access

TIMEOUT = "120s"  # for one request, its body included
ONCE = {"max_retries": 0, "retry_timeout": timedelta(seconds=60)}
REPEATED = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}  # throttling, 5xx, lost connections
# obstore asks for credentials again when these are near their end, at most every 0.1 s. boto3 keeps them and renews
# them in time, so there is no need for a second cache.
CREDENTIALS_S = 1.0
# What boto3 reads if it gets no session; a notebook may change it at any time. Likewise for the other stores.
SURROUNDINGS = (
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
)
_NAMES = tuple(map(os.fsencode, SURROUNDINGS))  # each request looks at them, and bytes need no decoding
_MAKING = threading.Lock()
_IN_MEMORY: dict[str, Any] = {}


class NoCredentials(PipelineError):
    """There is nothing to sign requests with."""


@dataclass(frozen=True)
class Bucket:
    """A bucket: the store that repeats nothing, and the one that repeats by itself.

    For S3, also the credentials (None: nothing is signed) and the location.
    """

    store: Any
    patient: Any
    credentials: Credentials | None = None
    location: Location | None = None

    def renew(self) -> None:
        """Look the credentials up again, if there are any."""
        if self.credentials is not None:
            self.credentials.renew()


class _Keys(NamedTuple):
    """Credentials that the environment names."""

    access_key: str
    secret_key: str
    token: str | None

    @classmethod
    def named(cls) -> _Keys | None:
        """Those that botocore, which takes 0.1 s to load, would take first too; None if botocore has to look."""
        access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not access or not secret or "AWS_CREDENTIAL_EXPIRATION" in os.environ:
            return None
        return cls(access, secret, os.environ.get("AWS_SESSION_TOKEN") or os.environ.get("AWS_SECURITY_TOKEN"))

    def __repr__(self) -> str:
        return "<credentials of the environment>"  # a traceback must not print them

    def get_frozen_credentials(self) -> _Keys:
        """The same method as that of botocore's credentials."""
        return self


class Credentials:
    """Gives obstore the credentials for S3 that a boto3 session has at this moment."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._credentials = self._look_up()

    def _look_up(self) -> Any:
        if self._session is None and (named := _Keys.named()) is not None:
            return named
        import botocore.session  # loads in a third of the time of boto3, and follows the same settings

        return (self._session or botocore.session.get_session()).get_credentials()

    @property
    def missing(self) -> bool:
        """Whether there are none."""
        return self._credentials is None

    def renew(self) -> None:
        """Look at the environment and the files again; a session of the user renews its own."""
        if self._session is None:
            self._credentials = self._look_up() or self._credentials

    def __call__(self) -> dict[str, Any]:
        """The keys, as obstore takes them."""
        now = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(timezone.utc) + timedelta(seconds=CREDENTIALS_S),
        }


def open_bucket(scheme: str, name: str, access: Access) -> Bucket:
    """A bucket, the same for all threads.

    Raises:
        PipelineError: there are no credentials for it, or the settings make no sense.
    """
    with _MAKING:
        return _opened(scheme, name, access, _surroundings(access.session))


def _surroundings(session: Any) -> int:
    """A number that changes with the environment: a traceback must not print the keys themselves."""
    return hash(tuple(map(os.environb.get, _NAMES))) if session is None else 0


def get_ready(scheme: str) -> None:
    """Do the slowest part of opening a bucket ahead of time, before its name or its address is clear.

    Raises:
        LookupError: there are no credentials for S3, which a public bucket does not need.
    """
    if scheme not in STORAGES.own:
        return
    import obstore.store  # noqa: F401  only to have it

    if scheme == "s3":
        _credentials(None, _surroundings(None))


def located(uri: str, access: Access) -> Access:
    """How another process can reach what this one can, without finding out again where a bucket of S3 is.

    Raises:
        PipelineError: as `open_bucket`.
    """
    scheme, _, rest = uri.partition("://")
    if scheme != "s3":
        return access
    location = open_bucket(scheme, rest.partition("/")[0], access).location
    if location is None:
        return access
    return dataclasses.replace(access, region=location.region, endpoint=location.endpoint, virtual=location.virtual)


@functools.lru_cache(maxsize=64)
def _opened(scheme: str, name: str, access: Access, surroundings: int) -> Bucket:  # noqa: ARG001  a key of the cache
    if scheme == "s3":
        return _amazon(name, access)
    if scheme == MEMORY:
        from obstore.store import MemoryStore

        store = _IN_MEMORY.setdefault(name, MemoryStore())
        return Bucket(store, store)
    make = _google if scheme == "gs" else _azure
    try:
        return Bucket(watched(make(name, access, ONCE)), watched(make(name, access, REPEATED)))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PipelineError(
            f"{scheme}://{name} cannot be reached: {first}.",
            hint="Its account and credentials are found in the environment; see docs/running.md.",
        ) from error


def _amazon(bucket: str, access: Access) -> Bucket:
    """A bucket of S3, or of a server that speaks it."""
    from obstore.store import S3Store

    with aws_settings(f"s3://{bucket}"):
        if access.region is None or access.endpoint is None:
            location = find_bucket(bucket, access, _surroundings(access.session))
        else:
            location = Location(access.region, access.endpoint, access.virtual)
        how = {"allow_http": location.endpoint.startswith("http://"), "timeout": TIMEOUT} | trusted(location.endpoint)
    options: dict[str, Any] = {"client_options": how}
    # Set everything: obstore reads what is not set from the environment, and fails on values there that it cannot use.
    config: dict[str, Any] = {
        "region": location.region,
        "endpoint": location.endpoint,
        "aws_endpoint_url_s3": location.endpoint,  # that of the environment would override the one above
        "virtual_hosted_style_request": location.virtual,
    }
    credentials = None
    if access.anonymous:
        config["skip_signature"] = True
    else:
        try:
            with aws_settings(f"s3://{bucket}"):
                credentials = _credentials(access.session, _surroundings(access.session))
            options["credential_provider"] = credentials
        except LookupError:
            raise NoCredentials(
                f"There are no AWS credentials for s3://{bucket}.",
                hint="Sign in (aws configure, aws sso login), set AWS_PROFILE, or give the job's role access.",
            ) from None
    if access.requester_pays:
        config["request_payer"] = True
    if access.kms_key is not None:
        config |= {"server_side_encryption": "aws:kms", "sse_kms_key_id": access.kms_key}
    once, patient = (S3Store(bucket, config=config, retry_config=how, **options) for how in (ONCE, REPEATED))  # type: ignore[arg-type]  # plain dicts
    return Bucket(watched(once), watched(patient), credentials, location)


def amazon_client(access: Access, location: Location | None) -> Any:
    """boto3's client for a bucket of S3, for what obstore cannot do."""
    return s3_client(
        access.session, access.anonymous, _surroundings(access.session), location.region if location else None
    )


@functools.lru_cache(maxsize=64)
def _credentials(session: Any, surroundings: int) -> Credentials:  # noqa: ARG001  a key of the cache
    credentials = Credentials(session)
    if credentials.missing:
        raise LookupError  # not cached: there may be some the next time
    return credentials


def _google(bucket: str, access: Access, retries: dict[str, Any]) -> Any:
    """A bucket of Google Cloud Storage, with the application default credentials."""
    from obstore.store import GCSStore

    config: dict[str, Any] = {"skip_signature": True} if access.anonymous else {}
    options = {"allow_http": _is_plain("GOOGLE_BASE_URL"), "timeout": TIMEOUT}
    return GCSStore(bucket, config=config, client_options=options, retry_config=retries)  # type: ignore[arg-type]  # plain dicts


def _azure(name: str, access: Access, retries: dict[str, Any]) -> Any:
    """A container of Azure Blob Storage; ``name`` is the container's, or ``container@account.dfs.core.windows.net``."""
    from obstore.store import AzureStore

    container, _, host = name.partition("@")
    config: dict[str, Any] = {"skip_signature": True} if access.anonymous else {}
    if host:
        config["account_name"] = host.partition(".")[0]
    options = {"allow_http": _is_plain("AZURE_STORAGE_ENDPOINT"), "timeout": TIMEOUT}
    return AzureStore(container, config=config, client_options=options, retry_config=retries)  # type: ignore[arg-type]  # plain dicts


def _is_plain(variable: str) -> bool:
    """Whether the environment names a server without TLS, such as one on this machine."""
    return os.environ.get(variable, "").startswith("http://")
