"""Input and output in S3; moto's server stands for S3 here."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import warm
from crashing import check_ledger, dying, environment, is_alive, rows_of, wait_for
from emulators import s3_client
from job_runs import JobProject

import shardkit as sk
from shardkit.engines.local import available_isolation
from shardkit.storage import lease, scratch
from shardkit.storage import requests as repeats
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SLOW = pytest.mark.slow
REGION = "eu-west-1"
NUMBERS = itertools.count()
FUNCTION = """
from pathlib import Path
def features(record):
    text = Path(record).read_text()
    if text.startswith("bad"):
        raise ValueError(f"cannot make sense of {record.key}")
    return [{"key": record.key, "row": i, "bytes": record.bytes, "text": text[:10]} for i in range(2)]
"""


class Bucket:
    """A bucket, with what the tests do to it without shardkit."""

    def __init__(self, url: str) -> None:
        self.name = f"bucket-{next(NUMBERS)}-{os.getpid()}"
        self.uri = f"s3://{self.name}"
        self.client = s3_client(url)
        self.client.create_bucket(Bucket=self.name, CreateBucketConfiguration={"LocationConstraint": REGION})

    def put(self, key: str, body: str | bytes = "go") -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def put_all(self, texts: Mapping[str, str | bytes]) -> None:
        for key, text in texts.items():
            self.put(key, text)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def data_files(self) -> list[str]:
        return [key for key in self.keys("out/") if "/_shardkit/" not in key]


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    known = {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-session",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": s3_url,
    }
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    return Bucket(s3_url)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    made.write_function(FUNCTION)
    yield made
    made.end()


def run_here(project: JobProject, bucket: Bucket, **fields: Any) -> sk.Run:
    fields = {"source_dir": project.code, "workers": 2, "name": "work", "quiet": True} | fields
    return sk.run("work:features", f"{bucket.uri}/in/", f"{bucket.uri}/out", **fields)


LOOK = """
import sys
from shardkit.storage.open import folder
print(*(entry.key for entry in folder(sys.argv[1]).entries()), "pandas" in sys.modules)
"""


def test_to_look_into_a_bucket_loads_no_pandas(bucket: Bucket) -> None:
    bucket.put("in/a.txt", b"x")
    done = warm.run(["-c", LOOK, f"{bucket.uri}/in"], env=os.environ, timeout_s=60)
    assert done.stdout == "a.txt False\n", done.stderr


def keys_of(run: sk.Run) -> list[str]:
    return sorted({row["key"] for row in rows_of(run)})


# ---- one machine -------------------------------------------------------------------------------------------------


NAMES = {
    "a b.txt": "a space",
    "100%.txt": "a percent sign",
    "a%20b.txt": "what looks encoded",
    "a+b.txt": "a plus",
    "é/ü 日本 🎉.txt": "other scripts",
    "q?x=1&y=2#z;~!'()*.txt": "what URLs are made of",
    "deep/er/and/deeper/r.txt": "folders",
    "UPPER/Case.TXT": "capitals",
    "empty.txt": "",
    "x": "a file",
    "x/y": "in a folder of the file's name",
    "back\\slash.txt": "a backslash",
    "[brackets]{}^|.txt": "brackets",
}


@pytest.mark.whole
def test_names_of_all_kinds(project: JobProject, bucket: Bucket) -> None:
    bucket.put_all({f"in/{key}": text for key, text in NAMES.items()})
    bucket.put("in/folder/", b"")  # as the console makes them
    bucket.put("in/deep/", b"")
    bucket.put("in/_hidden/r.txt")
    bucket.put("in/.r.txt")
    bucket.put("inner/r.txt")
    run = run_here(project, bucket)
    assert check_ledger(run).records == {"listed": len(NAMES), "done": len(NAMES), "quarantined": 0, "skipped": 0}
    assert {row["key"]: row["text"] for row in rows_of(run)} == {key: text[:10] for key, text in NAMES.items()}
    sizes = {key: len(text.encode()) for key, text in NAMES.items()}
    assert {row["key"]: row["bytes"] for row in rows_of(run)} == sizes


@pytest.mark.whole
def test_workers_need_not_find_out_where_the_bucket_is(project: JobProject, bucket: Bucket, bare_workers: None) -> None:
    bucket.put_all({f"in/r{i}.txt": "go" for i in range(20)})
    clients = (
        "import sys\ndef features(record):\n    return {'clients': {'boto3', 'pandas'} & set(sys.modules) != set()}\n"
    )
    project.write_function(clients)
    assert [row["clients"] for row in rows_of(run_here(project, bucket, chunks="even"))] == [False] * 20


@pytest.mark.whole
def test_a_run_is_found_replaced_and_cleaned_up(project: JobProject, bucket: Bucket) -> None:
    bucket.put_all({f"in/r{i}.txt": "go" for i in range(4)})
    first = run_here(project, bucket, rows_per_file=3)
    assert len(bucket.data_files()) == 3
    assert repr(sk.open_run(f"{bucket.uri}/out/")) == repr(first)
    assert first.output_uri == f"{bucket.uri}/out"
    with pytest.raises(sk.PipelineError, match="no folder of this machine"):
        _ = first.output
    bucket.put("out/mine.txt", "not shardkit's")
    bucket.delete("in/r0.txt")
    second = run_here(project, bucket)
    assert keys_of(second) == ["r1.txt", "r2.txt", "r3.txt"]
    assert len(bucket.data_files()) == 2
    assert "out/mine.txt" in bucket.data_files()
    with pytest.raises(sk.RunNotFound, match="A later run has replaced this dataset"):
        first.dataset()
    with pytest.raises(sk.RunNotFound, match="Did you mean"):
        sk.open_run(f"{bucket.uri}/out", second.run_id[:-1])


@pytest.mark.whole
def test_a_partitioned_dataset_with_a_combine_function(project: JobProject, bucket: Bucket) -> None:
    bucket.put_all({f"in/r{i}.txt": f"t{i % 2}" for i in range(6)})
    (project.code / "joining.py").write_text("def join(tables):\n    yield from tables\n")
    run = run_here(project, bucket, partition_by="text", combine="joining:join")
    assert {key.split("/")[1] for key in bucket.data_files()} == {"text=t0", "text=t1"}
    assert len(rows_of(run)) == 12
    assert run.dataset().to_table(filter=None).column("text").to_pylist().count("t0") == 6


@pytest.mark.whole
def test_s3_to_a_folder_and_a_folder_to_s3(project: JobProject, bucket: Bucket) -> None:
    bucket.put_all({"in/a.txt": "go", "in/b.txt": "go"})
    fields: dict[str, Any] = {"source_dir": project.code, "quiet": True}
    here = sk.run("work:features", f"{bucket.uri}/in", project.out, **fields)
    assert keys_of(here) == ["a.txt", "b.txt"]
    project.write_records({"c.txt": "go"})
    there = sk.run("work:features", project.data, f"{bucket.uri}/out", **fields)
    assert keys_of(there) == ["c.txt"]


@pytest.mark.whole
def test_bad_records_are_retried(project: JobProject, bucket: Bucket) -> None:
    bucket.put_all({f"in/r{i}.txt": "bad" if i == 2 else "go" for i in range(5)})
    run = run_here(project, bucket, max_failures=1)
    assert [entry["key"] for entry in run.quarantine()] == ["r2.txt"]
    project.write_function(FUNCTION.replace("raise ValueError", "print"))
    run.retry(quiet=True)
    assert keys_of(run) == [f"r{i}.txt" for i in range(5)]
    assert len(bucket.data_files()) == 1


@pytest.mark.whole
def test_records_of_several_objects(project: JobProject, bucket: Bucket) -> None:
    keys = [f"p{i}/r{j}.{end}" for i in range(3) for j in range(3) for end in ("hea", "dat")]
    bucket.put_all({f"in/{key}": key for key in keys})
    project.write_function(
        "from pathlib import Path\n"
        "def features(record):\n"
        "    both = [Path(f'{record.stem}.{end}').read_text() for end in ('dat', 'hea')]\n"
        "    return {'key': record.key, 'both': ' '.join(both), 'objects': len(record.paths)}\n"
    )
    run = run_here(project, bucket, records="stem", pattern="*.hea")
    rows = {row["key"]: (row["both"], row["objects"]) for row in rows_of(run)}
    assert rows == {f"p{i}/r{j}": (f"p{i}/r{j}.dat p{i}/r{j}.hea", 2) for i in range(3) for j in range(3)}


@SLOW
def test_a_large_object_of_several_parts(project: JobProject, bucket: Bucket) -> None:
    data = bytes(range(256)) * (41 << 12)
    upload = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="in/large.bin")["UploadId"]
    where = {"Bucket": bucket.name, "Key": "in/large.bin", "UploadId": upload}
    parts = []
    for number, start in enumerate(range(0, len(data), 10 << 20), 1):
        part = bucket.client.upload_part(**where, PartNumber=number, Body=data[start : start + (10 << 20)])
        parts.append({"ETag": part["ETag"], "PartNumber": number})
    bucket.client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    project.write_function(
        "import hashlib\nfrom pathlib import Path\n"
        "def features(record):\n"
        "    return {'key': record.key, 'sha': hashlib.sha256(Path(record).read_bytes()).hexdigest()}\n"
    )
    import hashlib

    (row,) = rows_of(run_here(project, bucket))
    assert row["sha"] == hashlib.sha256(data).hexdigest()


# ---- objects that are not what they were -------------------------------------------------------------------------


@pytest.mark.whole
def test_objects_that_change_or_vanish_cost_only_themselves(project: JobProject, bucket: Bucket) -> None:
    bucket.put_all({f"in/r{i}.txt": "go" for i in range(6)})
    pipeline = sk.Pipeline(
        function="work:features",
        source_dir=project.code,
        input=f"{bucket.uri}/in",
        output=f"{bucket.uri}/out",
        max_failures=2,
        shards={"by": "directory"},
        requirements_mode="none",
    )
    run = pipeline.run(project.local(), quiet=True, wait=False)  # planned, and no job launched
    bucket.put("in/r1.txt", "another text")
    bucket.delete("in/r4.txt")
    run.wait(quiet=True)
    found = {entry["key"]: (entry["error"], entry["message"]) for entry in run.quarantine()}
    assert set(found) == {"r1.txt", "r4.txt"}
    assert found["r1.txt"][0] == "ObjectChanged"
    assert f"{bucket.uri}/in/r1.txt has changed since it was listed" in found["r1.txt"][1]
    assert found["r4.txt"] == ("FileNotFoundError", f"{bucket.uri}/in/r4.txt is not there")
    assert keys_of(run) == ["r0.txt", "r2.txt", "r3.txt", "r5.txt"]


CALLS = """
import asyncio
from pathlib import Path
def row(record):
    text = Path(record).read_text()
    if text == "bad":
        raise ValueError("bad")
    return {"key": record.key, "text": text}
