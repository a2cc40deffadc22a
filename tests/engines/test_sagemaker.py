"""Settings of SageMaker jobs: from fields, YAML or Processor objects; the requests made of them; logs."""

from __future__ import annotations

import json
import re
import sys
import time
import types
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
import pytest
from pydantic import BaseModel

import shardkit as sk
from shardkit.engines.instances import instance_vcpus
from shardkit.engines.kinds import EngineSettings, settings_from
from shardkit.engines.local_settings import Local
from shardkit.engines.sagemaker import SageMaker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGION = "eu-west-1"
ROLE = "arn:aws:iam::123456789012:role/service-role/Data"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/science:1"
SHAPE = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateProcessingJob").input_shape


def settings(**fields: Any) -> SageMaker:
    return SageMaker(**({"role": ROLE, "image": IMAGE, "region": REGION} | fields))


def refused(**fields: Any) -> str:
    """The error of the settings about fields that they do not accept."""
    with pytest.raises(sk.PipelineError) as caught:
        settings(**fields)
    return str(caught.value)


def request(engine: SageMaker | Local, **options: Any) -> dict[str, Any]:
    return engine.request(**({"entrypoint": ["/bin/sh", "bootstrap.sh"], "arguments": ["pass1"]} | options))


def complaints(value: Any, shape: Any, at: str = "") -> list[str]:
    """How a value violates the service's model: names, lengths, ranges, patterns, choices."""
    kind, rules = shape.type_name, shape.metadata
    if kind == "structure":
        found = [f"{at}.{name}: unknown" for name in value if name not in shape.members]
        found += [f"{at}.{name}: missing" for name in shape.required_members if name not in value]
        known = {name: item for name, item in value.items() if name in shape.members}
        return found + [
            c for name, item in known.items() for c in complaints(item, shape.members[name], f"{at}.{name}")
        ]
    size = value if kind == "integer" else len(value) if kind in {"string", "list", "map"} else 0
    found = [] if rules.get("min", size) <= size <= rules.get("max", size) else [f"{at}: size {size}"]
    if kind == "list":
        return found + [c for i, item in enumerate(value) for c in complaints(item, shape.member, f"{at}[{i}]")]
    if kind == "map":
        pairs = [(name, shape.key) for name in value] + [(item, shape.value) for item in value.values()]
        return found + [c for item, its in pairs for c in complaints(item, its, at)]
    if kind == "string" and not re.search(r"\\p", pattern := rules.get("pattern", ".*")):
        found += [] if re.fullmatch(pattern, value) else [f"{at}: {value} is not {pattern}"]
    return found + ([f"{at}: {value}"] if value not in rules.get("enum", [value]) else [])


# ---- requests --------------------------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "instance_type": "ml.c5.9xlarge",
    "volume_gb": 500,
    "kms_key": "alias/all",
    "max_runtime": 7200,
    "tags": {"team": "cardiology"},
    "env": {"OMP_NUM_THREADS": 1, "MODE": "fast"},
    "network": {
        "subnets": ["subnet-1"],
        "security_group_ids": "sg-1",
        "enable_network_isolation": True,
        "encrypt_inter_container_traffic": True,
    },
}


def test_the_smallest_request() -> None:
    assert request(settings()) == {
        "RoleArn": ROLE,
        "AppSpecification": {
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["/bin/sh", "bootstrap.sh"],
            "ContainerArguments": ["pass1"],
        },
        "ProcessingResources": {
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 30}
        },
    }


