"""Which parts of a text are masked as secrets, and which only look a little like one."""

from __future__ import annotations

import pickle
import timeit

import pytest

import shardkit as sk
from shardkit.jobs import JobError
from shardkit.masking import is_secret, masked, masked_data, secret_places

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkw.SflKxwRJSMeKKF2QT4"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://ci:hunter2@index.example/x", "at https://ci:***@index.example/x"),
        ("https://ci:p@ss/w0rd@127.0.0.1:9/x.whl", "https://ci:***@127.0.0.1:9/x.whl"),
        ("git+https://u:p@git.example.com/r.git@v1", "git+https://u:***@git.example.com/r.git@v1"),
        ("git+https://t0ken@git.example.com/r", "git+https://***@git.example.com/r"),
        ("redis://:pw@cache:6379/0", "redis://:***@cache:6379/0"),
        ('Invalid bucket name "u:hunter2@b": ...', 'Invalid bucket name "u:***@b": ...'),
        ("s3://b/k?X-Amz-Signature=abc&Expires=3&sig=ee", "s3://b/k?X-Amz-Signature=***&Expires=3&sig=***"),
        ("DB_PASSWORD=hunter2, x=3", "DB_PASSWORD=***, x=3"),
        ('{"dbPassword": "two words", "note": "x"}', '{"dbPassword": "***", "note": "x"}'),
        ("cannot log in with password: hunter2", "cannot log in with password: ***"),
        ("Error: msg=API_TOKEN=abc", "Error: msg=API_TOKEN=***"),
        ("run --api-token abc --n 7", "run --api-token *** --n 7"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer ***"),
        (f"key {KEY} there", "key *** there"),
        (f"token {JWT}", "token ***"),
        ("AKIAABCDEFGHIJKLMNOP and ghp_" + "a1" * 18, "*** and ***"),
        ("https://hooks.slack.com/services/T0AAAAA/B0BBBBB/xyz", "https://hooks.slack.com/services/***"),
    ],
)
def test_secrets_are_masked_and_the_rest_stays(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert str(sk.RunFailed(text, hint=text)) == f"{shown} {shown}"
    assert str(JobError(text)) == shown
    assert pickle.loads(pickle.dumps(sk.RunFailed(text))).message == shown


@pytest.mark.parametrize(
    "token",
    [
        *(f"{kind}ABCDEFGHIJKLMNOP" for kind in ("AKIA", "ASIA")),
        *(f"gh{kind}_" + "a1" * 18 for kind in "pousr"),
        "github_pat_" + "a1" * 18,
        "glpat-" + "a1" * 10,
        *(f"xox{kind}-1234567890" for kind in "abeoprs"),
        "xapp-1234567890",
        "hf_" + "a1" * 18,
        "sk-proj-" + "A1" * 18,
        *(f"{kind}k_live_" + "a1" * 12 for kind in "rs"),
        *(f"{kind}" + "a1" * 18 for kind in ("pypi-", "npm_")),
        "AIza" + "a" * 35,
        "dop_v1_" + "a1" * 30,
        f"SG.{'a' * 20}.{'b' * 20}",
        JWT,
        KEY,
        "-----BEGIN PRIVATE KEY-----\nMIIEow",
    ],
)
def test_every_kind_of_token_is_masked(token: str) -> None:
    assert masked(token) == "***"
    assert masked(f"see {token} there").startswith("see ***")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/key@2/part-00001.parquet",
        "http://127.0.0.1:9000/folder/name@1.2",
        "git+ssh://git@git.example.com/r.git",
        "abfss://container@account.dfs.core.windows.net/x",
        "token: expected a text; max_tokens=5, TOKEN_LIMIT=7",
        "env: DB_PASSWORD looks like a secret: everybody who may describe the job can read it.",
        "secret=arn:aws:secretsmanager:eu-west-1:111122223333:secret:db",
        "notices go to slack:secret:hook2",
        "connect(password=password, key=3)",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_data_is_masked_by_names_too() -> None:
    request = {
        "Environment": {"DB_PASSWORD": "hunter2", "NOTE": "fine"},
        "Tags": [{"Key": "api_key", "Value": "hunter2"}, {"Key": "team", "Value": "data"}],
        "AppSpecification": {"ContainerArguments": ["--index", "https://ci:hunter2@index.example/"]},
    }
    assert list(secret_places(request)) == [
        "Environment.DB_PASSWORD",
        "Tags.0.api_key",
        "AppSpecification.ContainerArguments.1",
    ]
    shown = masked_data(request)
    assert "hunter2" not in str(shown)
    assert shown["Environment"]["NOTE"] == "fine"
    assert shown["Tags"] == [{"Key": "api_key", "Value": "***"}, {"Key": "team", "Value": "data"}]
    assert not is_secret("DB_PASSWORD_ARN", "arn:aws:secretsmanager:eu-west-1:111122223333:secret:db")


@pytest.mark.parametrize("piece", ["a.", "token_", "sk-", "eyJ-", "https://", "https://:", "?a", '"a":"', "a=b "])
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (30_000 // len(piece))
    assert timeit.timeit(lambda: masked(text), number=1) < 5