async def waits(record):
    first = row(record)
    await asyncio.sleep(0.05 if record.bytes % 3 else 0.001)
    assert row(record) == first, "its files are there until it has ended"
    return first
def many(records):
    return [row(record) for record in records]
"""


@pytest.mark.whole
@pytest.mark.parametrize(("function", "how"), [("waits", {"concurrency": 70}), ("many", {"batch": 70})])
def test_objects_are_fetched_ahead_for_all_that_are_worked_on_together(
    project: JobProject, bucket: Bucket, function: str, how: dict[str, int]
) -> None:
    project.write_function(CALLS)
    texts = {f"{i:03d}.txt": "bad" if i == 90 else f"text {i}" for i in range(100)}
    bucket.put_all({f"in/{name}": text for name, text in texts.items()})
    names = sorted(name for name in texts if name != "090.txt")
    pipeline = sk.Pipeline(
        function=f"work:{function}",
        input=f"{bucket.uri}/in/",
        output=f"{bucket.uri}/out",
        source_dir=str(project.code),
        workers=1,
        max_failures=1,
        **how,
    )
    run = pipeline.run(quiet=True)
    assert run.dataset().to_table().to_pylist() == [{"key": name, "text": texts[name]} for name in names]
    assert [entry["key"] for entry in run.quarantine()] == ["090.txt"]
    check_ledger(run)


# ---- what cannot be reached --------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_bucket_that_is_not_there(project: JobProject, bucket: Bucket) -> None:
    with pytest.raises(sk.InputError, match="There is no bucket no-such-bucket"):
        sk.run("work:features", "s3://no-such-bucket/in", project.out, source_dir=project.code, quiet=True)
    with pytest.raises(sk.InputError, match=f"The input {bucket.uri}/nothing holds no objects"):
        sk.run("work:features", f"{bucket.uri}/nothing", project.out, source_dir=project.code, quiet=True)
    with pytest.raises(sk.RunNotFound, match="holds no run of shardkit"):
        sk.open_run(f"{bucket.uri}/nothing")
    with pytest.raises(sk.PipelineError, match="names no bucket"):
        sk.open_run("s3:///nothing")


def test_an_output_bucket_that_is_not_there_is_told_at_once(project: JobProject, bucket: Bucket) -> None:
    bucket.put("in/r.txt")
    with pytest.raises(sk.ShardkitError, match="no-such-bucket") as caught:
        sk.run("work:features", f"{bucket.uri}/in", "s3://no-such-bucket/out", source_dir=project.code, quiet=True)
    assert "Traceback" not in str(caught.value)


def in_another_process(project: JobProject, code: str, **variables: str | None) -> str:
    """What is printed by code in a process with other variables."""
    env = environment()
    for name, value in variables.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    done = warm.run(["-c", code], cwd=project.root, env=env, timeout_s=120)
    return done.stdout + done.stderr


CATCH = """
import shardkit as sk
try:
    sk.run("work:features", "{bucket}/in", "out", source_dir="code", quiet=True)
