"""Where a bucket is and who asks: its region is asked for, for it need not be that of the session; an endpoint may be named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import Stubber

from shardkit import stores
from shardkit.storage import Access
from shardkit.stores import bucket_region

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
    assert stores._find("mine", Access()) == (client.meta.region_name, client.meta.endpoint_url.rstrip("/"))


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
