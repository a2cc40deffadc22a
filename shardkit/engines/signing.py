"""Who may use a served engine: anyone who signs with one of its key pairs, as for the service itself.

The pair of a root is made once and kept in ``<root>/serve.env``, which only its owner can read, as lines for a shell.
The AWS pair of the server's own environment works too, so that one session can serve for the engine and for S3. Any
process of the serving user may sign with the pair ``any``/``any``: the kernel names the owner of a connection.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

KEPT = "serve.env"
ANY = "any"
SKEW_S = 900.0  # the service's own patience with clocks
UNSIGNED = {"x-amzn-trace-id", "x-amz-user-agent"}
_HEADER = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<key>[^\s/,]+)/(?P<day>\d{8})/(?P<region>[^\s/,]+)/(?P<service>[^\s/,]+)"
    r"/aws4_request\s*,\s*SignedHeaders=(?P<headers>[\w;-]+)\s*,\s*Signature=(?P<signature>[0-9a-f]{64})\s*\Z"
)
_KEPT_PAIR = re.compile(r"^export AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)=([\w-]+)$", re.MULTILINE)


class Refused(Exception):
    """A request without access; ``code`` is the service's own for the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Keys:
    """The accepted key pairs: their secrets by their ids. The first is the one that users are shown."""

    pairs: Mapping[str, str] = field(repr=False)

    @classmethod
    def of_root(cls, root: str) -> Keys:
        """The pair kept under ``root``, made if there is none, and the AWS pair of the environment."""
        pairs = dict([_kept(root) or _made(root)])
        key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        return cls(pairs | ({key: secret} if key and secret and key != ANY else {}))

    def exports(self, url: str) -> list[str]:
        """The lines that a shell needs to reach an engine at ``url``."""
        key, secret = next(iter(self.pairs.items()))
        return [
            f"export AWS_ENDPOINT_URL_SAGEMAKER={url}",
            f"export AWS_ENDPOINT_URL_CLOUDWATCH_LOGS={url}",
            f"export AWS_ACCESS_KEY_ID={key}",
            f"export AWS_SECRET_ACCESS_KEY={secret}",
        ]

    def check(self, headers: Mapping[str, str], *, url: str, body: bytes, is_own_user: bool) -> str:
        """Check that a request is signed with one of the pairs; return the service that it is for.

        ``headers`` have names in lower case; ``is_own_user`` says whether a process of the serving user sent it.

        Raises:
            Refused: it is not.
        """
        authorization = headers.get("authorization")
        if not authorization:
            raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token")
        claim = _HEADER.match(authorization)
        if claim is None:
            raise Refused("IncompleteSignatureException", "The Authorization header is no signature of version 4.")
        secret = self.pairs.get(claim["key"]) or (ANY if claim["key"] == ANY and is_own_user else None)
        if secret is None:
            raise Refused("UnrecognizedClientException", "The security token included in the request is invalid.")
        if not hmac.compare_digest(_signature(claim, headers, secret, url=url, body=body), claim["signature"]):
            raise Refused(
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
                "Access Key and signing method.",
            )
        return claim["service"]


def _kept(root: str) -> tuple[str, str] | None:
    """The pair kept under a root; None if there is none, or if others could have read or written it."""
    path = os.path.join(root, KEPT)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, encoding="ascii", errors="replace") as file:
        about = os.fstat(descriptor)
        if about.st_mode & 0o077 or about.st_uid != os.geteuid():
            return None
        pair = dict(_KEPT_PAIR.findall(file.read()))
    return (pair["ACCESS_KEY_ID"], pair["SECRET_ACCESS_KEY"]) if len(pair) == 2 else None


def _made(root: str) -> tuple[str, str]:
    pair = f"SHARDKIT{secrets.token_hex(6).upper()}", secrets.token_urlsafe(30)
    keep(root, [f"export AWS_ACCESS_KEY_ID={pair[0]}", f"export AWS_SECRET_ACCESS_KEY={pair[1]}"])
    return pair


def keep(root: str, lines: list[str]) -> None:
    """Write lines for other shells of the same user, in a file that nobody else can read."""
    os.makedirs(root, mode=0o700, exist_ok=True)
    path = os.path.join(root, KEPT)
    temporary = f"{path}.{os.getpid()}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write("".join(f"{line}\n" for line in lines))
    os.replace(temporary, path)


def _signature(claim: re.Match[str], headers: Mapping[str, str], secret: str, *, url: str, body: bytes) -> str:
    """The signature that the request should have, from botocore's own signer.

    Raises:
        Refused: a header that matters is unsigned, the request is too old, or its body is not the signed one.
    """
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    signed = set(claim["headers"].split(";"))
    needed = {"host", "x-amz-date"} | {name for name in headers if name.startswith("x-amz-")} - UNSIGNED
    if not signed <= set(headers) or not needed <= signed:
        missing = sorted((needed - signed) | (signed - set(headers)))
        raise Refused("IncompleteSignatureException", f"Signed must be, and given: {', '.join(missing)}.")
    moment = headers["x-amz-date"]
    if not moment.startswith(claim["day"]) or abs(_seconds(moment) - time.time()) > SKEW_S:
        raise Refused("InvalidSignatureException", f"Signature expired: {moment} is not within 15 minutes of now.")
    claimed = headers.get("x-amz-content-sha256")
    if claimed is not None and claimed != hashlib.sha256(body).hexdigest():
        raise Refused("InvalidSignatureException", "The body does not match x-amz-content-sha256.")
    request = AWSRequest("POST", url, headers={name: headers[name] for name in signed}, data=body)
    request.context["timestamp"] = moment
    signer = SigV4Auth(Credentials(claim["key"], secret), claim["service"], claim["region"])
    return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))


def _seconds(moment: str) -> float:
    try:
        return datetime.datetime.strptime(f"{moment}+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    except ValueError:
        return float("-inf")


def is_own_user(here: tuple[str, int], there: tuple[str, int]) -> bool:
    """Whether the other end of a connection on the loopback belongs to this process's user, as the kernel says."""
    wanted = _as_listed(there), _as_listed(here)
    try:
        with open("/proc/self/net/tcp", encoding="ascii") as table:
            for line in table:
                about = line.split()
                # 01: established. The kernel no longer names the owner of a connection that was closed meanwhile.
                if tuple(about[1:3]) == wanted and about[3] == "01" and about[9] != "0":
                    return int(about[7]) == os.geteuid()
    except (OSError, ValueError, IndexError):
        pass
    return False


def _as_listed(address: tuple[str, int]) -> str:
    """An address in the form of the kernel's table: the bytes of the host in the machine's order, and the port."""
    import socket
    import sys

    host = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{host:08X}:{address[1]:04X}"
