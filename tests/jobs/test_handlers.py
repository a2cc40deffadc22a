"""The queue's Lambda functions: events and answers, that they end in time, their zip and their template."""

from __future__ import annotations

import io
import itertools
import json
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from click.testing import CliRunner
from engine_jobs import request
from simulated_service import SimulatedService

from shardkit.cli import deploy as deploying
from shardkit.cli.app import cli
from shardkit.jobs import EngineRefused, SQLiteStore, StoreError, handlers
from shardkit.jobs.clock import RealClock
from shardkit.jobs.service import set_policy, trouble_of

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = {key: value for key, value in request("unused", "true").items() if key != "ProcessingJobName"}
CONTEXT = SimpleNamespace(aws_request_id="call-1", get_remaining_time_in_millis=lambda: 31_500)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SQLiteStore]:
    place = tmp_path / "jobs.sqlite"
    monkeypatch.setenv("SHARDKIT_JOBS", str(place))
    monkeypatch.setattr(handlers, "_session", lambda: boto3.Session(region_name="eu-west-1"))
    handlers._opened.cache_clear()
    with SQLiteStore(place) as opened:
        yield opened
    handlers._opened.cache_clear()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimulatedService:
    made = SimulatedService(RealClock(), creates_per_s=1e9, seconds=0.05)
    monkeypatch.setattr(handlers, "_engine", lambda: made)
    return made


def submitted(*names: str, **more: Any) -> None:
    answer = handlers.submit({"jobs": [{"id": name, "request": REQUEST, **more} for name in names]}, CONTEXT)
    assert [job["id"] for job in answer["jobs"]] == list(names)


# ---- submitting --------------------------------------------------------------------------------------------------


def test_the_same_submission_again_is_the_same_job(store: SQLiteStore) -> None:
    for _ in range(2):
        job = handlers.submit({"request": REQUEST, "owner": "ana", "tags": {"a": "b"}}, CONTEXT)["job"]
        assert (job["id"], job["status"], job["owner"], job["tags"]) == ("job-call-1", "New", "ana", {"a": "b"})
        json.dumps(job)
        two = handlers.submit({"jobs": [{"request": REQUEST}, {"request": REQUEST, "id": "mine"}]}, CONTEXT)["jobs"]
        assert [job["id"] for job in two] == ["job-call-1-0", "mine"]
    assert len(store.jobs()) == 3


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (7, "no JSON object"),
        ({}, "has no request"),
        ({"request": {}, "depends": []}, "unknown field 'depends'"),
        ({"request": {}, "depends_on": "a"}, "depends_on must be a list"),
        ({"request": {}, "depends_on": ["nobody"]}, "nobody"),
        ({"request": {}, "id": "-"}, "cannot be a job id"),
        ({"request": {}, "id": ["a"]}, "cannot be a job id"),
        ({"request": {}, "owner": 7}, "owner must be text"),
        ({"request": {}, "tags": {"a": 1}}, "tags must be text"),
        ({"request": {}, "notify": ["https://hooks.slack.com/services/T000/B000/secret"]}, "a URL is a secret"),
        ({"request": {"ProcessingJobName": "a"}}, "names every attempt itself"),
        ({"jobs": []}, "1 to 1000 jobs"),
        ({"jobs": [{"request": {}}] * 1001}, "1 to 1000 jobs"),
        ({"jobs": [{"request": {}}, {"request": 7}]}, "jobs[1] has no request"),
    ],
)
def test_what_cannot_be_submitted_is_told(store: SQLiteStore, event: Any, said: str) -> None:
    answer = handlers.submit(event, CONTEXT)
    assert set(answer["error"]) == {"type", "message", "hint"} and said in answer["error"]["message"]
    assert "secret" not in answer["error"]["message"].replace("a URL is a secret", "")
    assert store.jobs() == []


