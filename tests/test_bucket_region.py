"""A bucket's region is asked for, for it need not be that of the session."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from shardkit.stores import bucket_region


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