def test_a_request_with_everything() -> None:
    code = {
        "InputName": "code",
        "S3Input": {
            "S3Uri": "s3://bucket/code/",
            "LocalPath": "/opt/ml/processing/input/code",
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
        },
    }
    output = {
        "OutputName": "out",
        "S3Output": {"S3Uri": "s3://bucket/out/", "LocalPath": "/opt/ml/processing/out", "S3UploadMode": "EndOfJob"},
    }
    made = request(settings(**WHOLE), inputs=[code], outputs=[output], environment={"MODE": "x", "B": "2"}, instances=3)
    assert made["ProcessingResources"]["ClusterConfig"] == {
        "InstanceCount": 3,
        "InstanceType": "ml.c5.9xlarge",
        "VolumeSizeInGB": 500,
        "VolumeKmsKeyId": "alias/all",
    }
    assert made["ProcessingInputs"] == [code]
    assert made["ProcessingOutputConfig"] == {"Outputs": [output], "KmsKeyId": "alias/all"}
    assert made["Environment"] == {"OMP_NUM_THREADS": "1", "MODE": "x", "B": "2"}
    assert made["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200}
    assert made["Tags"] == [{"Key": "team", "Value": "cardiology"}]
    assert made["NetworkConfig"] == {
        "EnableNetworkIsolation": True,
        "EnableInterContainerTrafficEncryption": True,
        "VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
    }
    assert complaints(made | {"ProcessingJobName": "a-0-1"}, SHAPE) == []


def test_preferences_replace_the_instance_type() -> None:
    engine = settings(instance_type="ml.t3.large", instance_preferences=["ml.m5.4xlarge", "ml.m6i.2xlarge"])
    made = request(engine)
    assert made["ProcessingResources"]["ClusterConfig"] == {
        "InstanceCount": 1,
        "VolumeSizeInGB": 30,
        "InstancePreferences": [{"InstanceType": "ml.m5.4xlarge"}, {"InstanceType": "ml.m6i.2xlarge"}],
    }
    assert engine.vcpus == 8, "what the smallest has"
    assert complaints(made | {"ProcessingJobName": "a-0-1"}, SHAPE) == []


def test_one_key_for_all_and_keys_of_their_own() -> None:
    engine = settings(kms_key="all", volume_kms_key="mine")
    assert (engine.volume_kms_key, engine.output_kms_key) == ("mine", "all")
    for other in (engine.replace(kms_key="new"), SageMaker(ScriptProcessor(), kms_key="new")):
        assert (other.volume_kms_key, other.output_kms_key) == ("new", "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": [""]}, "arguments[0]: 0 characters"),
        ({"arguments": ["x"] * 101}, "arguments: 101 are too many"),
        ({"arguments": ["a", "x" * 257]}, "arguments[1]: 257 characters"),
        ({"entrypoint": ["x" * 257]}, "entrypoint[0]: 257 characters"),
        ({"inputs": [{"InputName": f"i{i}"} for i in range(11)]}, "inputs: 11 are too many"),
        ({"inputs": [{"InputName": "a"}] * 2}, "inputs: two have the same InputName"),
        ({"environment": {f"A{i}": "1" for i in range(100)}}, "env: 1 variables and shardkit's own 100"),
        ({"environment": {"A": "x" * 257}}, "environment.A: more than 256"),
    ],
)
def test_requests_that_the_service_would_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sk.PipelineError) as caught:
        request(settings(env={"MINE": "1"}), **options)
    assert message in str(caught.value)


# ---- fields ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"role": "arn:aws:iam::1:role/x"}, "role: expected the ARN of an IAM role"),
        ({"role": "two words"}, "role: expected the ARN"),
        ({"image": ""}, "image: must not be empty"),
        ({"instance_type": "m5.xlarge"}, "instance_type: 'm5.xlarge' is no instance type; did you mean ml.m5.xlarge?"),
        ({"instance_type": "big"}, "instance_type: 'big' is no instance type, such as"),
        (
            {"instance_preferences": ["ml.m5.large", "ml.m5.large"]},
            "instance_preferences: an instance type is named twice",
        ),
        (
            {"instance_preferences": [f"ml.m5.{2 * i}xlarge" for i in range(1, 7)]},
            "instance_preferences: 6 instance types are too many",
        ),
        ({"instance_count": 0}, "instance_count: should be greater than or equal to 1"),
        ({"volume_gb": 0}, "volume_gb: should be greater than or equal to 1"),
        ({"volume_gb": 16385}, "volume_gb: should be less than or equal to 16384"),
        ({"volume_gb": True}, "volume_gb: expected a number"),
        ({"max_runtime": 777601}, "max_runtime: should be less than or equal to 777600"),
        ({"kms_key": "a key"}, "volume_kms_key: expected the id, ARN or alias of a KMS key"),
        ({"base_job_name": "my_job"}, "base_job_name: expected"),
        ({"command": ["Rscript"]}, "command: shardkit runs Python, such as ['python3'], not Rscript"),
        ({"tags": {"aws:mine": "1"}}, "tags: 'aws:mine' will not do"),
        ({"tags": {"a": "x" * 257}}, "tags: 'a' is too long"),
        ({"tags": {"a": "what?"}}, "tags: 'a' holds '?'"),
        ({"tags": {f"k{i}": "" for i in range(51)}}, "tags: 51 tags are too many"),
        ({"tags": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]}, "tags: a key is given twice"),
        ({"tags": ["a"]}, "tags: expected a mapping"),
        ({"env": ["a"]}, "env: expected a mapping"),
        ({"env": {"A": True}}, "env: expected a text for A; put it in quotes"),
        ({"env": {"A-B": "1"}}, "env: 'A-B' is no name of a variable"),
        ({"env": {"A": "x" * 257}}, "env: A is too long"),
        ({"env": {f"A{i}": "" for i in range(101)}}, "env: 101 variables are too many"),
        ({"network": {"subnets": ["subnet-1"]}}, "network: a VPC takes both subnets and security_group_ids"),
        ({"network": {"subnet": ["subnet-1"]}}, "network.subnet: unknown field; did you mean subnets?"),
        ({"tag": {}}, "tag: unknown field; did you mean tags?"),
        ({"root": "/x"}, "root: unknown field"),
    ],
    ids=str,
)
def test_fields_that_will_not_do(fields: dict[str, Any], message: str) -> None:
    assert message in refused(**fields)


