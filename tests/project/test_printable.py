"""What is printed: no control characters that a terminal obeys, and no passwords."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from engine_jobs import ended, request, s3_input
from fault_proxy import FaultProxy
from test_object_store import bucket, project  # noqa: F401  fixtures

import shardkit as sk
from shardkit.engines.local import LocalEngine
from shardkit.engines.transfer import InputMissing, sources
from shardkit.jobs import JobError
from shardkit.jobs.message import shortened
from shardkit.printable import printable
from shardkit.storage import requests as repeats

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunCommand, WriteFiles
    from test_object_store import Bucket

RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
TITLE = "\x1b]0;pwned\x07"


def test_control_characters_are_escaped_and_words_stay() -> None:
    assert printable(f"a{TITLE}b\r\x9b31m\u202etxt") == r"a\x1b]0;pwned\x07b\x0d\x9b31m\u202etxt"
    assert printable("one line\n\tand another, é 日本 🎉") == "one line\n\tand another, é 日本 🎉"
    assert printable("half \udce9") == r"half \udce9"


def test_what_a_record_says_has_no_power_over_the_terminal(
    files: WriteFiles, tmp_path: Path, shardkit: RunCommand
) -> None:
    files({f"{TITLE}.txt": "x", "b.txt": "x"})
    (tmp_path / "work.py").write_text(f"def rows(record):\n    raise ValueError({TITLE!r} + record.key)\n")
    arguments = ("run", "--function", "work:rows", "--input", "data", "--output", "out")
    told = [shardkit(*arguments, code=1)]
    told += [shardkit(name, "out") for name in ("status", "failures")] + [shardkit("failures", "out", "--traceback")]
    assert r"\x1b]0;pwned\x07" in told[2].stdout
    for done in told:
        assert not RAW.search(done.stdout + done.stderr), done


def test_errors_and_notices_show_neither_passwords_nor_escapes() -> None:
    said = f"http://bob:pass-word@host/x {TITLE}"
    for text in (str(sk.StorageError(said)), str(JobError(said)), shortened(said)):
        assert "pass-word" not in text
        assert not RAW.search(text)


def test_a_password_in_the_endpoint_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(repeats.PATIENCE_S, repeats.UNREACHABLE, 0.0)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "eu-west-1"}
    for name, value in (keys | {"AWS_ENDPOINT_URL_S3": "http://bob:pass-word@127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(sk.ShardkitError, match="no connection to http://.*127.0.0.1:9: it is refused") as caught:
        sk.open_run("s3://bucket/out")
    assert "pass-word" not in str(caught.value)
    with pytest.raises(InputMissing, match="it is refused") as missing:
        sources(s3_input("s3://bucket/in/")["S3Input"])
    assert "pass-word" not in str(missing.value)


def test_a_job_s_input_that_is_not_there_is_the_client_s_error(
    bucket: Bucket,  # noqa: F811
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.put("in/r.txt")
    gate = FaultProxy(
        urlsplit(s3_url).port or 0, gate=lambda asked: (403, "AccessDenied") if "/denied" in asked.path else None
    )
    with gate.running() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        engine = LocalEngine(tmp_path / "engine")
        given = {
            "no-bucket": ("s3://no-such-bucket-anywhere/x/", "There is no bucket no-such-bucket-anywhere"),
            "no-objects": (f"{bucket.uri}/nothing/", "No objects found"),
            "denied": ("s3://denied/x/", "Access to s3://denied/x/ is denied"),
            "manifest": (f"{bucket.uri}/manifest", "cannot be read"),
        }
        for name, (uri, _) in given.items():
            kind = "ManifestFile" if name == "manifest" else "S3Prefix"
            asked = request(name, shell="true", ProcessingInputs=[s3_input(uri, kind=kind)])
            engine.create_processing_job(**asked)
        for name, (_, reason) in given.items():
            told = ended(engine, name)["FailureReason"]
            assert told.startswith("ClientError: "), told
            assert reason in told
            assert "Error(" not in told
