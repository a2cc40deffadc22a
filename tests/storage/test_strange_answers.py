"""Servers that are no object store, or refuse everybody: each has its own cure; none looks like an empty input."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fault_proxy import FaultProxy
from test_object_store import bucket, project, run_here  # noqa: F401  fixtures too

import shardkit as sk
from shardkit.storage import objects as objectstore
from shardkit.storage import requests as repeats
from shardkit.storage.open import folder
from shardkit.storage.refusals import STRANGE, UNREACHABLE

if TYPE_CHECKING:
    import http.server
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import RunCommand
    from test_object_store import Bucket

Answer = tuple[int, dict[str, str], bytes]
HTML = {"Content-Type": "text/html"}
PAGES: dict[str, Answer] = {
    "a page to sign in": (200, HTML, b"<html><head><title>Login</title></head><body><p>Sign in</p></body></html>"),
    "a careless page": (200, HTML, b"<!DOCTYPE html><html><head><meta charset=u><body><p>Sign in<br></html>"),
    "a page with an etag": (200, HTML | {"ETag": '"abc"'}, b"<html><body>Welcome</body></html>"),
    "JSON": (200, {"Content-Type": "application/json"}, b'{"error": "no"}'),
    "nothing": (200, {}, b""),
    "a page that forbids": (403, HTML, b"<html><body>blocked</body></html>"),
    "a page that finds nothing": (404, HTML, b"<html><body>no such page</body></html>"),
    "a page of a gateway": (400, HTML, b"<html><body>bad request</body></html>"),
}
LONG_AGO = "Wed, 01 Jan 2020 00:00:00 GMT"
CURE = "(?s)the answer is none of an object store.*a proxy, or a page to sign in to the network"


@pytest.fixture
def proxy(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setitem(repeats.PATIENCE_S, STRANGE, 0.3)
    monkeypatch.setattr(objectstore, "PROVEN_FOR_S", 0.0)
    with FaultProxy(urlsplit(s3_url).port or 0) as made, made.running() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield made


def query(request: http.server.BaseHTTPRequestHandler) -> dict[str, list[str]]:
    return parse_qs(urlsplit(request.path).query)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_the_store_s_place_is_told(bucket: Bucket, proxy: FaultProxy, page: str, tmp_path: Path) -> None:  # noqa: F811
    bucket.put("in/a.txt", "go")
    source = folder(f"{bucket.uri}/in")
    (entry,) = source.entries()
    proxy.instead = lambda _: PAGES[page]
    asks: dict[str, Callable[[], Any]] = {
        "objects": source.objects,
        "entries": source.entries,
        "size": lambda: source.size("a.txt"),
        "get": lambda: source.get_file("a.txt", tmp_path / "a", etag=entry.etag, size=entry.bytes),
        "read": lambda: source.read("a.txt"),
    }
    if page == "a page with an etag":  # which an object of that name might be as well
        del asks["size"], asks["read"]
    if page == "a page that finds nothing":
        del asks["size"]
    for name, ask in asks.items():
        with pytest.raises((sk.StorageError, sk.InputError), match=CURE) as caught:
            ask()
        assert not isinstance(caught.value, sk.ObjectChanged), name


@pytest.mark.parametrize("always", [True, False], ids=["from then on", "once"])
def test_a_page_after_the_first_of_a_list_cuts_nothing_short(
    bucket: Bucket,  # noqa: F811
    proxy: FaultProxy,
    always: bool,  # noqa: FBT001
) -> None:
    bucket.put_all({f"in/{i}.txt": "go" for i in range(7)})
    told: list[str] = []

    def instead(request: http.server.BaseHTTPRequestHandler) -> Answer | None:
        if told and always:
            return PAGES["a page to sign in"]
        if "list-type" in request.path and "max-keys" not in request.path:
            if "continuation-token" in request.path and not told:
                told.append(request.path)
                return PAGES["a page to sign in"]
            request.path += "&max-keys=3"
        return None

    proxy.instead = instead
    source = folder(f"{bucket.uri}/in")
    if always:
        with pytest.raises(sk.InputError, match=CURE):
            source.objects()
    else:
        assert source.objects()["key"].to_pylist() == [f"{i}.txt" for i in range(7)]
    assert told


def test_an_answer_shorter_than_its_range_is_asked_for_again(bucket: Bucket, proxy: FaultProxy) -> None:  # noqa: F811
    bucket.put("in/a.txt", "four")
    source = folder(f"{bucket.uri}/in")
    (entry,) = source.entries()
    asked: list[str] = []

    def instead(request: http.server.BaseHTTPRequestHandler) -> Answer | None:
        asked.append(request.headers.get("Range", ""))
        headers = {"Content-Range": "bytes 0-3/4", "ETag": f'"{entry.etag}"', "Last-Modified": LONG_AGO}
        return (206, headers, b"fo") if len(asked) == 1 else None

    proxy.instead = instead
    assert bytes(source.read_unchanged("a.txt", 0, 4, etag=entry.etag)) == b"four"
    assert asked == ["bytes=0-3"] * 2


@pytest.mark.parametrize("keys", [2, 0])
def test_a_list_that_goes_in_circles_ends(
    bucket: Bucket,  # noqa: F811
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    keys: int,
) -> None:
    monkeypatch.setattr("shardkit.storage.interruption.LIST_S", 1.0)
    monkeypatch.setattr(repeats, "REPEATED_FOR_S", 0.5)
    entry = "<Contents><Key>in/{}</Key><Size>1</Size><ETag>a</ETag><LastModified>2024-01-01T00:00:00Z</LastModified>"
    found = "".join(f"{entry.format(i)}</Contents>" for i in range(keys))
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken>"
    page = f"<ListBucketResult>{more}{found}</ListBucketResult>".encode()
    proxy.instead = lambda request: (200, {}, page) if "list-type" in request.path else None
    for ask in (folder(f"{bucket.uri}/in").entries, folder(f"{bucket.uri}/in").objects):
        with pytest.raises((sk.StorageError, sk.InputError), match="goes in circles|No end after"):
            ask()


REFUSALS: dict[str, tuple[int, str, str, str]] = {
    "key": (403, "InvalidAccessKeyId", "does not exist in our records", "access key is not known.*AWS_ACCESS_KEY_ID"),
    "secret": (403, "SignatureDoesNotMatch", "signature does not match", "secret key does not.*AWS_SECRET_ACCESS_KEY"),
    "token": (400, "InvalidToken", "The provided token is malformed", "session token does not.*AWS_SESSION_TOKEN"),
    "expired": (400, "ExpiredToken", "The provided token has expired", "have expired.*Sign in again"),
    "region": (400, "AuthorizationHeaderMalformed", "expecting 'us-west-2'", "AWS_DEFAULT_REGION.*us-west-2"),
    "elsewhere": (301, "PermanentRedirect", "must be addressed", "in another region.*AWS_DEFAULT_REGION"),
    "clock": (403, "RequestTimeTooSkewed", "difference is too large", "clock of this machine is wrong.*timedatectl"),
    "permission": (403, "AccessDenied", "Access Denied", "Give yourself, or the job's role, the permission"),
    "bucket": (404, "NoSuchBucket", "does not exist", "There is no bucket .*Is its name right"),
    "proxy": (407, "", "", "the proxy refuses.*user and password"),
}


@pytest.mark.whole
@pytest.mark.parametrize("reason", REFUSALS)
def test_each_refusal_has_its_own_cure(
    bucket: Bucket,  # noqa: F811
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    monkeypatch.setitem(repeats.PATIENCE_S, "expired", 0.3)
    status, code, message, cure = REFUSALS[reason]
    proxy.gate = lambda _: (status, code, message)
    place = folder(f"{bucket.uri}/in")
    asks: list[Callable[[], Any]] = [lambda: place.read("x"), place.objects, lambda: place.write("x", b"1")]
    if reason not in {"bucket", "proxy"}:  # which a HEAD does not tell, or tells as well
        asks.append(lambda: place.size("x"))
    for ask in asks:
        with pytest.raises((sk.StorageError, sk.InputError), match=f"(?s){cure}") as caught:
            ask()
        others = {"permission": "the permission", "expired": "have expired"}
        for name, words in others.items():
            assert name == reason or words not in str(caught.value)


def test_a_host_that_is_not_there_is_told_by_its_name(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(repeats.PATIENCE_S, UNREACHABLE, 0.0)
    places = itertools.cycle(["http://no.such.host.invalid", "http://127.0.0.1:9"])
    for told in ("no host of that name: http://no.such.host.invalid", "no connection to http://127.0.0.1:9: it is ref"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", next(places))
        with pytest.raises(sk.StorageError, match=told):
            folder(bucket.uri).read("x")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid")
    with pytest.raises(sk.StorageError, match="Look at HTTP_PROXY: its address.*NO_PROXY"):
        folder(bucket.uri).read("x")


@pytest.mark.whole
def test_no_command_ends_with_a_traceback_of_boto3(shardkit: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for words in (["status", "s3://bucket/out"], ["jobs", "serve", "--store", "jobs.sqlite", "--engine", "sagemaker"]):
        (line,) = shardkit(*words, code=2).stderr.splitlines()
        assert line.startswith("Error: ")
        assert "profile (nobody) could not be found" in line
