"""An S3 endpoint whose certificate cannot be trusted: the error says why, and what to do."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import shardkit as sk
from shardkit.cli import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def certificate(folder: Path, *, host: str = "127.0.0.1", ends: datetime.datetime = NOW + DAY) -> Path:
    """A file with a certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's own authority")])
    names = [x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ends - 30 * DAY)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(made.public_bytes(pem) + private)
    return path


class NoObjects(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    do_HEAD = do_PUT = do_GET  # noqa: N815  as the server looks for them


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Serves HTTPS with a certificate, as the endpoint of S3."""
    servers = []

    def start(path: Path) -> None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoObjects)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who does not trust it hangs up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://127.0.0.1:{server.server_port}")

    for name, value in (("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "key"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (None, ("is not trusted", "AWS_CA_BUNDLE")),
        ({"ends": NOW - DAY}, ("has expired", "clock")),
        ({"host": "elsewhere.example"}, ("is for another host", "AWS_ENDPOINT_URL_S3")),
    ],
    ids=["untrusted", "expired", "another host"],
)
def test_a_certificate_that_cannot_be_trusted_is_told_with_its_cure(
    serve: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any] | None,
    words: tuple[str, str],
) -> None:
    cause, cure = words
    path = certificate(tmp_path, **(options or {}))
    serve(path)
    if options is not None:  # it is trusted otherwise
        monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    with pytest.raises(sk.ShardkitError) as caught:
        sk.Pipeline(function="os.path:basename", input="s3://bucket/in", output=tmp_path / "out").plan()
    assert cause in caught.value.message and cure in caught.value.hint
    done = CliRunner().invoke(cli, ["status", "s3://bucket/out"])
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert cause in done.output and cure in done.output