def test_missing_fields() -> None:
    with pytest.raises(sk.PipelineError) as caught:
        SageMaker()
    assert "role: this field is missing" in str(caught.value)
    assert "image: this field is missing" in str(caught.value)
    assert "Give a Processor" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ml.m5.3xlarge", "ml.m5.2xlarge"),
        ("ml.c5.8xlarge", "ml.c5.18xlarge"),
        ("ml.m5.xlarge", None),
        ("ml.zz9.large", None),
    ],
)
def test_sizes_that_a_family_does_not_have(name: str, near: str | None) -> None:
    engine = settings(instance_type=name)
    if near is None:  # there is one, or the family may be newer than the list
        assert request(engine)["ProcessingResources"]["ClusterConfig"]["InstanceType"] == name
        return
    with pytest.raises(sk.PipelineError, match=f"Processing has no {name}; did you mean ml"):
        request(engine)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "abc"),
        ("AWS_ACCESS_KEY_ID", "abc"),
        ("AWS_SESSION_TOKEN", "abc"),
        ("DB_PASSWORD", "abc"),
        ("PGPASSWORD", "abc"),
        ("db_pwd", "abc"),
        ("HF_TOKEN", "abc"),
        ("CLIENT_SECRET", "abc"),
        ("SECRET_KEY", "abc"),
        ("OPENAI_API_KEY", "abc"),
        ("APIKEY", "abc"),
        ("GITHUB_TOKEN_READ", "abc"),
        ("SECRET2", "abc"),
        ("AUTHTOKEN", "abc"),
        ("MYSQL_ROOT_PASSWORD_OLD", "abc"),
        ("X", "s" + "k-" + "aB3" * 10),
        ("X", "AKIA" + "ABCDEFGH" * 2),
        ("X", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("X", "gh" + "p_" + "a1" * 18),
        ("DATABASE_URL", "postgres://me:hunter2@db/x"),
    ],
)
def test_secrets_are_refused_and_not_repeated(name: str, value: str) -> None:
    with pytest.raises(sk.PipelineError) as caught:
        settings(env={name: value})
    assert f"env: {name} looks like a secret" in str(caught.value)
    assert "Secrets Manager" in str(caught.value)
    cause: BaseException | None = caught.value
    while cause is not None:
        assert value not in str(cause).replace(name, "")
        cause = cause.__cause__


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_SECRET", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:db"),
        ("SECRET_NAME", "production/db"),
        ("SECRET_ARN", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:db"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MAX_TOKENS", "512"),
        ("HF_TOKEN", ""),
        ("PWD", "/work"),
        ("PARTITION_KEY", "day"),
        ("URL", "https://example.com/a:b@c"),
        ("PASSWORD_FILE", "/run/password"),
        ("TOKEN_LIMIT", "4096"),
        ("SECRETARY", "x"),
        ("STOKEN", "x"),
        ("MODEL", "s3://models/sk-learn-pipeline-of-the-year"),
    ],
)
def test_what_only_sounds_like_a_secret(name: str, value: str) -> None:
    assert settings(env={name: value}).env == {name: value}


