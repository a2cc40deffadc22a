"""The driver as a job: one request runs the whole pipeline, whatever starts it, and a further job goes on with it."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import signal
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pytest
import warm
import yaml
from engine_jobs import ENDED, until
from fault_proxy import FaultProxy
from job_runs import JobProject

import shardkit as sk
from shardkit.engines import validation
from shardkit.engines.jobfiles import JobFiles
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.engines.wire import WireServer, serving
from shardkit.runs.container.driver import run_id_of

if TYPE_CHECKING:
    import http.server
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import RunCommand

    from shardkit.runs.driver_job import DriverJob

namespaces = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")
REGION = "eu-west-1"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/Jobs"
DRIVERS_KEY = "AKIADRIVER"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/science:1"


class Cloud:
    """A bucket, and a served engine whose jobs are all in it."""

    def __init__(self, project: JobProject, s3_url: str, engine: LocalEngine, url: str) -> None:
        self.project, self.engine, self.url = project, engine, url
        self.bucket = f"driver-{os.getpid()}-{project.root.parent.name.lower().replace('_', '-')}"[:63].rstrip("-")
        self.s3 = boto3.client("s3", endpoint_url=s3_url)
        self.s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.sagemaker = boto3.client("sagemaker", endpoint_url=url)

    @property
    def output(self) -> str:
        return f"s3://{self.bucket}/out"

    def put(self, texts: dict[str, str]) -> None:
        for key, text in texts.items():
            self.s3.put_object(Bucket=self.bucket, Key=f"in/{key}", Body=text)

    def fields(self, **fields: Any) -> dict[str, Any]:
        engine = {"kind": "sagemaker", "role": ROLE, "image": IMAGE, "region": REGION, "endpoint_url": self.url}
        about = {"input": f"s3://{self.bucket}/in/", "output": self.output, "engine": engine}
        return self.project.fields() | about | fields

    def write_yaml(self, **fields: Any) -> Path:
        path = self.project.root / "pipeline.yaml"
        path.write_text(yaml.safe_dump(self.fields(**fields)))
        return path

    def kill(self, name: str) -> None:
        """Kill a job, as if its machine were lost."""
        files = JobFiles(self.engine.root, name)
        os.kill(files.supervisor() or 0, signal.SIGKILL)

    def names(self) -> list[str]:
        lines = self.sagemaker.list_processing_jobs(MaxResults=100)["ProcessingJobSummaries"]
        return [line["ProcessingJobName"] for line in lines]

    def ended(self, name: str) -> dict[str, Any]:
        """Wait until a job has ended, which takes a driver a while; returns the service's description of it."""

        def look() -> dict[str, Any] | None:
            about: dict[str, Any] = self.sagemaker.describe_processing_job(ProcessingJobName=name)
            return about if about["ProcessingJobStatus"] in ENDED else None

        answer: dict[str, Any] = until(look, seconds=150)
        return answer

    def said(self, name: str) -> str:
        return "\n".join(self.engine.log_lines(name))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    yield made
    made.end()


