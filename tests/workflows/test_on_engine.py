"""Workflows whose steps are jobs of an engine: requests, dependencies, retries, and a queue that others serve."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from test_run import Home

import shardkit as sk
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.engines.sagemaker import SageMaker
from shardkit.engines.wire import serving
from shardkit.jobs import Policy, open_store
from shardkit.jobs.service import serve
from shardkit.storage.open import folder
from shardkit.workflows.read import read_workflow
from shardkit.workflows.start import begin, carry_out, open_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine"),
]

FUNCTION = """
def count(record):
    return {"file": record.key, "words": len(open(record).read().split())}
"""
PIPELINE = "{name: words, input: PLACE/in/, function: 'work:count', output: nowhere/, workers: 1}\n"
# Counts the files of the dataset that the pipeline has made.
TRAIN = (
    "import sys; from shardkit.storage.open import folder as f; "
    "n = sum(e.key.startswith('part') for e in f(sys.argv[1]).entries()); f(sys.argv[2]).write('model', b'%d' % n)"
)
WORKFLOW = f"""\
name: three
image: 111122223333.dkr.ecr.us-east-1.amazonaws.com/base:1
output: "PLACE/made/"
machines: {{instance_type: m5.large, volume: 50Gi}}
steps:
  - {{name: features, pipeline: words.yaml, set: {{output: "PLACE/{{{{workflow.environment}}}}/"}}, timeout: 20m}}
  - name: train
    after: features
    image: registry/trainer:1.4
    command: [python3, -c, "{TRAIN}", "{{{{steps.features.output}}}}", "PLACE/made/train"]
    env: {{RATE: "0.5"}}
  - {{name: predict, after: train, command: [sh, -c, "exit $CODE"], env: {{CODE: "0"}}, machines: {{instance_type: ml.c5.xlarge}}}}
environments:
  dev: {{}}
  queued: {{queue: {{place: queue.sqlite, owner: ana}}}}
"""


class Account:
    """A bucket, and an engine behind the service's own protocol."""

    def __init__(self, root: Path, s3_url: str, engine_url: str) -> None:
        self.bucket = f"workflow-{os.getpid()}-{time.monotonic_ns()}"
        boto3.client("s3", endpoint_url=s3_url).create_bucket(Bucket=self.bucket)
        self.place = f"s3://{self.bucket}"
        for i in range(3):
            folder(f"{self.place}/in").write(f"r{i}.txt", b"a b c")
        self.home = Home(root, WORKFLOW.replace("PLACE", self.place))
        engine = {"kind": "sagemaker", "role": "arn:aws:iam::111122223333:role/Jobs", "image": "any:1"}
        engine |= {"region": "us-east-1", "endpoint_url": engine_url}
        self.home.file.write_text(self.home.file.read_text() + f"engine: {json.dumps(engine)}\n")
        (root / "words.yaml").write_text(PIPELINE.replace("PLACE", self.place))
        (root / "work.py").write_text(FUNCTION)
        self.said: list[str] = []

    def workflow(self, environment: str) -> Any:
        return read_workflow(self.home.file).of_environment(environment)

    def begin(self, environment: str) -> Any:
        return begin(self.workflow(environment), {}, say=self.said.append)