def test_cpus_of_instance_types() -> None:
    known = {
        "ml.t3.medium": 2,
        "ml.m5.large": 2,
        "ml.m5.xlarge": 4,
        "ml.r5.2xlarge": 8,
        "ml.c5.18xlarge": 72,
        "ml.c4.8xlarge": 36,
        "ml.g4dn.16xlarge": 64,
        "ml.p5.48xlarge": 192,
        "ml.m7i-flex.8xlarge": 32,
        "ml.c7i.metal-24xl": 96,
        "ml.m5.metal": 96,
    }
    assert {name: instance_vcpus(name) for name in known} == known
    cluster = SHAPE.members["ProcessingResources"].members["ClusterConfig"]
    assert all(instance_vcpus(name) >= 2 for name in cluster.members["InstanceType"].enum)
    for name in ("m5.xlarge", "ml.m5", "ml.m5.xlarges", "local"):
        with pytest.raises(ValueError, match="is no instance type"):
            instance_vcpus(name)


def test_several_instances_are_for_shards_by_key_only() -> None:
    settings().check_instances("directory")
    several = settings(instance_count=3)
    several.check_instances("s3key", 3)
    with pytest.raises(sk.PipelineError, match="3 instances would all do the same work.*by: s3key, instances: 3"):
        several.check_instances("directory")
    with pytest.raises(sk.PipelineError, match="3 instances, but the shards are for 4"):
        several.check_instances("s3key", 4)


# ---- plain data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, WHOLE | {"profile": "work", "endpoint_url": "http://127.0.0.1:1"}])
def test_there_and_back(fields: dict[str, Any]) -> None:
    engine = settings(**fields)
    data = json.loads(json.dumps(engine.to_dict()))
    assert settings_from(data) == engine
    assert data == settings_from(data).to_dict()


def test_sessions_and_clients_stay_behind() -> None:
    session = boto3.Session(aws_access_key_id="AKID", aws_secret_access_key="hidden", region_name=REGION)
    engine = settings(boto_session=session, client=object(), region=None)
    assert "hidden" not in json.dumps(engine.to_dict())
    assert {"boto_session", "client"}.isdisjoint(engine.to_dict())
    assert "hidden" not in repr(engine)
    assert settings_from(engine.to_dict(), boto_session=session).boto_session is session


def test_a_copy_with_other_values() -> None:
    client = object()
    engine = settings(client=client, **WHOLE).replace(volume_gb=7)
    assert engine.volume_gb == 7
    assert engine.max_runtime == 7200
    assert engine.client() is client
    several = engine.replace(instance_preferences=["ml.m5.large", "ml.m6i.large"])
    assert several.instance_preferences == ("ml.m5.large", "ml.m6i.large")
    assert several.replace(instance_type="ml.m5.xlarge").instance_preferences == ()


def test_an_unknown_kind() -> None:
    with pytest.raises(sk.PipelineError, match="engine.kind: expected 'local' or 'sagemaker' or 'slurm', not 'docker'"):
        settings_from({"kind": "docker"})


class Holder(BaseModel):
    """A stand-in for a pipeline."""

    engine: EngineSettings = None


def test_the_section_of_a_pipeline() -> None:
    engine = settings()
    assert Holder(engine=engine).engine is engine
    assert Holder(engine=engine.to_dict()).engine == engine
    assert isinstance(Holder(engine={"kind": "local"}).engine, Local)
    assert Holder().engine is None


def test_errors_in_a_section_keep_their_places() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        Holder(engine={"kind": "sagemaker", "role": ROLE, "image": IMAGE, "volume_gb": 0, "nonesuch": 1})
    assert {problem["loc"] for problem in caught.value.errors()} == {("engine", "volume_gb"), ("engine", "nonesuch")}
    with pytest.raises(ValidationError, match="or a mapping with its kind"):
        Holder(engine={"role": ROLE})


# ---- Processor objects -----------------------------------------------------------------------------------------