def test_another_job_of_that_id_is_refused_and_a_store_that_is_away_is_an_error(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted("one")
    answer = handlers.submit({"id": "one", "request": REQUEST | {"RoleArn": "other"}}, CONTEXT)
    assert answer["error"]["type"] == "JobConflict"
    monkeypatch.delenv("SHARDKIT_JOBS")
    with pytest.raises(StoreError, match="SHARDKIT_JOBS"):
        handlers.submit({"request": REQUEST}, CONTEXT)


# ---- launching and watching --------------------------------------------------------------------------------------


def test_a_launcher_ends_in_time_and_the_next_one_goes_on(
    store: SQLiteStore, engine: SimulatedService, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(*(f"job-{i}" for i in range(60)))
    set_policy(store, {"creates_per_s": 20.0, "poll_s": 0.01})
    begun = time.monotonic()
    done = handlers.launch({}, CONTEXT)  # a second and a half are left to it
    assert time.monotonic() - begun < 10
    assert 10 <= done["launched"] <= 45 and done["waiting"] == 60 - done["launched"] and done["stuck"] == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    metrics = line["_aws"]["CloudWatchMetrics"][0]
    assert metrics["Namespace"] == "shardkit/jobs" and metrics["Dimensions"] == [["table"]]
    assert {each["Name"]: line[each["Name"]] for each in metrics["Metrics"]}["launched"] == done["launched"]
    assert trouble_of(store, time.time()) == ""
    set_policy(store, {"creates_per_s": 1000.0})
    while handlers.launch({}, CONTEXT)["waiting"]:
        pass
    assert len(engine.jobs) == 60 and engine.twice == []
    capsys.readouterr()
    until_completed(store, 60)
    assert handlers.launch({}, CONTEXT)["live"] == 0
    assert "launched" not in capsys.readouterr().out  # idle functions make no metrics


def until_completed(store: SQLiteStore, number: int) -> None:
    end = time.monotonic() + 20
    while store.counts()["Completed"] < number:
        assert time.monotonic() < end
        handlers.monitor({}, CONTEXT)
        time.sleep(0.02)


def test_a_throttled_call_does_not_end_the_minute(store: SQLiteStore, engine: SimulatedService) -> None:
    submitted("a", "b", "c")
    set_policy(store, {"creates_per_s": 100.0})
    rate = ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "CreateProcessingJob")
    engine.next_errors["create_processing_job"] = [rate]
    handlers.launch({}, SimpleNamespace(get_remaining_time_in_millis=lambda: 36_000))
    assert len(engine.jobs) == 3


def test_a_service_that_takes_no_calls_fails_the_function_and_is_told(
    store: SQLiteStore, engine: SimulatedService
) -> None:
    submitted("one")
    denied = ClientError({"Error": {"Code": "ExpiredToken", "Message": "expired"}}, "CreateProcessingJob")
    engine.next_errors["create_processing_job"] = [denied]
    with pytest.raises(EngineRefused, match="ExpiredToken"):
        handlers.launch({}, CONTEXT)
    assert "ExpiredToken" in trouble_of(store, time.time())
    assert (store.get("one").status, store.get("one").attempts[-1]["status"]) == ("New", "New")
    assert handlers.launch({}, CONTEXT)["launched"] == 1


@pytest.mark.whole
def test_events_come_in_any_order_and_several_times(store: SQLiteStore, engine: SimulatedService) -> None:
    set_policy(store, {"creates_per_s": 1000.0, "retry_wait_s": 0.0, "capacity_wait_s": 0.0, "poll_s": 900.0})
    names = [f"job-{i}" for i in range(8)]
    engine.outcomes |= dict.fromkeys(("job-0-1", "job-1-1", "job-1-2"), "capacity") | {"job-2-1": "user"}
    submitted(*names)
    draw = random.Random(1)
    for _ in range(3):
        handlers.launch({}, CONTEXT)
        time.sleep(0.06)
        lines = engine.list_processing_jobs(MaxResults=100)["ProcessingJobSummaries"]
        events = [event for line in lines for event in events_of(line)] * 2
        draw.shuffle(events)
        for event in events:
            handlers.monitor(json.loads(json.dumps(event)), CONTEXT)
    counts = store.counts()
    assert (counts["Completed"], counts["Failed"]) == (7, 1)
    assert (store.get("job-1").attempt, store.get("job-2").cause) == (3, "user")
    assert store.get("job-0").attempts[0]["ended_at"].startswith(time.strftime("%Y-%m-%d"))
    assert engine.twice == []


def events_of(line: dict[str, Any]) -> list[dict[str, Any]]:
    """EventBridge's events of a job, which runs and then has ended, and one of a job that is not ours."""
    times = {key: int(line[key].timestamp() * 1000) for key in line if key.endswith("Time") and line[key]}
    begun = {"ProcessingJobName": line["ProcessingJobName"], "ProcessingJobStatus": "InProgress"} | times
    begun.pop("ProcessingEndTime", None)
    ended = begun | times | {"ProcessingJobStatus": line["ProcessingJobStatus"]}
    ended |= {key: line[key] for key in ("FailureReason", "ExitMessage") if line.get(key)}
    other = {"ProcessingJobName": "somebody-elses", "ProcessingJobStatus": "Failed"}
    kind = {"source": "aws.sagemaker", "detail-type": "SageMaker Processing Job State Change"}
    return [kind | {"detail": detail} for detail in (begun, ended, other)]


def test_an_event_of_a_training_job(store: SQLiteStore, engine: SimulatedService) -> None:
    training = {"AlgorithmSpecification": {}, "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1}}
    handlers.submit({"id": "train", "request": training}, CONTEXT)
    handlers.launch({}, CONTEXT)
    detail = {"TrainingJobName": "train-1", "TrainingJobStatus": "Completed", "TrainingEndTime": 1_800_000_000_123}
    handlers.monitor({"detail-type": "SageMaker Training Job State Change", "detail": detail}, CONTEXT)
    job = store.get("train")
    assert (job.status, job.attempts[0]["ended_at"]) == ("Completed", "2027-01-15T08:00:00.123+00:00")


def test_an_event_that_is_none_is_a_look(store: SQLiteStore, engine: SimulatedService) -> None:
    submitted("one")
    handlers.launch({}, CONTEXT)
    set_policy(store, {"poll_s": 0.01})
    time.sleep(0.06)
    handlers.monitor({"detail-type": "SageMaker Processing Job State Change", "detail": {}}, CONTEXT)
    assert store.get("one").status == "Completed"


# ---- what is deployed --------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_zip_is_small_always_the_same_and_needs_boto3_alone(tmp_path: Path) -> None:
    code = deploying.zipped()
    assert code == deploying.zipped() and len(code) < 200_000
    names = zipfile.ZipFile(io.BytesIO(code)).namelist()
    assert {name.rpartition("/")[0] for name in names} == {"shardkit", "shardkit/jobs"}
    (tmp_path / "code.zip").write_bytes(code)
    boto = tmp_path / "boto"
    boto.mkdir()
    for name in ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "six"):
        module = sys.modules.get(name) or __import__(name)
        home = Path(str(module.__file__))
        (boto / (name if home.name == "__init__.py" else home.name)).symlink_to(
            home.parent if home.name == "__init__.py" else home
        )
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path / "code.zip")!r}, {str(boto)!r}]
import shardkit.jobs.handlers as h
import os
os.environ |= dict(SHARDKIT_JOBS="dynamodb://t?expire_days=90", AWS_DEFAULT_REGION="eu-west-1")
h._store(), h._engine(), h._store()._table.client()
print(h.__file__, h.submit(7)["error"]["type"])
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "code.zip" / "shardkit" / "jobs" / "handlers.py"), "JobError"]


