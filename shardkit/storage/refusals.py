"""Turns a store's refusals and failures into errors of ours: each cause has its own cure."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from shardkit.errors import ObjectRefused, StorageError
from shardkit.masking import masked

THROTTLED, SERVER_ERROR, TIMED_OUT = "throttled", "server_error", "timed_out"
LOST, UNREACHABLE, CUT_SHORT, EXPIRED, STRANGE = "lost", "unreachable", "cut_short", "expired", "strange"
CONDITIONS = ("PreconditionError", "AlreadyExistsError", "NotModifiedError")

THROTTLING = {
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "ServerBusy",
}
EXPIRY = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
TIME_OUTS = {"RequestTimeout", "OperationTimedOut"}
NO_BUCKET = {"NoSuchBucket": "bucket", "ContainerNotFound": "container"}

RESUME_HINT = "What was committed is kept; resume the run when the storage can be reached."
SIGN_IN_HINT = "Sign in again (such as aws sso login), then resume the run: what was committed is kept."
PERMISSION_HINT = "Give yourself, or the job's role, the permission."
ODD_KEY_HINT = (
    "Keys with // in them, with . or .. between two slashes or with control characters cannot be read: rename these "
    "objects, or choose an input without them."
)
REGION_HINT = "Set AWS_DEFAULT_REGION, or the region of your profile, to that of the bucket."
STRANGE_HINT = (
    "What answers there is no object store: a proxy, or a page to sign in to the network, may be in between. Look at "
    "the endpoint's URL and at HTTPS_PROXY and NO_PROXY, then resume the run: what was committed is kept."
)


class Cure(NamedTuple):
    """What is wrong, in words, and what to do about it."""

    problem: str
    hint: str


# About the caller and its settings: repeating the request will not help.
REFUSALS = {
    "InvalidAccessKeyId": Cure(
        "the access key is not known there",
        "Look at AWS_ACCESS_KEY_ID, or at the key of your profile, for a typing error; or the key has been deleted, or "
        "is of another service than the endpoint's.",
    ),
    "SignatureDoesNotMatch": Cure(
        "the secret key does not belong to the access key",
        "Look at AWS_SECRET_ACCESS_KEY, or at the secret of your profile: was it copied whole?",
    ),
    "InvalidToken": Cure(
        "the session token does not belong to the access key",
        "Look at AWS_SESSION_TOKEN: set it again together with both keys, or unset it if the keys need none.",
    ),
    "RequestTimeTooSkewed": Cure(
        "the clock of this machine is wrong",
        "Set this machine's clock (timedatectl set-ntp true, or restart the virtual machine), then go on.",
    ),
    "RequestInTheFuture": Cure("the clock of this machine is wrong", "Set this machine's clock, then go on."),
    "AuthorizationHeaderMalformed": Cure("the requests are signed for another region", REGION_HINT),
    "PermanentRedirect": Cure("the bucket is in another region", REGION_HINT),
    "TemporaryRedirect": Cure("the bucket is in another region", REGION_HINT),
    "IllegalLocationConstraintException": Cure("the bucket is in another region", REGION_HINT),
    "InvalidBucketName": Cure("that is not a valid bucket name", "Write the URI as s3://bucket/prefix."),
    "AccountProblem": Cure("the account has a problem", "Ask the administrator of the account."),
    "AllAccessDisabled": Cure("the bucket is disabled", "Ask the administrator of the account."),
    "NotSignedUp": Cure("the account has no object storage", "Ask the administrator of the account."),
}

RESTORE = Cure(
    "is in an archive",
    "Restore it (aws s3api restore-object, or in the console), then retry; or leave it out by input.exclude.",
)
OTHER_KEY = Cure(
    "is encrypted with a key that its readers must send along (SSE-C)",
    "Ask its owner for a copy that is encrypted by the store's own or a KMS key, then retry; or leave it out by "
    "input.exclude.",
)
NO_KMS_KEY = Cure(
    "is encrypted with a KMS key that cannot be used",
    "Have the key enabled, or its deletion cancelled, or ask for a copy that is encrypted with another; then retry.",
)
DECRYPT = "Give yourself, or the job's role, kms:Decrypt for the object's key (kms:GenerateDataKey to write)."
OWNER = Cure(
    "may not be read, though other objects may",
    "It may belong to another account, or a policy may name it: ask its owner for read access, then retry; or leave "
    "it out by input.exclude.",
)
ODD = Cure(
    "is not given out, though other objects are",
    "Try to read it with another tool (aws s3 cp), then retry; or leave it out by input.exclude.",
)
ARCHIVED = {"InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"}
SENT_ALONG = {"BlobUsesCustomerSpecifiedEncryption", "ResourceIsEncryptedWithCustomerEncryptionKey"}
# obstore's own messages about an answer that does not come from a store.
NO_ANSWER = ("Got invalid", "Unable to extract metadata", "NotPartial", "InvalidListResponse")


class Unanswered(StorageError):
    """A request that failed through no fault of its own and may succeed if repeated. ``kind`` is the reason."""

    def __init__(self, message: str, *, kind: str = LOST, hint: str = RESUME_HINT) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class Denied(StorageError):
    """The store refuses a caller that it knows, or a request that nobody signed."""


class Answer(NamedTuple):
    """What obstore reports about a failed request."""

    text: str
    status: int  # 0: there was no answer
    code: str  # the store's own; empty if it gave none
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Answer:
        """Parse status, the store's own code and its message from obstore's text; without a code, its first line."""
        text = str(error)
        status_code = re.search(r"status code: (\d{3})", text)
        status = int(status_code[1]) if status_code else 0
        body = re.search(r"<Code>(.*?)</Code>\s*(?:<Message>(.*?)</Message>)?", text, re.DOTALL)
        if body:
            return cls(text, status, body[1], masked(body[2] or body[1])[:500])
        first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
        return cls(text, status, "", masked(first)[:500])

    @property
    def has_no_body(self) -> bool:
        """Whether the request was a HEAD: its refusal carries no reason."""
        return "performing HEAD" in self.text and not self.code


def error_of(uri: str, error: BaseException) -> Exception:
    """Turn an error of obstore into one of ours; ``uri`` is the object or folder of the request."""
    answer = Answer.of(error)
    if answer.code in NO_BUCKET:
        return StorageError(f"There is no {NO_BUCKET[answer.code]} {uri.split('/')[2]}.", hint="Is its name right?")
    if isinstance(error, FileNotFoundError):
        if _is_page(answer.text):
            return strange(uri, _status(answer))
        return FileNotFoundError(f"{uri} is not there")
    return _of_who_asks(uri, answer) or _of_the_object(uri, answer) or _of_the_way(uri, answer)


def _of_who_asks(uri: str, answer: Answer) -> StorageError | None:
    """The error if the credentials, the region or the clock are wrong."""
    text, code = answer.text, answer.code
    if code in REFUSALS or "Received redirect without LOCATION" in text:
        problem, hint = REFUSALS[code] if code in REFUSALS else REFUSALS["PermanentRedirect"]
        region = _region(text)
        hint = hint if region is None or hint != REGION_HINT else f"{hint[:-1]}, {region}."
        details = f" ({code}: {answer.message})" if code else ""
        return StorageError(f"Access to {uri} is refused: {problem}{details}", hint=hint)
    if "credential provider: " in text or code in EXPIRY or (answer.status == 400 and answer.has_no_body):
        reason = text.partition("credential provider: ")[2].partition("\n")[0] or answer.message
        return Unanswered(f"The credentials for {uri} have expired: {masked(reason)}", kind=EXPIRED, hint=SIGN_IN_HINT)
    return None


def _region(text: str) -> str | None:
    """The region that a store names as the right one."""
    region = re.search(r"<Region>([\w-]+)</Region>|expecting ['\"]?([\w-]+)", text)
    return (region[1] or region[2]) if region else None


def _of_the_object(uri: str, answer: Answer) -> StorageError | None:
    """The error if the object is wrong, or the permission for it is missing."""
    cure = None
    if answer.code in ARCHIVED:
        cure = RESTORE
    elif answer.code in SENT_ALONG or (answer.status == 400 and "Server Side Encryption" in answer.text):
        cure = OTHER_KEY
    elif answer.code.startswith(("KMS.", "Kms")):
        cure = NO_KMS_KEY
    if cure is not None:
        return ObjectRefused(f"{uri} {cure.problem} ({answer.code}: {answer.message})", hint=cure.hint)
    if answer.status in {401, 403}:
        if not answer.code and _is_page(answer.text):
            return StorageError(f"{uri}: {_page(answer)}", hint=STRANGE_HINT)
        reason = f"{answer.code}: {answer.message}" if answer.code else _status(answer)
        return Denied(f"Access to {uri} is denied: {reason}", hint=DECRYPT if "kms:" in reason else PERMISSION_HINT)
    return None


# Why a server's certificate may be refused, and what to do about it.
CERTIFICATES = {
    "Expired": ("has expired", "Have it renewed; or, if it has not, set this machine's clock right."),
    "NotValidYet": ("is not valid yet", "Set this machine's clock right, or wait until the certificate is valid."),
    "NotValidForName": (
        "is for another host",
        "Name the host that it is for, in AWS_ENDPOINT_URL_S3 for instance; or something on the way answers instead.",
    ),
}
UNTRUSTED = (
    "is not trusted",
    "If it is your own authority's, set AWS_CA_BUNDLE to the file with its certificate.",
)


def _of_the_way(uri: str, answer: Answer) -> StorageError:
    """The error if the request, the server or something between them is wrong."""
    if "invalid path" in answer.text:
        return StorageError(f"{uri}: {answer.message}", hint=ODD_KEY_HINT)
    if answer.status == 407 or "TunnelUnsuccessful" in answer.text or "ProxyAuth" in answer.text:
        return StorageError(f"{uri}: the proxy refuses to pass the requests on.", hint=_proxy_hint())
    if "InvalidCertificate" in answer.text:
        why, cure = next((both for word, both in CERTIFICATES.items() if word in answer.text), UNTRUSTED)
        return StorageError(f"{uri}: the certificate of the server {why}.", hint=cure)
    if any(words in answer.text for words in NO_ANSWER) or (answer.status and _is_page(answer.text)):
        return strange(uri, answer.message)
    kind = _kind(answer)
    message = f"{uri}: {_unreached(answer) if kind == UNREACHABLE else answer.message}"
    hint = _proxy_hint() if kind == UNREACHABLE and _proxies() else RESUME_HINT
    return Unanswered(message, kind=kind, hint=hint) if kind else StorageError(message, hint=RESUME_HINT)


def strange(uri: str, answer: str) -> Unanswered:
    """The error for an answer that no object store gives."""
    return Unanswered(
        f"{uri}: the answer is none of an object store ({answer[:200]}).", kind=STRANGE, hint=STRANGE_HINT
    )


def _is_page(text: str) -> bool:
    """Whether the answer was an HTML page."""
    return re.search(r"status code: \d{3} [\w -]*: \s*<(!doctype\s+)?html", text, re.IGNORECASE) is not None


def _page(answer: Answer) -> str:
    return f"the answer is none of an object store, but a page ({_status(answer)})."


def _status(answer: Answer) -> str:
    status = re.search(r"status code: (\d{3}[\w -]*)", answer.text)
    return status[1].strip() if status else answer.message


def _unreached(answer: Answer) -> str:
    """Why there is no connection."""
    address = re.search(r"performing \w+ (https?://[^/\s?]+)", answer.text)
    host = masked(address[1]) if address else "the server"
    if "dns error" in answer.text:
        return f"there is no host of that name: {host}."
    return f"no connection to {host}: {'it is refused' if 'ConnectionRefused' in answer.text else 'no answer'}."


def _proxies() -> list[str]:
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    return [name for name in names if os.environ.get(name)]


def _proxy_hint() -> str:
    """What to look at if a proxy may be the reason."""
    names = " and ".join(_proxies()) or "the settings of the proxy"
    return (
        f"Look at {names}: its address, user and password; NO_PROXY names the hosts that bypass it. Then go on: what "
        "was committed is kept."
    )


def _kind(answer: Answer) -> str:
    """Why a request should be made again; empty if it should not."""
    status = answer.status
    if status in {429, 503} or answer.code in THROTTLING:
        return THROTTLED
    if status == 408 or answer.code in TIME_OUTS:
        return TIMED_OUT
    if status >= 500 or status == 409:
        return SERVER_ERROR
    if status or "Received redirect" in answer.text:
        return ""
    error = re.search(r"HttpError \{\s*kind: (\w+)", answer.text)
    by_kind = {"Connect": UNREACHABLE, "Timeout": TIMED_OUT, "Interrupted": CUT_SHORT, "Decode": CUT_SHORT}
    return by_kind.get(error[1] if error else "", LOST)