class NetworkConfig:
    def __init__(self, **options: Any) -> None:
        self.enable_network_isolation = None
        self.security_group_ids = None
        self.subnets = None
        self.encrypt_inter_container_traffic = None
        vars(self).update(options)


class Session:
    def __init__(self) -> None:
        self.boto_session = boto3.Session(region_name=REGION)
        self.sagemaker_client = object()
        self.boto_region_name = REGION


class LocalSession(Session):
    pass


class PipelineVariable:
    pass


class ScriptProcessor:
    """What the ScriptProcessors of both SDKs have in common."""

    def __init__(self, **options: Any) -> None:
        self.role = ROLE
        self.image_uri = IMAGE
        self.instance_type = "ml.m5.4xlarge"
        self.instance_count = 1
        self.volume_size_in_gb = 60
        self.volume_kms_key = "vk"
        self.output_kms_key = "ok"
        self.max_runtime_in_seconds = 3600
        self.env = {"MODE": "fast"}
        self.tags = [{"Key": "team", "Value": "x"}]
        self.network_config = NetworkConfig(subnets=["s"], security_group_ids=["g"])
        self.base_job_name = "base"
        self.command = ["python3"]
        self.sagemaker_session: Any = Session()
        vars(self).update(options)


class _SparkProcessorBase(ScriptProcessor):
    pass


class PySparkProcessor(_SparkProcessorBase):
    pass


def test_a_processor() -> None:
    processor = ScriptProcessor()
    engine = SageMaker(processor)
    assert engine.to_dict() == {
        "kind": "sagemaker",
        "role": ROLE,
        "image": IMAGE,
        "instance_type": "ml.m5.4xlarge",
        "larger": 2,
        "instance_count": 1,
        "volume_gb": 60,
        "volume_kms_key": "vk",
        "output_kms_key": "ok",
        "max_runtime": 3600,
        "env": {"MODE": "fast"},
        "tags": {"team": "x"},
        "network": {"subnets": ["s"], "security_group_ids": ["g"], "enable_network_isolation": False},
        "base_job_name": "base",
        "command": ["python3"],
        "region": REGION,
    }
    assert engine.client() is processor.sagemaker_session.sagemaker_client
    assert SageMaker(processor=processor) == engine
    assert engine.vcpus == 16


def test_fields_beside_a_processor_go_over_it() -> None:
    processor = ScriptProcessor()
    engine = SageMaker(processor, volume_gb=5, network=None, region="us-east-1")
    assert (engine.volume_gb, engine.network, engine.max_runtime) == (5, None, 3600)
    assert engine.boto_session is processor.sagemaker_session.boto_session
    assert engine.client().meta.region_name == "us-east-1", "another region, another client"
    other = boto3.Session(region_name="us-west-2")
    assert SageMaker(processor, boto_session=other).client().meta.region_name == "us-west-2"


def test_preferences_of_a_processor() -> None:
    types = [
        {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2},
        {"InstanceType": "ml.m6i.xlarge", "InstanceCount": 2},
    ]
    processor = ScriptProcessor(instance_type=None, instance_count=None, instance_preferences=types)
    engine = SageMaker(processor)
    assert engine.instance_preferences == ("ml.m5.xlarge", "ml.m6i.xlarge")
    assert engine.instance_count == 2
    assert SageMaker(processor, instance_type="ml.m5.large").instance_preferences == ()
    types[0]["InstanceCount"] = 3
    with pytest.raises(sk.PipelineError, match="another InstanceCount for each type"):
        SageMaker(processor)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (ScriptProcessor(instance_type=PipelineVariable()), "ScriptProcessor.instance_type is a pipeline variable"),
        (ScriptProcessor(env={"A": PipelineVariable()}), "ScriptProcessor.env['A'] is a pipeline variable"),
        (ScriptProcessor(tags=[{"Key": "a", "Value": PipelineVariable()}]), "is a pipeline variable"),
        (
            ScriptProcessor(network_config=NetworkConfig(subnets=[PipelineVariable()])),
            "NetworkConfig.network_config.subnets is a pipeline variable",
        ),
        (PySparkProcessor(), "PySparkProcessor runs Spark"),
        (ScriptProcessor(instance_type="local"), "sk.Local(processor)"),
        (ScriptProcessor(command=["Rscript"]), "command: shardkit runs Python"),
        (ScriptProcessor(env={"DB_PASSWORD": "x"}), "env: DB_PASSWORD looks like a secret"),
        (object(), "object is no Processor of the SageMaker SDK"),
    ],
)
def test_processors_that_will_not_do(processor: Any, message: str) -> None:
    with pytest.raises(sk.PipelineError) as caught:
        SageMaker(processor)
    assert message in str(caught.value)


