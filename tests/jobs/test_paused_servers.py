"""Long-running processes (a schedule, a queue's server, a driver of jobs) are paused while another does their work."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import boto3
import pytest
from crashing import LEASE_S, LINUX, Project, dying, go_on, start_pausing, stops, wait_until_paused
from file_service import FileService

import shardkit as sk
from shardkit.jobs import Policy, SQLiteStore, Submission
from shardkit.jobs.service import serve
from shardkit.storage import lease
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = LINUX
WHOLE = pytest.mark.whole
LOCK = "_shardkit/schedule.lock"


@pytest.fixture(params=["disk", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output."""
    monkeypatch.setattr(lease, "LEASE_S", LEASE_S)
    if request.param == "disk":
        return str(tmp_path / "out")
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for variable, value in (credentials | {"AWS_ENDPOINT_URL": request.getfixturevalue("s3_url")}).items():
        monkeypatch.setenv(variable, value)
    name = f"schedule-{os.getpid()}-{time.monotonic_ns()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/out"


def scheduled(project: Project, uri: str, schedule: str) -> Path:
    project.write_records(["x"])
    project.write_function("def features(record):\n    return {'key': record.key}\n")
    yaml = project.root / "p.yaml"
    fields = {"function": "work:features", "input": "data", "output": uri, "schedule": schedule, "workers": 1}
    yaml.write_text(json.dumps(fields))
    return yaml


def test_a_schedule_that_has_lost_its_lock_says_so_long_before_it_is_due(uri: str, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    yaml = scheduled(project, uri, "0 0 29 2 *")
    with dying(start_pausing(project, "schedule", 1, "schedule", "run", yaml)) as command:
        assert wait_until_paused(command), command.stderr.read_text()
        if "://" not in uri:
            (tmp_path / "out" / LOCK).unlink()
        with folder(uri).lock(LOCK, "Another schedule is running."):
            done = go_on(command)
    assert done.code == 1
    assert "This schedule has ended, because it lost its lock while it was paused or cut off" in done.stderr
    assert "Traceback" not in done.stderr


@WHOLE
@pytest.mark.parametrize(
    ("uri", "step"), [("disk", 1), ("disk", 2), ("s3", 2)], indirect=["uri"]
)  # before the run, and before its switch
def test_a_schedule_is_paused_in_its_run(uri: str, tmp_path: Path, step: int) -> None:
    project = Project(tmp_path / "project")
    yaml = scheduled(project, uri, "1d")
    with dying(start_pausing(project, "schedule", step, "schedule", "run", yaml)) as command:
        assert wait_until_paused(command), command.stderr.read_text()
        if "://" not in uri:
            for path in (tmp_path / "out").glob("_shardkit/**/*lock"):
                path.unlink()
        sk.Pipeline.from_yaml(yaml).run(quiet=True)
        with folder(uri).lock(LOCK, "Another schedule is running."):
            done = go_on(command)
    assert done.code == 1
    assert "This schedule has ended" in done.stderr and "Traceback" not in done.stderr
    last = sk.open_run(uri)  # of either: a run that began under the lock may end, and its dataset is as good
    assert last.summary().status == "done"
    assert last.dataset().to_table().num_rows == 1


SERVED = {"AppSpecification": {"ImageUri": "image"}, "RoleArn": "arn:aws:iam::123456789012:role/any"} | {
    "ProcessingResources": {"ClusterConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}}
}


# Each of the first steps, up to the second job's; the last job's call; and how it looks for what has become of them.
@WHOLE
@pytest.mark.parametrize("step", [*range(1, 9), 13, *range(16, 20)])
def test_a_server_is_paused_while_another_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    service = tmp_path / "service"
    service.mkdir()
    monkeypatch.setenv("FILE_SERVICE", str(service))
    place = tmp_path / "jobs.sqlite"
    store = SQLiteStore(place)
    store.submit_many(Submission(f"job-{number}", SERVED) for number in range(3))
    project = Project(tmp_path / "project")
    arguments = ("jobs", "serve", "--store", place, "--until-ended")
    with dying(start_pausing(project, "serve", step, *arguments)) as command:
        paused = stops(command)
        # It ends once all jobs have, and so no sooner than what the other one holds may be taken over.
        serve(store, FileService(service), policy=Policy.local(lease_s=0.3), region="", until_ended=True)
        done = go_on(command) if paused else command.wait()
    assert done.code == 0 and "Traceback" not in done.stderr
    assert {job.status for job in store.jobs()} == {"Completed"}
    names = Counter(entry["name"] for job in store.jobs() for entry in job.attempts)
    assert set(names.values()) == {1}
    assert set(names) == {path.stem for path in service.glob("*.job")}