@pytest.mark.slow
def test_the_template_is_one_to_deploy(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["jobs", "deploy-template", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "shardkit-jobs.zip").read_bytes() == deploying.zipped()
    text = (tmp_path / "template.yaml").read_text()
    assert CliRunner().invoke(cli, ["jobs", "deploy-template"]).output == text
    linter = [
        str(Path(sys.executable).with_name("cfn-lint")),
        "--non-zero-exit-code",
        "warning",
        str(tmp_path / "template.yaml"),
    ]
    lint = subprocess.run(linter, capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout) == (0, ""), lint.stdout + lint.stderr
    (tmp_path / "file").touch()
    failed = CliRunner().invoke(cli, ["jobs", "deploy-template", "--output", str(tmp_path / "file" / "sub")])
    assert failed.exit_code == 2 and "cannot be written" in failed.output


def test_the_functions_may_do_what_they_do_and_nothing_else() -> None:
    resources = yaml.safe_load(deploying.template_text())["Resources"]
    functions = {name: each["Properties"] for name, each in resources.items() if "Serverless" in each["Type"]}
    assert {each["Handler"] for each in functions.values()} == {
        f"shardkit.jobs.handlers.{name}" for name in ("submit", "launch", "monitor")
    }
    for each in functions.values():
        assert callable(getattr(handlers, each["Handler"].rpartition(".")[2]))
    roles = [each["Properties"] for each in resources.values() if each["Type"] == "AWS::IAM::Role"]
    statements = list(itertools.chain(*(role["Policies"][0]["PolicyDocument"]["Statement"] for role in roles)))
    statements = [each["Fn::If"][1] if "Fn::If" in each else each for each in statements]
    anywhere = [each["Action"] for each in statements if each["Resource"] == "*"]
    assert anywhere == [["sagemaker:ListProcessingJobs", "sagemaker:ListTrainingJobs"]]
    assert not any("*" in action for each in statements for action in each["Action"])
    (passing,) = (each for each in statements if "iam:PassRole" in each["Action"])
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    assert resources["Table"]["DeletionPolicy"] == "Retain"