# ---- boto3 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from moto import mock_aws

    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield


@pytest.mark.usefixtures("aws")
def test_the_client_is_of_the_callers_session() -> None:
    session = boto3.Session(region_name="us-west-2")
    engine = SageMaker(role=ROLE, image=IMAGE, boto_session=session, endpoint_url="http://127.0.0.1:7")
    client = engine.client()
    assert client.meta.region_name == "us-west-2"
    assert client.meta.endpoint_url == "http://127.0.0.1:7"
    assert client.meta.config.retries["mode"] == "standard"
    assert engine.client() is client
    assert settings().client().meta.region_name == REGION


@pytest.mark.usefixtures("aws")
def test_no_region_and_no_such_profile(tmp_path: Path) -> None:
    with pytest.raises(sk.PipelineError, match="engine.region: no region is set"):
        SageMaker(role=ROLE, image=IMAGE).client()
    with pytest.raises(sk.PipelineError, match="engine.profile: there is no profile nonesuch"):
        settings(profile="nonesuch").client()
    (tmp_path / "config").write_text("[profile work]\nregion = ap-south-1\n")
    assert SageMaker(role=ROLE, image=IMAGE, profile="work").client().meta.region_name == "ap-south-1"


@pytest.mark.usefixtures("aws")
def test_a_role_by_its_name() -> None:
    boto3.client("iam", region_name=REGION).create_role(
        RoleName="Data", Path="/service-role/", AssumeRolePolicyDocument="{}"
    )
    engine = settings(role="Data").resolved()
    assert engine.role == ROLE
    assert engine.to_dict()["role"] == ROLE
    assert engine.resolved() == engine
    with pytest.raises(sk.PipelineError, match="engine.role: cannot find out the ARN of Nobody"):
        settings(role="Nobody").resolved()


def test_a_short_image_name_asks_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def retrieve(framework: str, region: str, **options: Any) -> str:
        asked.append({"framework": framework, "region": region} | options)
        if options["version"] != "2.3":
            raise ValueError("Unsupported version.")
        return f"account.dkr.ecr.{region}/{framework}:whole"

    modules = {name: types.ModuleType(name) for name in ("sagemaker", "sagemaker.core", "sagemaker.core.image_uris")}
    modules["sagemaker.core.image_uris"].retrieve = retrieve  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    engine = settings(image="pytorch:2.3-cpu-py311", instance_type="ml.g5.xlarge")
    assert asked == [], "not before it is needed"
    assert request(engine)["AppSpecification"]["ImageUri"] == f"account.dkr.ecr.{REGION}/pytorch:whole"
    assert engine.resolved().to_dict()["image"].endswith("pytorch:whole")
    assert [(a["version"], a.get("py_version"), a["instance_type"]) for a in asked] == [
        ("2.3-cpu-py311", None, "ml.g5.xlarge"),
        ("2.3", "py311", "ml.g5.xlarge"),
    ]
    with pytest.raises(sk.PipelineError, match="does not know pytorch:9: Unsupported version. Give the image's whole"):
        settings(image="pytorch:9").resolved()


def test_a_short_image_name_without_an_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    with pytest.raises(sk.PipelineError, match="sklearn:1.4-2-py312 is a short name.*none is installed.*whole URI"):
        settings(image="sklearn:1.4-2-py312").resolved()


