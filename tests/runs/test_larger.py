"""Records that do not fit into a job's memory go out again on a larger instance, and the merge waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
import pytest
from crashing import LINUX
from job_runs import JobProject
from simulated_service import SimulatedService, client_error

import shardkit as sk
from shardkit.engines.local import LocalEngine
from shardkit.engines.wire import serving
from shardkit.jobs import Policy, SQLiteStore, again, drive
from shardkit.jobs.clock import SimulatedClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

pytestmark = [pytest.mark.whole, LINUX]

# What a record needs stands in its file, and the type of the instance says how much there is.
NEEDS = """
import json, os
from pathlib import Path
ROOT = Path({root!r})
CONFIG = Path(os.environ.get("SHARDKIT_OPT_ML", "/opt/ml"), "config/resourceconfig.json")
SIZES = {{"ml.m5.xlarge": 1, "ml.m5.2xlarge": 2, "ml.m5.4xlarge": 4}}

def features(record):
    kind = json.loads(CONFIG.read_text())["current_instance_type"]
    with open(ROOT / "calls.txt", "a") as calls:
        calls.write(f"{{record.key}} {{kind}}\\n")
    if int(Path(record).read_text()) > SIZES[kind]:
        raise MemoryError("none left")
    return [{{"key": record.key, "row": 0}}, {{"key": record.key, "row": 1}}]
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    project = JobProject(tmp_path)
    project.write_function(NEEDS.format(root=str(tmp_path)))
    yield project
    project.end()