@pytest.fixture
def cloud(project: JobProject, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # another test may have left one with other keys
    known = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": REGION}
    for name, value in (known | {"AWS_ENDPOINT_URL_S3": s3_url}).items():
        monkeypatch.setenv(name, value)
    engine = LocalEngine(project.engine_root, max_instances=8, stop_grace=20)
    with serving(engine) as url:
        made = Cloud(project, s3_url, engine, url)
        yield made
        for name in made.names():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                pid = JobFiles(engine.root, name).supervisor()
                if pid:
                    os.kill(pid, signal.SIGKILL)


# ---- it runs -----------------------------------------------------------------------------------------------------


@namespaces
@pytest.mark.whole
def test_one_request_runs_the_whole_pipeline(cloud: Cloud, shardkit: RunCommand) -> None:
    cloud.put({"a/r0.txt": "go", "a/r1.txt": "go"})
    (cloud.project.code / "requirements.txt").write_text("pip\n")  # it travels, and is there already
    path = cloud.write_yaml(requirements_mode="install")
    done = shardkit("deploy", "job", path)
    request = json.loads(done.stdout)
    cloud.sagemaker.create_processing_job(**request)
    name = request["ProcessingJobName"]
    about = cloud.ended(name)
    assert about["ProcessingJobStatus"] == "Completed", cloud.said(name)
    run = sk.open_run(cloud.output)
    assert run.run_id == name
    assert f"Run {run.run_id}: done." in about["ExitMessage"]
    assert "2 listed = 2 done + 0 quarantined" in about["ExitMessage"]
    assert len(run.dataset().to_table()) == 4
    others = sorted(set(cloud.names()) - {name})
    assert len(others) == 2
    assert all(other.startswith("work-") for other in others)
    # The jobs have the code that the driver has: nothing is uploaded a second time.
    code = {
        cloud.engine.describe_processing_job(ProcessingJobName=each)["ProcessingInputs"][0]["S3Input"]["S3Uri"]
        for each in cloud.names()
    }
    assert code == {request["ProcessingInputs"][0]["S3Input"]["S3Uri"]}
    # The laptop goes on with the run: the plan knows where the code is there.
    assert run.folder.plan()["pipeline"]["source_dir"] == str(cloud.project.code)
    assert run.resume(quiet=True).summary().status == "done"


@namespaces
@pytest.mark.whole
def test_a_further_job_goes_on_where_a_lost_one_has_ended(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.put({"a/r0.txt": "go..", "a/r1.txt": "wait"})
    driver = sk.Pipeline(**cloud.fields()).driver_job(run_id="a night: 2026-11-29T02:00:00Z")
    first = driver.request | {"ProcessingJobName": "first"}
    cloud.sagemaker.create_processing_job(**first)
    cloud.project.wait_for_calls("a/r0.txt", "a/r1.txt")
    cloud.sagemaker.stop_processing_job(ProcessingJobName="first")
    about = cloud.ended("first")
    assert about["ProcessingJobStatus"] == "Stopped"
    assert re.search(r"no longer watching; 1 job goes on, and 1 waits", about["ExitMessage"])
    cloud.put({"c/r0.txt": "later"})  # no part of the plan, and no obstacle
    cloud.sagemaker.create_processing_job(**first | {"ProcessingJobName": "second"})
    until(lambda: "going on where it ended" in cloud.said("second"), seconds=100)
    cloud.project.open_gate()
    assert cloud.ended("second")["ProcessingJobStatus"] == "Completed", cloud.said("second")
    run = sk.open_run(cloud.output)
    assert run.run_id == "a-night-2026-11-29T02-00-00Z"
    assert run.summary().records == {"listed": 2, "done": 2, "quarantined": 0, "skipped": 0}
    assert sorted(cloud.project.calls()) == ["a/r0.txt", "a/r1.txt"]
    assert len(cloud.names()) == 4


@namespaces
@pytest.mark.whole
def test_a_run_that_fails_says_so(cloud: Cloud) -> None:
    cloud.put({"a/r0.txt": "bad", "a/r1.txt": "go"})
    driver = sk.Pipeline(**cloud.fields(max_failures=0)).driver_job()
    cloud.sagemaker.create_processing_job(**driver.request | {"ProcessingJobName": "fails"})
    about = cloud.ended("fails")
    assert about["ProcessingJobStatus"] == "Failed"
    assert "1 of 2 records" in about["ExitMessage"]
    assert "exit code: 1" in about["FailureReason"]


# ---- what its role may do ----------------------------------------------------------------------------------------


class Policy:
    """An IAM policy, asked whether it allows an action."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._statements = document["Statement"]
        self.used: set[str] = set()
        self.refused: list[str] = []

    def allows(self, action: str, resource: str, prefix: str | None = None) -> bool:
        for statement in self._statements:
            named = [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
            prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
            if (
                action in statement["Action"]
                and any(fnmatch.fnmatchcase(resource, name) for name in named)
                and (prefix is None or any(fnmatch.fnmatchcase(prefix, each) for each in prefixes))
            ):
                self.used.add(action)
                return True
        self.refused.append(f"{action} {resource} {prefix}")
        return False


class Gate:
    """Lets requests to S3 through as the driver's policy says, and all of others."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, request: http.server.BaseHTTPRequestHandler) -> tuple[int, str] | None:
        if f"Credential={DRIVERS_KEY}/" not in request.headers.get("Authorization", ""):
            return None
        where = urlsplit(request.path)
        bucket, _, key = unquote(where.path).lstrip("/").partition("/")
        query = parse_qs(where.query, keep_blank_values=True)
        arn = f"arn:aws:s3:::{bucket}"
        if not key and "delete" not in query:
            allowed = self.policy.allows("s3:ListBucket", arn, query.get("prefix", [""])[0])
        else:
            verbs = {"GET": "Get", "HEAD": "Get", "PUT": "Put", "POST": "Delete" if "delete" in query else "Put"}
            allowed = self.policy.allows(f"s3:{verbs.get(request.command, 'Delete')}Object", f"{arn}/{key or 'out/x'}")
        return None if allowed else (403, "AccessDenied")


class Watched:
    """An engine that asks a policy about each call."""

    def __init__(self, engine: LocalEngine, policy: Policy) -> None:
        self.engine, self.policy, self.root = engine, policy, engine.root

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.engine, name)
        if not name.endswith(("_processing_job", "_processing_jobs")):
            return call

        def asked(**request: Any) -> Any:
            action = "".join(word.capitalize() for word in name.split("_"))
            job = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:processing-job/{request.get('ProcessingJobName', '').lower()}"
            assert self.policy.allows(f"sagemaker:{action}", job if "ProcessingJobName" in request else "*")
            if name == "create_processing_job":
                assert self.policy.allows("iam:PassRole", request["RoleArn"])
            return call(**request)

        return asked


@namespaces
@pytest.mark.slow
def test_the_policy_allows_what_a_run_takes_and_no_more(cloud: Cloud, s3_url: str, tmp_path: Path) -> None:
    cloud.put({"a/r0.txt": "go"})
    opt_ml = tmp_path / "opt_ml"
    for folder in ("processing/input/driver", "config"):
        (opt_ml / folder).mkdir(parents=True)
    (opt_ml / "config" / "processingjobconfig.json").write_text('{"ProcessingJobName": "by-hand"}')
    pipeline = sk.Pipeline(**cloud.fields(name="Work"))
    policy = Policy(pipeline.driver_job(dry_run=True).policy)
    server = WireServer(Watched(cloud.engine, policy), keys=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with FaultProxy(urlsplit(s3_url).port or 0, gate=Gate(policy)).running() as proxy:
        engine = cloud.fields()["engine"] | {"endpoint_url": server.url}
        driver = pipeline.replace(engine=engine).driver_job()
        uri = driver.request["ProcessingInputs"][1]["S3Input"]["S3Uri"]
        text = cloud.s3.get_object(Bucket=cloud.bucket, Key=f"{uri.split('/', 3)[3]}driver.json")["Body"].read()
        (opt_ml / "processing/input/driver/driver.json").write_bytes(text)
        own = {"AWS_ACCESS_KEY_ID": DRIVERS_KEY, "AWS_ENDPOINT_URL_S3": proxy, "SHARDKIT_OPT_ML": str(opt_ml)}
        own |= {"SHARDKIT_SOURCE_DIR": str(cloud.project.code), "XDG_STATE_HOME": str(tmp_path / "state")}
        words = ["-m", "shardkit.runs.container.driver", *driver.request["AppSpecification"]["ContainerArguments"]]
        done = warm.run(words, cwd=tmp_path, env=os.environ | own, timeout_s=120)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, f"{done.stderr}\n{policy.refused}"
    # Asked for a name that nobody has used, an S3 that refuses has shown as well that it is one.
    assert [each for each in policy.refused if "no-object-of-this-name" not in each] == []
    assert len(sk.open_run(cloud.output, "by-hand").dataset().to_table()) == 2
    granted = {action for statement in driver.policy["Statement"] for action in statement["Action"]}
    idle = {action for action in granted - policy.used if action.startswith(("s3:", "sagemaker:", "iam:"))}
    assert idle <= {"s3:AbortMultipartUpload", "sagemaker:DescribeProcessingJob", "sagemaker:StopProcessingJob"}


# ---- what starts it ----------------------------------------------------------------------------------------------


def planned(project: JobProject, *, fields: dict[str, Any] | None = None, **options: Any) -> DriverJob:
    """A driver for which nothing is uploaded."""
    engine = {"kind": "sagemaker", "role": ROLE, "image": IMAGE, "region": REGION}
    about = {"input": "s3://bucket/in/", "output": "s3://bucket/out", "engine": engine} | (fields or {})
    return sk.Pipeline(**project.fields() | about).driver_job(dry_run=True, **options)


def check_request(request: dict[str, Any], run_id: str | None) -> None:
    """See that the service takes a request, and that it is the driver's."""
    validation.check("CreateProcessingJob", request)
    validation.check_rules(request, isolated=True)
    words = request["AppSpecification"]["ContainerArguments"]
    assert words == ["run", *(["--run-id", run_id] if run_id else [])]


def test_each_service_gives_a_name_of_its_own(project: JobProject) -> None:
    driver = planned(project)
    forms = driver.forms()
    check_request(forms["request"], None)
    assert re.fullmatch(r"work-driver-\d{8}-\d{6}", forms["request"]["ProcessingJobName"])

    scheduled = forms["scheduler"]["Target"]["Input"]
    for word, text in (("execution-id", "d32c5kddcf5bb8c3"), ("scheduled-time", "2022-03-22T18:59:43Z")):
        assert scheduled.count(f"<aws.scheduler.{word}>") == 1
        scheduled = scheduled.replace(f"<aws.scheduler.{word}>", text)
    check_request(json.loads(scheduled), "2022-03-22T18:59:43Z")

    airflow = json.dumps(forms["airflow"])
    when = "{{ ti.start_date.strftime('%Y%m%d-%H%M%S') }}"
    for text, value in ((when, "20220322-185943"), ("{{ ti.try_number }}", "2"), ("{{ run_id }}", "manual__1")):
        assert airflow.count(text) == 1
        airflow = airflow.replace(text, value)
    check_request(json.loads(airflow), "manual__1")

    (step,) = forms["pipelines"]["Steps"]
    arguments = json.loads(json.dumps(step["Arguments"]).replace('{"Get": "Execution.PipelineExecutionId"}', '"x1"'))
    assert "ProcessingJobName" not in arguments  # the service names the jobs of a step
    check_request(arguments | {"ProcessingJobName": "pipelines-x1-words-1"}, "x1")


@pytest.fixture
def emulated() -> Iterator[None]:
    """All services, in this process."""
    from moto import mock_aws

    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        yield


@pytest.mark.whole
def test_services_take_their_forms(project: JobProject, emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    forms = planned(project, schedule="rate(3 hours)").forms()
    scheduler = boto3.client("scheduler", region_name=REGION)
    scheduler.create_schedule(**forms["scheduler"])
    assert scheduler.get_schedule(Name="work-driver")["ScheduleExpression"] == "rate(3 hours)"
    sagemaker = boto3.client("sagemaker", region_name=REGION)
    definition = json.dumps(forms["pipelines"])
    sagemaker.create_pipeline(
        PipelineName="work", PipelineDefinition=definition, ClientRequestToken="x" * 32, RoleArn=ROLE
    )
    iam = boto3.client("iam", region_name=REGION)
    iam.create_role(RoleName="driver", AssumeRolePolicyDocument=json.dumps(forms["trust"]))
    for name in ("policy", "starter-policy"):
        iam.put_role_policy(RoleName="driver", PolicyName=name, PolicyDocument=json.dumps(forms[name]))

    # moto knows no .sync of SageMaker, but evaluates the same parameters for the plain call.
    machine = forms["step-functions"]
    machine["States"]["Driver"]["Resource"] = "arn:aws:states:::aws-sdk:sagemaker:createProcessingJob"
    states = boto3.client("stepfunctions", region_name=REGION)
    arn = states.create_state_machine(name="night", definition=json.dumps(machine), roleArn=ROLE)["stateMachineArn"]
    execution = states.start_execution(stateMachineArn=arn, name="0f7c2d1e-night")["executionArn"]
    about = until(lambda: _over(states, execution))
    assert about["status"] == "SUCCEEDED", about
    job = sagemaker.describe_processing_job(ProcessingJobName="work-driver-0f7c2d1e-night-0")
    assert job["AppSpecification"]["ContainerArguments"] == ["run", "--run-id", "0f7c2d1e-night"]
    assert job["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/shardkit-work-driver"


def _over(states: Any, execution: str) -> dict[str, Any] | None:
    about: dict[str, Any] = states.describe_execution(executionArn=execution)
    return about if about["status"] != "RUNNING" else None


def test_days_and_schedules_are_the_pipelines(project: JobProject) -> None:
    days = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}}
    driver = planned(project, fields=days | {"schedule": {"every": "1h", "since": "2d", "zone": "Europe/Paris"}})
    assert driver.request["AppSpecification"]["ContainerArguments"] == ["run", "--since", "2d"]
    machine = driver.forms()["step-functions"]["States"]["Driver"]["Parameters"]["AppSpecification"]
    assert machine["ContainerArguments.$"] == "States.Array('run', '--run-id', $$.Execution.Name, '--since', '2d')"
    about = driver.forms()["scheduler"]
    assert (about["ScheduleExpression"], about["ScheduleExpressionTimezone"]) == ("rate(60 minutes)", "Europe/Paris")
    driver = planned(project, fields=days | {"schedule": "30 4 * * *"}, dates=["2020-01-01..2020-01-03"])
    assert driver.request["AppSpecification"]["ContainerArguments"] == ["run", "--date", "2020-01-01..2020-01-03"]
    assert driver.forms()["scheduler"]["ScheduleExpression"] == "cron(30 4 * * ? *)"
    assert planned(project).forms()["scheduler"]["ScheduleExpression"] == "cron(0 2 * * ? *)"


@pytest.mark.whole
def test_the_role_is_of_the_pipelines_own_things(project: JobProject) -> None:
    engine = {
        "kind": "sagemaker",
        "role": ROLE,
        "image": IMAGE,
        "region": REGION,
        "tags": {"team": "a"},
        "merge": {"role": f"{ROLE}Merge"},
        "volume_kms_key": "1234abcd",
        "output_kms_key": "alias/out",
        "network": {"subnets": ["subnet-1"], "security_group_ids": ["sg-1"]},
    }
    driver = planned(project, fields={"engine": engine, "output": "s3://other"}, role=f"{ROLE}Driver")
    assert driver.request["RoleArn"] == f"{ROLE}Driver"
    statements = {statement["Sid"]: statement for statement in driver.policy["Statement"]}
    assert statements["RoleOfTheJobs"]["Resource"] == [ROLE, f"{ROLE}Merge"]
    assert "sagemaker:AddTags" in statements["Jobs"]["Action"]
    assert statements["Output"]["Resource"] == "arn:aws:s3:::other/*"
    assert statements["Listing"]["Condition"] == {"StringLike": {"s3:prefix": ["in/*"]}}
    assert "Condition" not in statements["Listing1"]
    assert statements["VolumeKey"]["Resource"] == f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd"
    assert statements["Key"]["Condition"] == {"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/out"}}
    assert "ec2:CreateNetworkInterface" in statements["Vpc"]["Action"]
    assert driver.request["NetworkConfig"]["VpcConfig"]["Subnets"] == ["subnet-1"]
    training = {"jobs": "training", "spot": True, "merge": {"jobs": "processing"}}
    trained = planned(project, fields={"engine": engine | training, "records": "tar"})
    assert "AppSpecification" in trained.request  # the driver itself is no training job, and on no spot instance
    statements = {statement["Sid"]: statement for statement in trained.policy["Statement"]}
    calls = statements["Jobs"]
    (inside,) = statements["Inside"]["Resource"]  # the indexes of archives are read for the plan
    assert inside.endswith("/in/*")
    assert {"sagemaker:CreateTrainingJob", "sagemaker:CreateProcessingJob"} <= set(calls["Action"])
    assert f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/work-*" in calls["Resource"]
    queued = planned(project, fields={"queue": "dynamodb://night"}).policy["Statement"]
    tables = [f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/night{more}" for more in ("", "/index/*")]
    assert next(each for each in queued if each["Sid"] == "Queue")["Resource"] == tables
    assert not [each for each in queued if "sagemaker:CreateProcessingJob" in each["Action"]]


def test_what_cannot_run_elsewhere_is_refused(project: JobProject, shardkit: RunCommand) -> None:
    for fields, options, words in (
        ({"engine": "local"}, {}, "engine: it is local"),
        ({"engine": None}, {}, "engine: it is none"),
        ({"function": lambda _: None}, {}, "exists in this process only"),
        ({"queue": "jobs.sqlite"}, {}, "a file of this machine"),
        ({}, {"since": "2d"}, "has no days"),
        ({}, {"schedule": "0 2 * * *"}, "Write rate"),
        ({"schedule": "0 2 * * 1"}, {}, "weekdays begin with 1"),
        ({}, {"role": "Driver"}, "is no ARN"),
        ({}, {"instance_type": "t3.medium"}, "did you mean ml.t3.medium"),
    ):
        with pytest.raises(sk.PipelineError, match=words):
            planned(project, fields=fields, **options)
    done = shardkit("deploy", "job", "--input", "in", "--output", "out", "--function", "work:features", code=2)
    assert "engine: it is none" in done.stderr


def test_any_text_gives_a_run_id() -> None:
    assert run_id_of("2022-03-22T18:59:43Z") == "2022-03-22T18-59-43Z"
    assert run_id_of("scheduled__2026-11-29T00:00:00+00:00") == "scheduled__2026-11-29T00-00-00-00-00"
    assert run_id_of("..") == "run"
    first, second = (run_id_of("x" * 80 + end) for end in "ab")
    assert first != second
    assert max(len(first), len(second)) <= 63