@pytest.mark.usefixtures("aws")
def test_logs() -> None:
    logs = boto3.client("logs", region_name=REGION)
    engine = settings()
    assert list(engine.log_lines("job-0-1")) == [], "nobody has said a word yet"
    group = "/aws/sagemaker/ProcessingJobs"
    now = int(time.time() * 1000) - 60_000
    logs.create_log_group(logGroupName=group)

    def say(stream: str, *texts: str, start: int) -> None:
        names = [found["logStreamName"] for found in logs.describe_log_streams(logGroupName=group)["logStreams"]]
        if stream not in names:
            logs.create_log_stream(logGroupName=group, logStreamName=stream)
        events = [{"timestamp": now + start + i, "message": text} for i, text in enumerate(texts)]
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    say("job-0-1/algo-1-1700000000", *(f"line {i}" for i in range(2500)), start=0)
    say("job-0-10/algo-1-1700000000", "another job's", start=0)
    assert list(engine.log_lines("job-0-1")) == [f"line {i}" for i in range(2500)]
    say("job-0-1/algo-1-1700000000", "and more\n", start=3000)
    assert list(engine.log_lines("job-0-1"))[-1] == "and more"
    assert list(engine.log_lines("job-0-2")) == []

    say("job-1-1/algo-2-1700000000", "b", "c", start=1)
    say("job-1-1/algo-10-1700000000", "d", start=3)
    say("job-1-1/algo-1-1700000000", "a", start=0)
    say("job-1-1/algo-1-1700000000", "e", start=4)
    lines = list(engine.log_lines("job-1-1"))
    assert lines == ["algo-1: a", "algo-2: b", "algo-2: c", "algo-10: d", "algo-1: e"], "by time"


# ---- on this machine -------------------------------------------------------------------------------------------


def test_local_settings_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    engine = Local()
    assert engine.root == str(tmp_path / "shardkit" / "engine")
    assert complaints(request(engine) | {"ProcessingJobName": "a-0-1"}, SHAPE) == []
    assert settings_from(json.loads(json.dumps(engine.to_dict()))) == engine
    assert engine.vcpus >= 1


def test_local_takes_what_sagemaker_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = Local(
        ScriptProcessor(instance_type="local", sagemaker_session=LocalSession()), root="jobs", max_instances=2
    )
    assert engine.root == str(tmp_path / "jobs")
    made = request(engine)
    assert made["RoleArn"] == ROLE
    assert made["ProcessingResources"]["ClusterConfig"]["VolumeSizeInGB"] == 60
    assert complaints(made | {"ProcessingJobName": "a-0-1"}, SHAPE) == []
    named = Local(role="Data", image="sklearn:1.4-2-py312", region=REGION, profile="work")
    assert complaints(request(named) | {"ProcessingJobName": "a-0-1"}, SHAPE) == []


def test_local_fields_that_will_not_do() -> None:
    with pytest.raises(sk.PipelineError, match="max_instances: should be greater than or equal to 1"):
        Local(max_instances=0)
    with pytest.raises(sk.PipelineError, match="env: HF_TOKEN looks like a secret"):
        Local(env={"HF_TOKEN": "abc"})


def test_local_jobs_are_the_local_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardkit.engines.local import LocalEngine, default_root

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Local().root == default_root()
    engine = Local(root=tmp_path / "jobs", max_instances=2, endpoint_url="http://127.0.0.1:7")
    client = engine.client()
    assert isinstance(client, LocalEngine)
    assert (client.root, client.max_instances, client.endpoint_url) == (engine.root, 2, engine.endpoint_url)
    assert engine.client() is client
    given = Local(client=client)
    assert given.client() is client
    assert given.to_dict() == engine.to_dict(), "another process finds the same engine"
    with pytest.raises(sk.PipelineError, match="isolation: expected 'auto', 'namespace' or 'none', not \"docker\""):
        Local(isolation="docker")


def test_a_local_job_says_what_it_does(tmp_path: Path) -> None:
    from shardkit.engines.local import available_isolation

    if available_isolation() == "none":
        pytest.skip("no instance can have its own /opt/ml here")
    engine = Local(root=tmp_path / "jobs", env={"MODE": "fast"})
    made = engine.request(
        entrypoint=["python3", "-c", "import os, sys; print(os.environ['MODE'], *sys.argv[1:])"], arguments=["a"]
    )
    client = engine.client()
    client.create_processing_job(ProcessingJobName="job-0-1", **made)
    while client.describe_processing_job(ProcessingJobName="job-0-1")["ProcessingJobStatus"] == "InProgress":
        time.sleep(0.05)
    assert list(engine.log_lines("job-0-1")) == ["fast a"]
