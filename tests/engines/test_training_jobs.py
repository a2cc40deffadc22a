"""Training jobs of the local engine, itself and over the wire: files, ends, spot interruptions and warm instances."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ParamValidationError
from engine_jobs import ROLE, WIRE, local_engine, refusal, until, wired

from shardkit.engines import training_rules, validation
from shardkit.engines.faults import CAPACITY, FaultyEngine
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.jobs import calls, causes
from shardkit.jobs.calls import processing_words

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")


@pytest.fixture(params=["local", WIRE])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with local_engine(tmp_path / "engine") as local:
        if request.param == "local":
            yield local
            return
        with wired(local) as client:
            yield client


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalEngine]:
    with local_engine(tmp_path / "engine") as made:
        yield made


def training(name: str, shell: str = "true", *, instances: int = 1, **more: Any) -> dict[str, Any]:
    """A CreateTrainingJob request for a line of shell."""
    resources = {"InstanceCount": instances, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 1}
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": "image",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["sh", "-c", shell],
        },
        "OutputDataConfig": {"S3OutputPath": "s3://nowhere/at/all"},
        "ResourceConfig": resources,
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    } | more


def spot(name: str, shell: str, *, wait_s: int = 600, **more: Any) -> dict[str, Any]:
    limits = {"MaxRuntimeInSeconds": min(wait_s, 600), "MaxWaitTimeInSeconds": wait_s}
    return training(name, shell, EnableManagedSpotTraining=True, StoppingCondition=limits, **more)


def channel(name: str, uri: Path | str, **more: Any) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": str(uri)} | more
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def over(engine: Any, name: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        about = engine.describe_training_job(TrainingJobName=name)
        return about if about["TrainingJobStatus"] in ("Completed", "Failed", "Stopped") else None

    answer: dict[str, Any] = until(look, seconds=60)
    return answer


def said(engine: Any, name: str) -> list[str]:
    return list(engine.log_lines(name))


def is_training(engine: Any, name: str, text: str) -> None:
    """Wait until a job has said something."""
    until(lambda: text in said(engine, name))


# ---- what a program sees -----------------------------------------------------------------------------------------


def test_the_files_and_variables_of_a_training_job(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.txt").write_text("one")
    shell = (
        "cat /opt/ml/input/data/words/one.txt; echo; cat /opt/ml/input/config/hyperparameters.json; echo; "
        "cat /opt/ml/input/config/resourceconfig.json; echo; cat /opt/ml/input/config/inputdataconfig.json; echo; "
        'echo "$SM_CHANNEL_WORDS $SM_HP_LEARNING_RATE $SM_CURRENT_HOST $TRAINING_JOB_NAME $MODE"; '
        "echo model >/opt/ml/model/weights; ls -d /opt/ml/output/data /opt/ml/checkpoints; ls /opt/ml"
    )
    (tmp_path / "in" / "run.sh").write_text(shell)
    request = training(
        "one",
        "sh /opt/ml/input/data/words/run.sh",
        InputDataConfig=[channel("words", tmp_path / "in")],
        HyperParameters={"learning-rate": "0.1"},
        Environment={"MODE": "fast"},
        OutputDataConfig={"S3OutputPath": str(tmp_path / "out")},
        Tags=[{"Key": "team", "Value": "a"}],
    )
    arn = engine.create_training_job(**request)["TrainingJobArn"]
    assert arn.endswith(":training-job/one")
    about = over(engine, "one")
    assert about["TrainingJobStatus"] == about["SecondaryStatus"] == "Completed", said(engine, "one")
    lines = said(engine, "one")
    assert lines[0] == "one"
    assert json.loads(lines[1]) == {"learning-rate": "0.1"}
    resources = json.loads(lines[2])
    assert (resources["current_host"], resources["hosts"]) == ("algo-1", ["algo-1"])
    assert json.loads(lines[3])["words"]["TrainingInputMode"] == "File"
    assert lines[4] == "/opt/ml/input/data/words 0.1 algo-1 one fast"
    assert set(lines[7:]) == {"checkpoints", "input", "model", "output", "tmp"}
    phases = [each["Status"] for each in about["SecondaryStatusTransitions"]]
    assert phases == ["Starting", "Downloading", "Training", "Uploading"]
    assert about["CreationTime"] <= about["TrainingStartTime"] <= about["TrainingEndTime"]
    assert about["TrainingTimeInSeconds"] == about["BillableTimeInSeconds"] >= 0
    assert "Tags" not in about
    assert about["HyperParameters"] == {"learning-rate": "0.1"}
    model = about["ModelArtifacts"]["S3ModelArtifacts"]
    with tarfile.open(fileobj=io.BytesIO(Path(model).read_bytes())) as archive:
        (weights,) = [name for name in archive.getnames() if name != "."]
    assert weights == "./weights"
    assert not (Path(model).parent / "output.tar.gz").exists()


def test_instances_share_out_a_channel(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.txt").touch()
    source = channel("data", tmp_path / "in", S3DataDistributionType="ShardedByS3Key")
    engine.create_training_job(
        **training("two", "ls /opt/ml/input/data/data | tr '\\n' ' '; echo", instances=2, InputDataConfig=[source])
    )
    assert over(engine, "two")["TrainingJobStatus"] == "Completed"
    assert said(engine, "two") == ["algo-1: 0.txt 2.txt ", "algo-2: 1.txt 3.txt "]


# ---- how it ends -------------------------------------------------------------------------------------------------


def test_a_program_that_fails_says_why_in_its_file(engine: Any) -> None:
    engine.create_training_job(**training("fails", "echo no such patient >/opt/ml/output/failure; exit 7"))
    about = over(engine, "fails")
    assert about["TrainingJobStatus"] == about["SecondaryStatus"] == "Failed"
    assert about["FailureReason"] == "AlgorithmError: no such patient\n, exit code: 7"
    assert "ExitMessage" not in about
    assert causes.classify(processing_words(about)) == "user"


def test_input_that_is_not_there_is_the_clients_fault(engine: Any, tmp_path: Path) -> None:
    engine.create_training_job(**training("empty", InputDataConfig=[channel("data", tmp_path / "none")]))
    about = over(engine, "empty")
    assert about["FailureReason"].startswith("ClientError: No objects found under")


def test_stopping_and_running_out_of_time(engine: Any, tmp_path: Path) -> None:
    output = {"S3OutputPath": str(tmp_path / "out")}
    shell = "echo state >/opt/ml/model/state; echo at work; exec sleep 1000"
    engine.create_training_job(**training("stopped", shell, OutputDataConfig=output))
    is_training(engine, "stopped", "at work")
    engine.stop_training_job(TrainingJobName="stopped")
    about = over(engine, "stopped")
    assert (about["TrainingJobStatus"], about["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert (tmp_path / "out" / "stopped" / "output" / "model.tar.gz").exists()
    assert causes.classify(processing_words(about)) == "stopped"
    code, message = refusal(engine.stop_training_job, TrainingJobName="stopped")
    assert (code, message) == (
        "ValidationException",
        "The request was rejected because the training job is in status Stopped.",
    )
    engine.create_training_job(**training("long", "exec sleep 1000", StoppingCondition={"MaxRuntimeInSeconds": 1}))
    about = over(engine, "long")
    assert (about["TrainingJobStatus"], about["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert causes.classify(processing_words(about)) == "timeout"


# ---- spot instances ----------------------------------------------------------------------------------------------

COUNT = "n=$(ls /opt/ml/checkpoints | wc -l); touch /opt/ml/checkpoints/$n; echo begun after $n; "


def test_an_interrupted_job_begins_again_at_its_checkpoints(engine: Any, tmp_path: Path) -> None:
    shell = "trap 'echo told; exit 0' TERM; [ -e /opt/ml/checkpoints/0 ] || touch /opt/ml/model/old; "
    shell += f"{COUNT} [ $n = 1 ] || {{ sleep 1000 & wait; }}"
    kept = {"S3Uri": str(tmp_path / "kept")}
    engine.create_training_job(**spot("spot", shell, CheckpointConfig=kept))
    is_training(engine, "spot", "begun after 0")
    engine.interrupt_training_job("spot")
    about = over(engine, "spot")
    assert about["TrainingJobStatus"] == "Completed", said(engine, "spot")
    assert said(engine, "spot") == ["begun after 0", "told", "begun after 1"]
    phases = [each["Status"] for each in about["SecondaryStatusTransitions"]]
    assert phases == [
        *("Starting", "Downloading", "Training", "Interrupted"),
        *("Starting", "Downloading", "Training", "Uploading"),
    ]


def test_an_interruption_that_ends_a_job_has_a_cause_of_its_own(engine: Any) -> None:
    engine.create_training_job(**spot("spot", "echo at work; exec sleep 1000"))
    is_training(engine, "spot", "at work")
    engine.interrupt_training_job("spot", restart=False)
    about = over(engine, "spot")
    assert (about["TrainingJobStatus"], about["SecondaryStatus"]) == ("Stopped", "Interrupted")
    answer = processing_words(about)
    assert causes.classify(answer) == "interrupted"
    assert causes.reason_of(answer, "interrupted") == "Its spot instances were taken back."


def test_the_wait_for_spot_instances_ends(engine: Any) -> None:
    engine.create_training_job(**spot("spot", "trap '' TERM; echo at work; sleep 1; exec sleep 2", wait_s=2))
    is_training(engine, "spot", "at work")
    engine.interrupt_training_job("spot")
    about = over(engine, "spot")
    assert (about["TrainingJobStatus"], about["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")
    assert causes.classify(processing_words(about)) == "interrupted"
    never = {"TrainingJobName": "n", "TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxWaitTimeExceeded"}
    assert causes.needs_describe(processing_words(never))
    assert causes.classify(processing_words(never)) == "capacity"
    assert "no spot instances" in causes.reason_of(processing_words(never), "capacity")


def test_instances_that_are_taken_back_at_once(local: LocalEngine) -> None:
    """Whether or not the program has begun by then, it begins on others."""
    local.create_training_job(**spot("spot", "echo at work; exec sleep 2"))
    local.interrupt_training_job("spot")
    about = over(local, "spot")
    assert about["TrainingJobStatus"] == "Completed", about
    phases = [each["Status"] for each in about["SecondaryStatusTransitions"]]
    assert (phases.count("Interrupted"), phases.count("Training")) == (1, 2)


def test_only_spot_instances_are_taken_back(local: LocalEngine) -> None:
    local.create_training_job(**training("sure", "exec sleep 1000"))
    assert refusal(local.training.interrupt_training_job, name="sure")[1] == "sure has no spot instances."


# ---- warm instances ----------------------------------------------------------------------------------------------


def test_the_next_job_that_matches_gets_the_warm_instances(engine: Any) -> None:
    def warm(name: str, **more: Any) -> dict[str, Any]:
        request = training(name, **more)
        request["ResourceConfig"] = request["ResourceConfig"] | {"KeepAlivePeriodInSeconds": 600}
        return request

    def pool(name: str) -> Any:
        return engine.describe_training_job(TrainingJobName=name)["WarmPoolStatus"]

    engine.create_training_job(**warm("first"))
    over(engine, "first")
    assert pool("first")["Status"] == "Available"
    engine.create_training_job(**warm("other", RoleArn=f"{ROLE}2"))
    over(engine, "other")
    assert pool("first")["Status"] == "Available"
    engine.create_training_job(**warm("second"))
    over(engine, "second")
    assert (pool("first")["Status"], pool("first")["ReusedByJob"]) == ("Reused", "second")
    lines = engine.list_training_jobs(WarmPoolStatusEquals="Available")["TrainingJobSummaries"]
    assert {line["TrainingJobName"] for line in lines} == {"second", "other"}


# ---- lists, names, quotas ----------------------------------------------------------------------------------------


def test_names_and_quotas_are_not_those_of_processing_jobs(tmp_path: Path) -> None:
    with local_engine(tmp_path / "engine") as engine:
        engine.training.max_instances = 1
        engine.create_training_job(**training("one", "exec sleep 1000"))
        code, message = refusal(engine.create_training_job, **spot("two", "true"))
        assert code == "ResourceLimitExceeded"
        assert "'ml.m5.xlarge for spot training job usage' is 1 Instances" in message
        assert refusal(engine.create_training_job, **training("one"))[0] == "ResourceInUse"
        code, message = refusal(engine.describe_training_job, TrainingJobName="none")
        assert (code, message) == ("ValidationException", "Requested resource not found.")
        assert refusal(engine.describe_processing_job, ProcessingJobName="one")[0] == "ValidationException"
        engine.stop_training_job(TrainingJobName="one")


def test_lists_go_page_by_page(engine: Any) -> None:
    local = getattr(engine, "engine", engine)
    for i in range(5):
        local.create_failed_training_job(CAPACITY, **training(f"job-{i}"))
    first = engine.list_training_jobs(MaxResults=3, SortBy="Name", SortOrder="Ascending")
    assert [line["TrainingJobName"] for line in first["TrainingJobSummaries"]] == ["job-0", "job-1", "job-2"]
    rest = engine.list_training_jobs(MaxResults=3, SortBy="Name", SortOrder="Ascending", NextToken=first["NextToken"])
    assert [line["TrainingJobName"] for line in rest["TrainingJobSummaries"]] == ["job-3", "job-4"]
    assert {line["TrainingJobStatus"] for line in rest["TrainingJobSummaries"]} == {"Failed"}
    assert causes.classify(calls.Service(engine).describe("training", "job-0")) == "capacity"
    assert not engine.list_training_jobs(NameContains="job", StatusEquals="Completed")["TrainingJobSummaries"]


def test_faults_are_for_training_jobs_too(local: LocalEngine) -> None:
    faulty = FaultyEngine(local, capacity_errors=1.0)
    faulty.create_training_job(**training("one"))
    assert faulty.describe_training_job(TrainingJobName="one")["FailureReason"] == CAPACITY
    code, _ = refusal(FaultyEngine(local, throttle=1.0).list_training_jobs)
    assert code == "ThrottlingException"


def test_spot_instances_may_be_taken_back_at_random(local: LocalEngine, tmp_path: Path) -> None:
    faulty = FaultyEngine(local, spot_interruptions=1.0)
    kept = {"S3Uri": str(tmp_path / "kept")}
    faulty.create_training_job(**spot("spot", f"{COUNT} [ $n = 1 ] || exec sleep 1000", CheckpointConfig=kept))
    assert over(faulty, "spot")["TrainingJobStatus"] == "Completed"
    assert said(local, "spot") == ["begun after 0", "begun after 1"]
    faulty.create_training_job(**training("sure", "sleep 1.5"))  # it is on no spot instance
    assert over(faulty, "sure")["TrainingJobStatus"] == "Completed"


def test_a_supervisor_that_is_killed_is_the_services_fault(local: LocalEngine) -> None:
    local.create_training_job(**training("lost", "echo at work; exec sleep 1000"))
    is_training(local, "lost", "at work")
    os.kill(local.training._files("lost").supervisor() or 0, signal.SIGKILL)
    about = over(local, "lost")
    assert about["FailureReason"].startswith("InternalServerError")
    assert "WarmPoolStatus" not in about


# ---- requests that the service refuses ---------------------------------------------------------------------------


def changed(**fields: Any) -> dict[str, Any]:
    """A request in which fields have other values; None removes them."""
    request = training("one") | fields
    return {name: value for name, value in request.items() if value is not None}


RESOURCES = training("one")["ResourceConfig"]
SPECIFICATION = training("one")["AlgorithmSpecification"]
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no program": ({"AlgorithmSpecification": None}, "must have AlgorithmSpecification"),
    "no cluster": ({"ResourceConfig": None}, "must have ResourceConfig"),
    "no image": (
        {"AlgorithmSpecification": SPECIFICATION | {"AlgorithmName": "arn"}},
        "exactly one of TrainingImage and AlgorithmName",
    ),
    "no entrypoint": (
        {"AlgorithmSpecification": {name: SPECIFICATION[name] for name in ("TrainingImage", "TrainingInputMode")}},
        "give AlgorithmSpecification.ContainerEntrypoint",
    ),
    "no volume": ({"ResourceConfig": RESOURCES | {"VolumeSizeInGB": 0}}, "VolumeSizeInGB of 1 or more"),
    "no instance": ({"ResourceConfig": RESOURCES | {"InstanceCount": 0}}, "InstanceCount of 1 or more"),
    "two ways": (
        {"ResourceConfig": RESOURCES | {"InstancePreferences": [{"InstanceType": "ml.m5.xlarge"}]}},
        "exactly one of InstanceType and InstancePreferences",
    ),
    "long": ({"StoppingCondition": {"MaxRuntimeInSeconds": 2419201}}, "must be 2419200 at most"),
    "spot without a wait": ({"EnableManagedSpotTraining": True}, "MaxWaitTimeInSeconds must be given"),
    "a short wait": (
        {
            "EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 60},
        },
        "equal to or greater than MaxRuntimeInSeconds",
    ),
    "a wait for nothing": (
        {"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 600}},
        "must not be given unless",
    ),
    "warm and spot": (
        {
            "EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 600},
            "ResourceConfig": RESOURCES | {"KeepAlivePeriodInSeconds": 60},
        },
        "not supported with EnableManagedSpotTraining",
    ),
    "two channels of one name": (
        {"InputDataConfig": [channel("a", "s3://b/"), channel("a", "s3://c/")]},
        "ChannelName must be unique",
    ),
    "a pipe": (
        {"InputDataConfig": [channel("a", "s3://b/") | {"InputMode": "Pipe"}]},
        "InputMode Pipe; the local engine knows File only",
    ),
    "checkpoints elsewhere": (
        {"CheckpointConfig": {"S3Uri": "s3://b/", "LocalPath": "/etc"}},
        "must begin with /opt/ml/",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_rules_that_a_request_breaks(case: str) -> None:
    fields, words = WRONG[case]
    request = changed(**fields)
    validation.check("CreateTrainingJob", request)
    code, message = refusal(training_rules.check_rules, request=request, isolated=True)
    assert code == "ValidationException"
    assert words in message


def test_the_model_of_the_service_is_kept_to(engine: Any) -> None:
    code, message = refusal(engine.create_training_job, **changed(TrainingJobName="-x"))
    assert code == "ValidationException"
    assert "Value '-x' at 'trainingJobName' failed to satisfy constraint" in message
    _, message = refusal(engine.create_training_job, **changed(Environment={"A": "x" * 513}))
    assert "Map value must have length less than or equal to 512" in message
    with pytest.raises(ParamValidationError, match="OutputDataConfig"):
        engine.create_training_job(**changed(OutputDataConfig=None))