except sk.ShardkitError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.whole
def test_without_credentials(project: JobProject, bucket: Bucket) -> None:
    bucket.put("in/r.txt")
    none = {
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": "/nowhere",
    }
    told = in_another_process(project, CATCH.format(bucket=bucket.uri), **none)
    assert told.startswith(f"PipelineError There are no AWS credentials for {bucket.uri}"), told
    assert "aws configure" in told


@SLOW
def test_a_store_that_is_not_there(project: JobProject, bucket: Bucket) -> None:
    assert repeats.PATIENCE_S[repeats.UNREACHABLE] < 60
    hurry = "from shardkit.storage import requests\nrequests.PATIENCE_S[requests.UNREACHABLE] = 3.0\n"
    begun = time.monotonic()
    told = in_another_process(project, hurry + CATCH.format(bucket=bucket.uri), AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert told.startswith("InputError"), told
    assert bucket.name in told
    assert 3 < time.monotonic() - begun < 30


class Denied(Exception):
    pass


@pytest.mark.whole
def test_access_that_is_denied(project: JobProject, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>User is not authorized</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{refusing.server_port}"
        told = in_another_process(project, CATCH.format(bucket=bucket.uri), AWS_ENDPOINT_URL=url)
        refusing.shutdown()
    assert told.startswith(f"InputError Access to {bucket.uri}/in"), told
    assert "Give yourself, or the job's role, the permission" in told
    assert "a-secret-of-the-session" not in told


# ---- the lease ---------------------------------------------------------------------------------------------------


def test_a_lease_keeps_others_away_and_ends(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(f"{bucket.uri}/out")
    with place.lock("lock", "Run one is being worked on by another process."):
        assert place.is_locked("lock")
        with (
            pytest.raises(sk.RunBusy, match="Run one is being worked on by another process on"),
            place.lock("lock", "Run one is being worked on by another process."),
        ):
            pass
    assert not place.is_locked("lock")
    assert bucket.keys() == []
    with place.lock("lock", "busy."):
        assert bucket.keys() == ["out/lock"]


@pytest.mark.whole
def test_a_lease_that_has_run_out_is_taken_over_by_one(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    monkeypatch.setattr(lease, "LEASE_RENEWAL_S", 0.1)
    place = folder(f"{bucket.uri}/out")
    bucket.put("out/lock", json.dumps({"host": "gone", "pid": 1, "until": time.time() - 1}))
    assert not place.is_locked("lock")
    won: list[int] = []
    refused: list[int] = []
    done = threading.Event()

    def take(number: int) -> None:
        try:
            with place.lock("lock", "busy."):
                won.append(number)
                done.wait(30)
        except sk.RunBusy:
            refused.append(number)

    threads = [threading.Thread(target=take, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(won) + len(refused) == 6, what="all to try")
    done.set()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 5)


def test_a_lease_is_renewed_and_a_lost_one_is_left_alone(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "LEASE_RENEWAL_S", 0.05)
    place = folder(f"{bucket.uri}/out")

    def until() -> float:
        return float(json.loads(place.read("lock"))["until"])

    with place.lock("lock", "busy."):
        first = until()
        wait_for(lambda: until() > first, what="a renewal")
        bucket.put("out/lock", json.dumps({"host": "another", "pid": 1, "until": time.time() + 60}))
        time.sleep(0.2)
    assert json.loads(place.read("lock"))["host"] == "another"


def test_an_answer_that_was_lost_does_not_lock_its_own_process_out(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder(f"{bucket.uri}/out")
    put = lease.Lease._put
    calls = []

    def repeated(self: Any, mode: Any) -> None:
        calls.append(mode)
        put(self, mode)
        if mode == "create":
            put(self, mode)  # as the client does when it hears nothing

    monkeypatch.setattr(lease.Lease, "_put", repeated)
    with place.lock("lock", "busy."):
        assert place.is_locked("lock")
    assert not place.is_locked("lock")


def test_files_that_two_threads_begin_first_both_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=0.5)

    class Slow(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
        def __init__(self, **options: Any) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):  # the other one does not come here
                meeting.wait()
            super().__init__(**options)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Slow)
    scratch._scratch_of.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(folder("memory://begun").begin, ["a.parquet", "b.parquet"]))
    for path in paths:
        path.write_bytes(b"rows")


# ---- jobs --------------------------------------------------------------------------------------------------------

namespaces = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")


def jobs_in(project: JobProject, bucket: Bucket, **fields: Any) -> dict[str, Any]:
    return project.fields(input=f"{bucket.uri}/in", output=f"{bucket.uri}/out", **fields)


@pytest.mark.slow
@namespaces
@pytest.mark.parametrize("mode", ["stream", pytest.param("download", marks=SLOW)])
def test_jobs_with_input_and_output_in_s3(project: JobProject, bucket: Bucket, mode: str) -> None:
    keys = ["top.txt", *(f"a/r {i}%20+é.txt" for i in range(2))]
    bucket.put_all({f"in/{key}": "go" for key in keys})
    run = sk.Pipeline(**jobs_in(project, bucket, input_mode=mode)).run(project.local(), quiet=True)
    assert keys_of(run) == sorted(keys)
    assert check_ledger(run).status == "done"
    assert [job["status"] for job in sk.open_run(f"{bucket.uri}/out").jobs()] == ["Completed"] * 3
    for secret in ("a-secret-of-the-session", "AKIDEXAMPLE"):
        assert not project.files_with(secret)
        for key in bucket.keys("out/_shardkit"):
            assert secret.encode() not in folder(bucket.uri).read(key), key


@pytest.mark.slow
@namespaces
def test_jobs_merge_their_days_in_s3(project: JobProject, bucket: Bucket) -> None:
    keys = [f"2020-01-0{day}/r{i}.txt" for day in (1, 2) for i in range(2)]
    bucket.put_all({f"in/{key}": "go" for key in keys})
    fields = jobs_in(project, bucket, shards={"by": "date", "path": "{Y}-{m}-{d}"})
    run = sk.Pipeline(**fields).run(project.local(), quiet=True)
    assert "2 days merged where they were computed, 0 here." in "\n".join(run.logs("merge"))
    assert keys_of(run) == sorted(keys)
    bucket.put("in/2020-01-02/r1.txt", "gone on")
    run = sk.Pipeline(**fields).run(project.local(), quiet=True)
    assert "1 day merged where they were computed, 0 here." in "\n".join(run.logs("merge"))
    assert keys_of(run) == sorted(keys)
    assert run.summary().records == {"listed": 2, "done": 1, "quarantined": 0, "skipped": 1}
    assert len(bucket.data_files()) == 2


@namespaces
@SLOW
def test_objects_dealt_out_by_the_service(project: JobProject, bucket: Bucket) -> None:
    bucket.put_all({f"in/r{i}.txt": "go" for i in range(5)} | {"in/r0.other": "no record"})
    fields = jobs_in(project, bucket, input_mode="download", shards={"by": "s3key", "instances": 2})
    fields["input"] = {"uri": fields["input"], "pattern": "*.txt"}
    run = sk.Pipeline(**fields).run(project.local(), quiet=True)
    assert keys_of(run) == [f"r{i}.txt" for i in range(5)]


HELD = """
import time
from pathlib import Path
ROOT = Path({root!r})
def features(record):
    (ROOT / "calls" / f"{{record.key.replace('/', '+')}} {{time.monotonic_ns()}}").touch()
    while record.key == "b/r1.txt" and not (ROOT / "gate").exists():
        time.sleep(0.005)
    return {{"key": record.key}}
"""


@namespaces
@SLOW
def test_another_machine_goes_on(project: JobProject, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_function(HELD.format(root=str(project.root)))
    bucket.put_all({f"in/{group}/r{i}.txt": "go" for group in "bc" for i in range(2)})
    monkeypatch.setattr(lease, "LEASE_S", 2.0)
    monkeypatch.setenv("XDG_STATE_HOME", str(project.root / "one"))
    code = "import shardkit.storage.lease as o; o.LEASE_S, o.LEASE_RENEWAL_S = 1.0, 0.2\n"
    with dying(project.start_driver(before=code, **jobs_in(project, bucket))) as driver:
        project.wait_for_calls("b/r1.txt", "c/r1.txt")
        run = sk.open_run(f"{bucket.uri}/out")
        assert run.summary().status == "running"
        with pytest.raises(sk.RunBusy, match="worked on by another process on"):
            run.resume(quiet=True)
        driver.kill_all()
    monkeypatch.setenv("XDG_STATE_HOME", str(project.root / "two"))
    project.open_gate()
    wait_for(lambda: not run.folder.is_locked(), what="the end of the lease")
    run.resume(quiet=True)
    assert len(keys_of(run)) == 4
    assert len(project.calls()) == 4
    assert all(len(job["attempts"]) == 1 for job in run.jobs())
    run.retry(quiet=True)  # nothing to do
    run.resume(quiet=True, **{"output.rows_per_file": 1})
    # Back at the first machine, whose queue knows nothing of that.
    monkeypatch.setenv("XDG_STATE_HOME", str(project.root / "one"))
    assert [job["job"].rpartition("-g")[2] for job in run.jobs()] == ["2-merge"]
    run.resume(quiet=True, **{"output.rows_per_file": 3})
    assert len(bucket.data_files()) == 2
    assert len(project.calls()) == 4


@namespaces
@SLOW
def test_a_run_is_stopped_from_another_machine(
    project: JobProject, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_function(HELD.format(root=str(project.root)))
    bucket.put_all({f"in/{group}/r{i}.txt": "go" for group in "ab" for i in range(3)})
    monkeypatch.setenv("XDG_STATE_HOME", str(project.root / "one"))
    with dying(project.start_driver(**jobs_in(project, bucket))) as driver:
        project.wait_for_calls("b/r1.txt")
        monkeypatch.setenv("XDG_STATE_HOME", str(project.root / "two"))
        run = sk.open_run(f"{bucket.uri}/out")
        assert run.stop() >= 2
        wait_for(lambda: not any(job["status"] == "New" for job in run.jobs()), what="the end of all that waits")
        project.open_gate()  # what is in flight ends and is committed
        assert "was stopped" in driver.wait().stderr
    run.resume(quiet=True)
    assert len(keys_of(run)) == len(project.calls()) == 6


@SLOW
def test_a_one_machine_run_that_is_killed_is_resumed(
    project: JobProject, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_function(HELD.format(root=str(project.root)))
    bucket.put_all({f"in/{group}/r{i}.txt": "go" for group in "abc" for i in range(3)})
    code = (
        "import shardkit.storage.lease as o; o.LEASE_S, o.LEASE_RENEWAL_S = 1.0, 0.2\n"
        "import sys, shardkit as sk\n"
        "sk.run('work:features', sys.argv[1] + '/in', sys.argv[1] + '/out', source_dir=sys.argv[2], workers=2, "
        "chunks='dynamic', quiet=True)"
    )
    with dying(project.start(bucket.uri, project.code, code=code)) as command:
        project.wait_for_calls("b/r1.txt", "c/r2.txt")
        run = sk.open_run(f"{bucket.uri}/out")
        wait_for(run.folder.markers, what="a marker")
        command.kill_all()
        assert not is_alive(command.pid)
    project.open_gate()
    before = len(project.calls())
    left = 9 - sum(marker["records"]["listed"] for marker in run.folder.markers())
    wait_for(lambda: not run.folder.is_locked(), what="the end of the lease")
    run.resume(quiet=True)
    assert len(keys_of(run)) == 9
    assert len(project.calls()) == before + left
    assert len(bucket.data_files()) == 1
    assert not [key for key in bucket.keys("out/_shardkit") if "/dataset/" in key or key.endswith("/lock")]


@pytest.mark.whole
def test_what_is_written_is_encrypted_with_the_key_that_the_engine_names(bucket: Bucket, project: JobProject) -> None:
    bucket.put_all({f"in/{i}.txt": "go" for i in range(3)})
    key = "arn:aws:kms:eu-west-1:123456789012:key/0a1b2c3d"
    engine = sk.Local(root=project.root / "engine", output_kms_key=key)
    run_here(project, bucket, engine=engine, shards={"by": "size", "count": 2})
    for name in bucket.keys("out/"):
        told = bucket.client.head_object(Bucket=bucket.name, Key=name)
        assert told.get("SSEKMSKeyId") == key, name


@pytest.mark.whole
def test_objects_are_fetched_to_be_tried_and_replayed_and_a_change_is_named(
    project: JobProject, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bucket.put_all({"in/a/1.txt": "go", "in/a/2.txt": "further"})
    fields = {"source_dir": str(project.code), "name": "work", "workers": 1}
    pipeline = sk.Pipeline(function="work:features", input=f"{bucket.uri}/in/", output=f"{bucket.uri}/out", **fields)
    assert [record.rows for record in pipeline.try_records(2).records] == [2, 2]
    assert pipeline.try_record("a/2.txt").rows["text"].tolist() == ["further"] * 2
    assert bucket.keys("out/") == []

    run = pipeline.run(quiet=True)
    assert run.replay("a/1.txt").notes == ["With work:features as the run had it."]
    bucket.put("in/a/1.txt", "another text")
    tried = run.replay("a/1.txt")
    assert "in/a/1.txt has changed since it was listed" in tried.notes[-1]
    assert tried.rows["text"].tolist() == ["another te"] * 2
    bucket.delete("in/a/1.txt")
    with pytest.raises(FileNotFoundError, match=r"a/1\.txt"):
        run.replay("a/1.txt")
    assert not list(tmp_path.glob("shardkit-try-*"))  # nothing is left of what was fetched
