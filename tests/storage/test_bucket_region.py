"""A bucket's region, which is looked up because it need not be the session's; and endpoints that are configured."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3
import obstore
import pytest
from botocore.stub import Stubber

import shardkit as sk
from shardkit.storage import aws_locations
from shardkit.storage import buckets as stores
from shardkit.storage.aws_locations import bucket_region, find_bucket
from shardkit.storage.base import Access
from shardkit.storage.buckets import located, open_bucket
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def client() -> Any:
    return boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")


def answer(region: str) -> dict[str, Any]:
    return {"HTTPHeaders": {"x-amz-bucket-region": region}}


def test_the_answer_tells_it(client: Any) -> None:
    with Stubber(client) as stub:
        stub.add_response("head_bucket", {"ResponseMetadata": answer("eu-west-3")}, {"Bucket": "mine"})
        assert bucket_region(client, "mine") == "eu-west-3"


@pytest.mark.parametrize("code", ["403", "301"])
def test_a_refusal_tells_it_too(client: Any, code: str) -> None:
    with Stubber(client) as stub:
        stub.add_client_error("head_bucket", code, http_status_code=int(code), response_meta=answer("eu-west-3"))
        assert bucket_region(client, "mine") == "eu-west-3"


def test_without_an_answer_it_is_the_session_s(client: Any) -> None:
    with Stubber(client) as stub:
        stub.add_client_error("head_bucket", "503", http_status_code=503)
        assert bucket_region(client, "mine") == "us-east-1"


NEAR, OTHER = "http://127.0.0.1:9000", "https://minio.example/s3"


@pytest.mark.parametrize(
    ("named", "config"),
    [
        ({"AWS_ENDPOINT_URL": NEAR}, ""),
        ({"AWS_ENDPOINT_URL": f"{NEAR}/", "AWS_DEFAULT_REGION": "eu-west-1"}, ""),
        ({"AWS_ENDPOINT_URL": NEAR, "AWS_ENDPOINT_URL_S3": OTHER}, "region = eu-west-3"),
        ({"AWS_ENDPOINT_URL": NEAR}, f"endpoint_url = {OTHER}"),
        ({"AWS_ENDPOINT_URL_S3": ""}, f"endpoint_url = {OTHER}"),
        ({}, f"endpoint_url = {OTHER}\nregion = eu-west-3"),
        ({"AWS_ENDPOINT_URL_S3": NEAR, "AWS_PROFILE": "mine"}, "[profile mine]\nregion = eu-west-2"),
    ],
)
def test_an_endpoint_is_found_as_boto3_finds_it(
    named: dict[str, str], config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{config}\n")
    for name in stores.SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in (named | {"AWS_CONFIG_FILE": str(tmp_path / "config")}).items():
        monkeypatch.setenv(name, value)
    session = boto3.Session()
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    location = find_bucket("mine", Access(), stores._surroundings(None))
    assert location[:2] == (client.meta.region_name, client.meta.endpoint_url.rstrip("/"))


KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "s"}
INTERFACE = "https://bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com"
PLACES: list[tuple[str, dict[str, str], str]] = [
    ("mine", {"AWS_DEFAULT_REGION": "eu-west-1"}, ""),
    ("mine", {"AWS_DEFAULT_REGION": "us-east-1"}, ""),
    ("mine", {"AWS_DEFAULT_REGION": "us-east-1"}, "s3 =\n  us_east_1_regional_endpoint = legacy"),
    ("mine", {"AWS_DEFAULT_REGION": "us-east-1", "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "legacy"}, ""),
    ("with.dots", {"AWS_DEFAULT_REGION": "eu-west-1"}, ""),
    ("mine", {"AWS_DEFAULT_REGION": "cn-north-1"}, ""),
    ("mine", {"AWS_DEFAULT_REGION": "us-gov-west-1", "AWS_USE_FIPS_ENDPOINT": "true"}, ""),
    ("mine", {"AWS_DEFAULT_REGION": "us-east-2"}, "use_fips_endpoint = true"),
    ("mine", {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"}, ""),
    ("mine", {"AWS_DEFAULT_REGION": "eu-west-1"}, "s3 =\n  use_dualstack_endpoint = true"),
    ("mine", {"AWS_DEFAULT_REGION": "eu-west-1"}, "s3 =\n  use_accelerate_endpoint = true"),
    ("mine", {"AWS_DEFAULT_REGION": "eu-west-1"}, "s3 =\n  addressing_style = path"),
    ("mine", {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL_S3": INTERFACE}, ""),
    (
        "mine",
        {"AWS_DEFAULT_REGION": "us-east-1"},
        f"services = here\n[services here]\ns3 =\n  endpoint_url = {INTERFACE}",
    ),
    ("mine", {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL": "https://s3.cn-north-1.amazonaws.com.cn"}, ""),
    ("mine", {"AWS_ENDPOINT_URL": NEAR, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "region = eu-west-3"),
    ("mine", {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, f"endpoint_url = {OTHER}\nregion = eu-west-3"),
    ("mine", {"AWS_ENDPOINT_URL": NEAR}, ""),
    ("mine", {"AWS_ENDPOINT_URL": OTHER}, ""),
    ("mine", {"AWS_ENDPOINT_URL": "https://minio.example"}, "s3 =\n  addressing_style = virtual"),
    ("mine", {"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": "", "AWS_DEFAULT_REGION": "eu-west-1"}, ""),
]


@pytest.mark.whole
@pytest.mark.parametrize(("bucket", "named", "config"), PLACES)
def test_the_url_that_is_asked_is_that_which_boto3_would_ask(
    bucket: str, named: dict[str, str], config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{config}\n")
    monkeypatch.setattr(aws_locations, "bucket_region", lambda client, _: client.meta.region_name)
    for name in stores.SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in (KEYS | named | {"AWS_CONFIG_FILE": str(tmp_path / "config")}).items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    session = boto3.Session()
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    client.meta.events.register("before-call.s3.GetObject", lambda params, **_: asked.append(params["url"]) or 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        client.get_object(Bucket=bucket, Key="a/key")
    opened = open_bucket("s3", bucket, Access())
    ours = obstore.sign(opened.store.raw, "GET", "a/key", timedelta(seconds=9)).partition("?")[0]
    assert [ours] == asked
    assert opened.location is not None
    assert f"%2F{opened.location.region}%2F" in obstore.sign(opened.store.raw, "GET", "a/key", timedelta(seconds=9))
    told = located(f"s3://{bucket}/x", Access())  # as a worker is told
    for name in named:
        monkeypatch.delenv(name, raising=False)
    theirs = open_bucket("s3", bucket, told).store.raw
    assert obstore.sign(theirs, "GET", "a/key", timedelta(seconds=9)).partition("?")[0] == ours


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"AWS_ENDPOINT_URL": "localhost:9"}, "AWS_ENDPOINT_URL is 'localhost:9', which is no URL.*with http://"),
        ({"AWS_ENDPOINT_URL_S3": "https://"}, "AWS_ENDPOINT_URL_S3 is .*which is no URL of a server"),
        ({"AWS_ENDPOINT_URL_S3": "http://a b:9"}, "AWS_ENDPOINT_URL_S3 is .*which is no URL of a server"),
        ({"AWS_ENDPOINT_URL": "http://me:word@host:nine"}, r"'http://me:\*\*\*@host:nine', which is no URL"),
        ({"AWS_PROFILE": "nobody"}, r"profile \(nobody\) could not be found. Look at the AWS_"),
        ({"AWS_DEFAULT_REGION": "eu_bad/x"}, "'eu_bad/x' doesn't match a supported format. Look at the AWS_"),
        ({"AWS_CONFIG_FILE": "config"}, "Unable to parse config file.*Look at the AWS_"),
        ({"AWS_ENDPOINT_URL": "https://s3.example", "AWS_CA_BUNDLE": "/nowhere"}, "AWS_CA_BUNDLE names /nowhere"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    named: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default\nregion")
    for name in stores.SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
    nowhere = {"AWS_CONFIG_FILE": str(tmp_path / "nowhere")}
    for name, value in (KEYS | nowhere | named).items():
        monkeypatch.setenv(name, value.replace("config", str(tmp_path / "config")))
    with pytest.raises(sk.PipelineError, match=told):
        open_bucket("s3", "mine", Access())
    with pytest.raises(sk.PipelineError, match="named by its alias"):
        folder("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine")


@pytest.mark.parametrize(
    "named",
    [
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c", "AWS_PROFILE": "mine"},
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SECURITY_TOKEN": "d"},
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_PROFILE": "mine"},
    ],
)
def test_credentials_are_found_as_boto3_finds_them(
    named: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = "aws_access_key_id = of the file\naws_secret_access_key = secret\n"
    (tmp_path / "credentials").write_text(f"[default]\n{keys}[mine]\n{keys.replace('file', 'profile')}")
    for name in (*stores.SURROUNDINGS, "AWS_SECURITY_TOKEN", "AWS_CREDENTIAL_EXPIRATION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (named | {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}).items():
        monkeypatch.setenv(name, value)
    found = boto3.Session().get_credentials()
    assert found is not None
    ours = stores.Credentials(None)()
    frozen = found.get_frozen_credentials()
    assert (ours["access_key_id"], ours["secret_access_key"], ours["token"]) == tuple(frozen)[:3]