@pytest.fixture
def account(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    keys = {
        "ACCESS_KEY_ID": "any",
        "SECRET_ACCESS_KEY": "any",
        "DEFAULT_REGION": "us-east-1",
        "ENDPOINT_URL_S3": s3_url,
    }
    for name, value in keys.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(SageMaker, "policy", lambda _: Policy.local())
    with serving(LocalEngine(tmp_path / "engine", max_instances=4)) as url:
        yield Account(tmp_path, s3_url, url)


def test_every_step_is_a_job_that_needs_those_before_it(account: Account) -> None:
    run = account.begin("dev")
    carry_out(run)
    states = {state.name: state for state in run.states()}
    assert {state.state for state in states.values()} == {"done"}
    assert states["features"].output == f"{account.place}/dev/"
    assert folder(f"{account.place}/made/train").read("model") == b"1"
    assert sk.open_run(f"{account.place}/dev/").run_id == f"{run.files.run_id}-features"
    jobs = {job.tags["step"]: job for job in run.jobs()}
    assert jobs["predict"].depends_on == (jobs["train"].job_id,)
    request = run.store.requests([jobs["train"].job_id])[jobs["train"].job_id]
    assert request["AppSpecification"]["ImageUri"] == "registry/trainer:1.4"
    assert request["AppSpecification"]["ContainerEntrypoint"][:2] == ["python3", "-c"]
    assert request["Environment"]["RATE"] == "0.5"
    cluster = request["ProcessingResources"]["ClusterConfig"]
    assert (cluster["InstanceType"], cluster["VolumeSizeInGB"]) == ("ml.m5.large", 50)
    pipeline = run.store.requests([jobs["features"].job_id])[jobs["features"].job_id]
    assert pipeline["StoppingCondition"] == {"MaxRuntimeInSeconds": 1200}
    assert pipeline["AppSpecification"]["ImageUri"].endswith("base:1")
    assert jobs["predict"].instance_type == "ml.c5.xlarge"


def test_a_pipeline_with_shards_takes_many_jobs(account: Account) -> None:
    """The step's own job is their driver: the service has one for each shard, and one that merges."""
    sharded = (
        (account.home.root / "words.yaml").read_text().replace("workers: 1", "workers: 1, shards: {by: size, count: 2}")
    )
    (account.home.root / "words.yaml").write_text(sharded)
    run = account.begin("dev")
    carry_out(run)
    assert {state.state for state in run.states()} == {"done"}
    made = sk.open_run(f"{account.place}/dev/")
    assert made.run_id == f"{run.files.run_id}-features"
    assert [job["status"] for job in made.jobs()] == ["Completed"] * 3
    assert made.summary().records["done"] == 3


def test_a_queue_that_others_serve(account: Account) -> None:
    """What submits the steps may end at once; a step that fails is mended and goes on."""
    text = account.home.file.read_text()
    account.home.file.write_text(text.replace('CODE: "0"', 'CODE: "3"').replace("output: nowhere/", ""))
    run = account.begin("queued")
    carry_out(run, wait=False)
    assert {state.state for state in run.states()} == {"waiting"}
    assert {job.owner for job in run.jobs()} == {"ana"}
    store = open_store(str(account.home.root / "queue.sqlite"))
    serve(store, run.place.client(), policy=Policy.local(), region="", until_ended=True)
    assert [state.state for state in run.states()] == ["done", "done", "failed"]
    with pytest.raises(sk.RunFailed, match="step predict failed after 1 attempt: its command ended with exit code 3"):
        run.conclude()
    account.home.file.write_text(text)
    again = open_run(account.workflow("queued"), say=account.said.append)
    carry_out(again, wait=False)
    serve(store, run.place.client(), policy=Policy.local(), region="", until_ended=True)
    assert [state.state for state in again.states()] == ["done"] * 3
    assert [len(state.job.attempts) for state in again.states() if state.job is not None] == [1, 1, 1]
    assert sum(job.tags["step"] == "features" for job in again.jobs()) == 1


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("RATE:", "PASSWORD: env:THE_PLACE, RATE:", "train: PASSWORD is a secret, and all who may describe a job"),
        ("m5.large", "c5.large", "Processing has no ml.c5.large; did you mean ml.c5.xlarge"),
        ('command: [sh, -c, "exit $CODE"]', "image: predictor:1", "predict: a job on SageMaker needs a command"),
        ('set: {output: "s3://', 'set: {output: "made/', "output.uri: .* is a folder of this machine"),
        (
            'command: [sh, -c, "exit $CODE"]',
            'command: [sh, -c, "{{steps.train.output}}"], output: made/',
            "is a folder of this machine",
        ),
    ],
)
def test_what_cannot_be_a_job(account: Account, right: str, wrong: str, says: str) -> None:
    text = account.home.file.read_text()
    assert right in text
    account.home.file.write_text(text.replace(right, wrong))
    with pytest.raises(sk.PipelineError, match=says):
        account.begin("dev")
    assert not (account.home.root / "_shardkit").exists()


def test_another_engine_than_the_files(account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = begin(account.workflow("dev"), {}, engine="none", say=account.said.append)
    assert run.place.title == "this machine"
    assert run.files.about()["engine"] is None
    assert open_run(account.workflow("dev"), say=print).place.title == "this machine"  # not what the file says
    assert begin(account.workflow("dev"), {}, engine="local", say=print).files.about()["engine"] == "local"
    monkeypatch.setattr("shardkit.workflows.start.runtime_of", str)
    with pytest.raises(sk.PipelineError, match="--containers: the steps are jobs on SageMaker"):
        begin(account.workflow("dev"), {}, containers="podman", say=print)
    with pytest.raises(sk.PipelineError, match="engine.kind: expected"):
        begin(account.workflow("dev"), {}, engine="kubernets", say=print)
