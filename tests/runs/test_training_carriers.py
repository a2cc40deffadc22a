"""Runs whose jobs are training jobs: the same dataset; spot instances that are taken back cost no attempt."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import warm
import warm_jobs
from engine_jobs import until
from job_runs import JobProject

import shardkit as sk
from shardkit.engines import training_rules, validation
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.engines.local_training import LocalTraining
from shardkit.jobs.store import resources_of, turned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import RunCommand

    from shardkit.engines.jobfiles import JobFiles

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")
ROLE = "arn:aws:iam::123456789012:role/Jobs"
# The supervisor of a training job, in a fork of the process that has loaded the program: see `warm_jobs.py`.
SUPERVISE = """
import functools, warm_jobs
from shardkit.engines import supervisor, training_supervisor
supervisor.main = functools.partial(supervisor.main, training_supervisor.TrainingSupervisor)
warm_jobs.supervise()
"""
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/science:1"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    yield made
    made.open_gate()
    made.end()


@pytest.fixture(autouse=True)
def _training_jobs_as_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    def supervise(engine: LocalTraining, files: JobFiles) -> None:
        with open(os.path.join(files.logs, "supervisor.log"), "ab") as log:
            words = ["-c", SUPERVISE, engine.root, files.name]
            assert warm_jobs.asked(warm.address(), words, env=os.environ, output=log.fileno())

    monkeypatch.setattr(LocalTraining, "_supervise", supervise)


def trainers(project: JobProject) -> LocalEngine:
    return LocalEngine(project.engine_root, max_instances=4)


@pytest.mark.slow
def test_the_same_dataset(project: JobProject) -> None:
    project.write_groups("go", "go", groups="a")
    run = project.run_jobs(engine=project.local(jobs="training"), input_mode="download")  # the others stream
    assert project.keys_and_rows(run) == project.expected()
    jobs = run.jobs()
    assert {job["status"] for job in jobs} == {"Completed"}
    lines = trainers(project).list_training_jobs(MaxResults=100)["TrainingJobSummaries"]
    assert {line["TrainingJobName"] for line in lines} == {job["name"] for job in jobs}
    assert not trainers(project).list_processing_jobs()["ProcessingJobSummaries"]
    assert any("2 records done" in line for line in run.logs("00000"))


@pytest.mark.slow
@pytest.mark.parametrize("restart", [True, False], ids=["the service starts it again", "the job ends"])
def test_an_interruption_costs_no_attempt_and_goes_on_at_the_markers(project: JobProject, restart: bool) -> None:  # noqa: FBT001
    project.write_groups("go", "wait", groups="a")
    engine = project.local(jobs="training", spot=True, max_wait=600, merge={"spot": False})
    driver = threading.Thread(target=project.run_jobs, kwargs={"engine": engine, "workers": 2})
    driver.start()
    project.wait_for_calls("a/r0.txt", "a/r1.txt")
    run = project.wait_for_run()
    until(lambda: list(run.path.glob("markers/*/*.json")), seconds=60)  # the first record is committed
    name = run.jobs()[0]["name"]
    made = trainers(project)
    made.interrupt_training_job(name, restart=restart)
    until(lambda: project.calls().count("a/r1.txt") == 2, seconds=60)
    project.open_gate()
    driver.join(60)
    assert project.keys_and_rows() == project.expected()
    assert sorted(project.calls()) == ["a/r0.txt", "a/r1.txt", "a/r1.txt"]
    first, merge = sk.open_run(project.out).jobs()
    assert [entry.get("cause", "") for entry in first["attempts"]] == ([""] if restart else ["interrupted", ""])
    assert first["attempts"][-1]["billable_s"] >= 0 and "billable_s" not in merge["attempts"][-1]
    assert not made.describe_training_job(TrainingJobName=merge["name"]).get("EnableManagedSpotTraining")


@pytest.mark.slow
def test_a_program_that_fails_says_why(project: JobProject) -> None:
    project.write_groups("bad", groups="a")
    with pytest.raises(sk.RunFailed, match=r"1 of 1 record"):
        project.run_jobs(engine=project.local(jobs="training"), max_failures=0)
    (job,) = [job for job in sk.open_run(project.out).jobs() if job["cause"] == "user"]
    assert "1 of 1 record" in job["reason"]


def request_of(**fields: Any) -> dict[str, Any]:
    engine = sk.SageMaker(role=ROLE, image=IMAGE, region="eu-west-1", jobs="training", **fields)
    source = {"S3Uri": "s3://b/code/", "S3DataType": "S3Prefix", "LocalPath": "/opt/ml/processing/input/code"}
    request = engine.request(
        entrypoint=["/bin/sh", "/opt/ml/processing/input/code/bootstrap.sh"],
        arguments=["pass1"],
        inputs=[{"InputName": "code", "S3Input": source}],
        environment={"AWS_DEFAULT_REGION": "eu-west-1"},
        leftovers="s3://b/run/leftovers",
    )
    validation.check("CreateTrainingJob", request | {"TrainingJobName": "one"})
    training_rules.check_rules(request, isolated=True)
    return request


def test_requests_are_as_the_service_takes_them() -> None:
    network = {"subnets": ["subnet-1"], "security_group_ids": ["sg-1"], "encrypt_inter_container_traffic": True}
    request = request_of(
        spot=True,
        max_wait=7200,
        keep_alive=600,
        network=network,
        kms_key="alias/all",
        tags={"team": "a"},
        instance_preferences=["ml.m5.xlarge", "ml.m5.2xlarge"],
    )
    assert request["AlgorithmSpecification"] == {
        "TrainingImage": IMAGE,
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["/bin/sh", "/opt/ml/input/data/code/bootstrap.sh"],
        "ContainerArguments": ["pass1"],
    }
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 7200}
    assert "KeepAlivePeriodInSeconds" not in request["ResourceConfig"]  # the service keeps no spot instances
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://b/run/leftovers", "KmsKeyId": "alias/all"}
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert request["EnableInterContainerTrafficEncryption"] is True
    (code,) = request["InputDataConfig"]
    assert (code["ChannelName"], code["DataSource"]["S3DataSource"]["S3Uri"]) == ("code", "s3://b/code/")

    first = turned(request, "ml.m5.2xlarge")["ResourceConfig"]["InstancePreferences"][0]  # after a CapacityError
    assert first == {"InstanceType": "ml.m5.2xlarge"}
    assert resources_of(request) == (("ml.m5.xlarge", "ml.m5.2xlarge"), 1)

    warm = request_of(keep_alive=600, max_runtime=3600)
    assert warm["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
    assert warm["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert request_of(spot=True, max_runtime=60)["StoppingCondition"]["MaxWaitTimeInSeconds"] == 60


def test_settings_that_make_no_sense() -> None:
    for fields, words in (
        ({"jobs": "processing", "spot": True}, "spot: Processing jobs have no such instances; set jobs: training"),
        ({"jobs": "processing", "keep_alive": 60}, "keep_alive: Processing jobs"),
        ({"max_wait": 60}, "max_wait: only jobs on spot instances"),
        ({"spot": True, "max_wait": 60, "max_runtime": 600}, "less than max_runtime"),
        ({"keep_alive": 21601}, "keep_alive"),
        ({"jobs": "batch"}, "jobs"),
    ):
        with pytest.raises(sk.PipelineError, match=words):
            sk.SageMaker(role=ROLE, image=IMAGE, **{"jobs": "training"} | fields)  # type: ignore[arg-type,unused-ignore]


def test_all_jobs_of_a_run_match_one_warm_pool(project: JobProject) -> None:
    """What has to be the same so that a job gets the instances of an earlier one."""
    from shardkit.engines.local_training import _match_key

    project.write_groups("go")
    run = project.run_jobs(engine=project.local(jobs="training", keep_alive=600), wait=False)
    from shardkit.runs.on_engine import RunJobs
    from shardkit.runs.planning import planned_pipeline

    jobs = RunJobs(run.folder, planned_pipeline(run.folder.plan(), {}))
    requests = list(jobs.store.requests([job.job_id for job in jobs.current()]).values())
    assert len(requests) == 4
    assert len({json.dumps(_match_key(request)) for request in requests}) == 1
    assert {request["ResourceConfig"]["KeepAlivePeriodInSeconds"] for request in requests} == {600}


def test_the_plan_says_what_carriers_cost_and_how_they_start(project: JobProject, shardkit: RunCommand) -> None:
    project.write_groups("go", groups="a")
    engine = {"kind": "sagemaker", "role": ROLE, "image": IMAGE, "region": "eu-west-1", "jobs": "training"}
    fields = project.fields(engine=engine | {"keep_alive": 600})
    (project.root / "p.yaml").write_text(json.dumps(fields))
    (project.root / "prices.json").write_text('{"ml.m5.xlarge": 0.25}')
    text = shardkit("plan", project.root / "p.yaml", "--prices", project.root / "prices.json").stdout
    assert "2 calls of CreateTrainingJob" in text
    assert "-> training, warm, kept for 10 min 0 s: the next job starts in seconds" in text
    assert text.count("$0.250 an hour") == 4
    shown = json.loads(shardkit("plan", project.root / "p.yaml", "--json").stdout)["carriers"]
    assert [each["chosen"] for each in shown] == [False, False, True, False]
    assert {each["usd_per_hour"] for each in shown} == {None}
    done = shardkit("plan", project.root / "p.yaml", "--prices", project.root / "p.yaml", code=1)
    assert "has no prices by instance type" in done.stderr