def calls_on(project: JobProject, kind: str) -> set[str]:
    lines = (project.root / "calls.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if line.endswith(f" {kind}")}


@pytest.mark.whole
def test_only_what_does_not_fit_goes_to_larger_instances(project: JobProject) -> None:
    project.write_groups("1", "2", "9", "3", groups="a")
    project.write_groups("1", groups="b")
    engine = project.local(instance_type="ml.m5.xlarge", larger=2)
    run = project.run_jobs(engine=engine, max_failures=1, run_id="one")
    attempts = {
        job["job"].rpartition("-")[2]: [
            (attempt["instance_type"].rpartition(".")[2], attempt.get("cause", "")) for attempt in job["attempts"]
        ]
        for job in run.jobs()
    }
    larger = [("xlarge", "memory"), ("2xlarge", "memory"), ("4xlarge", "")]
    assert attempts == {"00000": larger, "00001": [("xlarge", "")], "merge": [("xlarge", "")]}
    assert calls_on(project, "ml.m5.2xlarge") == {"a/r1.txt", "a/r2.txt", "a/r3.txt"}
    assert calls_on(project, "ml.m5.4xlarge") == {"a/r2.txt", "a/r3.txt"}
    (entry,) = run.quarantine()
    assert (entry["key"], entry["error"], entry["of_memory"]) == ("a/r2.txt", "MemoryError", True)
    assert "none left (it needs more memory than the" in entry["message"]
    assert project.keys_and_rows(run) == [pair for pair in project.expected() if pair[0] != "a/r2.txt"]
    reasons = [attempt["reason"] for job in run.jobs() for attempt in job["attempts"] if attempt.get("cause")]
    assert (
        "For 3 records of shard 0 this instance has too little memory, so they go on with a larger one." in reasons[0]
    )


def test_without_larger_instances_they_are_quarantined_at_once(project: JobProject) -> None:
    project.write_groups("2", "1", groups="a")
    run = project.run_jobs(max_failures=1)
    assert [len(job["attempts"]) for job in run.jobs()] == [1, 1]
    assert [entry["key"] for entry in run.quarantine()] == ["a/r0.txt"]


def test_which_types_are_larger() -> None:
    fields: dict[str, Any] = {"role": "arn:aws:iam::123456789012:role/one", "image": "one", "region": "eu-west-1"}
    assert sk.SageMaker(**fields, instance_type="ml.m5.xlarge").larger_types == ("ml.m5.2xlarge", "ml.m5.4xlarge")
    assert sk.SageMaker(**fields, instance_type="ml.r5.12xlarge").larger_types[:1] == ("ml.r5.16xlarge",)
    assert sk.SageMaker(**fields, instance_type="ml.m5.24xlarge").larger_types == ()
    assert sk.SageMaker(**fields, instance_type="ml.m5.xlarge", larger=0).larger_types == ()


class Account(SimulatedService):
    """An account that may have no instances of some types, and whose jobs need more memory than an xlarge has."""

    none_of: tuple[str, ...] = ()

    def _create(self, name: str, request: dict[str, Any], *, kind: str = "Processing") -> dict[str, Any]:
        wanted = request["ProcessingResources"]["ClusterConfig"]["InstanceType"]
        if wanted in self.none_of:
            raise client_error(
                "ResourceLimitExceeded",
                f"The account-level service limit '{wanted} for processing job usage' is 0 Instances, with current "
                "utilization of 0 Instances and a request delta of 1 Instances.",
                "CreateProcessingJob",
            )
        return super()._create(name, request, kind=kind)


@pytest.mark.parametrize("none_of", [(), ("ml.m5.2xlarge",), ("ml.m5.4xlarge",)])
def test_where_the_account_may_have_no_larger_instance_the_job_goes_on_with_what_it_had(
    tmp_path: Path, none_of: tuple[str, ...]
) -> None:
    clock = SimulatedClock()
    service = Account(clock, seconds=10, outcomes={"a-1": "memory", "a-2": "memory"})
    service.none_of = none_of
    if none_of:  # the attempt that is told that there is no more does not ask for it
        service.outcomes.pop("a-3", None)
    store = SQLiteStore(tmp_path / "jobs.sqlite", clock=clock)
    cluster = {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 30}
    request = {"ProcessingResources": {"ClusterConfig": cluster}}
    store.submit("a", request, tags={"larger": "ml.m5.2xlarge ml.m5.4xlarge"})
    drive(store, service, policy=Policy(), clock=clock)
    job = store.get("a")
    asked = [
        (
            attempt.request["ProcessingResources"]["ClusterConfig"]["InstanceType"].rpartition(".")[2],
            "SHARDKIT_MAY_GROW" in attempt.request.get("Environment", {}),
        )
        for attempt in service.jobs.values()
    ]
    causes = [attempt.get("cause", "") for attempt in job.attempts]
    if not none_of:
        assert asked == [("xlarge", True), ("2xlarge", True), ("4xlarge", False)]
        assert causes == ["memory", "memory", ""]
    elif none_of == ("ml.m5.2xlarge",):
        assert asked == [("xlarge", True), ("xlarge", False)]
        assert causes == ["memory", "quota", ""]
    else:
        assert asked == [("xlarge", True), ("2xlarge", True), ("xlarge", False)]
        assert causes == ["memory", "memory", "quota", ""]
    assert job.status == "Completed"


def test_a_job_that_is_tried_again_begins_with_its_usual_instances(tmp_path: Path) -> None:
    clock = SimulatedClock()
    service = Account(clock, seconds=10, outcomes={"a-1": "memory", "a-2": "user"})
    store = SQLiteStore(tmp_path / "jobs.sqlite", clock=clock)
    cluster = {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 30}
    store.submit("a", {"ProcessingResources": {"ClusterConfig": cluster}}, tags={"larger": "ml.m5.2xlarge"})
    drive(store, service, policy=Policy(), clock=clock)
    assert (store.get("a").status, store.get("a").instance_type) == ("Failed", "ml.m5.2xlarge")
    assert again(store, "a", clock=clock).instance_type == "ml.m5.xlarge"


@pytest.mark.slow
def test_the_service_is_asked_for_the_larger_type(
    s3_url: str, tmp_path: Path, project: JobProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SageMaker's settings and boto3 as against the service: over HTTP, with input and output in S3."""
    policy = Policy.local(max_instances=4)  # it looks more often
    monkeypatch.setattr("shardkit.engines.settings.Settings.policy", lambda _: policy)
    own = {"ENDPOINT_URL_S3": s3_url, "ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}
    for name, value in own.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="larger")
    for i, text in enumerate(["1", "2", "1"]):
        s3.put_object(Bucket="larger", Key=f"in/{i}.txt", Body=text.encode())
    with serving(LocalEngine(tmp_path / "served", max_instances=4)) as url:
        engine = sk.SageMaker(
            role="arn:aws:iam::123456789012:role/one", image="one", region="us-east-1", endpoint_url=url, larger=1
        )
        run = project.run_jobs(engine=engine, input="s3://larger/in/", output="s3://larger/out/", shards=None)
    attempts = [[each["instance_type"] for each in job["attempts"]] for job in run.jobs(refresh=False)]
    assert attempts == [["ml.m5.xlarge", "ml.m5.2xlarge"], ["ml.m5.xlarge"]]
    assert calls_on(project, "ml.m5.2xlarge") == {"1.txt"}
    assert run.summary().records == {"listed": 3, "done": 3, "quarantined": 0, "skipped": 0}
