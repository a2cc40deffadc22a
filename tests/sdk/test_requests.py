"""shardkit sends what the SDK itself sends for the same Processor, except for what shardkit has to set."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import sdk
from botocore.validate import ParamValidator
from moto import mock_aws

import shardkit as sk
from shardkit.engines.kinds import settings_from
from shardkit.engines.sagemaker import SageMaker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGION = "eu-west-1"
ROLE = "arn:aws:iam::123456789012:role/service-role/Data"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/science:1"
# What differs: shardkit's own name, code and command line. Everything else is equal, field by field.
OWN = {
    "ProcessingJobName",
    "ProcessingInputs",
    "AppSpecification.ContainerEntrypoint",
    "AppSpecification.ContainerArguments",
}

MINIMAL: dict[str, Any] = {"role": ROLE, "image_uri": IMAGE, "instance_count": 1, "instance_type": "ml.m5.xlarge"}
WHOLE = MINIMAL | {
    "instance_type": "ml.c5.9xlarge",
    "volume_size_in_gb": 500,
    "volume_kms_key": "arn:aws:kms:eu-west-1:123456789012:key/volume",
    "output_kms_key": "alias/output",
    "max_runtime_in_seconds": 7200,
    "base_job_name": "features",
    "env": {"OMP_NUM_THREADS": "1", "MODE": "a b"},
    "tags": [{"Key": "team", "Value": "cardiology"}, {"Key": "cost", "Value": "42"}],
}
NETWORKS: dict[str, dict[str, Any]] = {
    "closed": {"enable_network_isolation": True},
    "open": {},
    "encrypted": {"encrypt_inter_container_traffic": True},
    "plain": {"encrypt_inter_container_traffic": False, "enable_network_isolation": False},
    "vpc": {"subnets": ["subnet-1", "subnet-2"], "security_group_ids": ["sg-1"]},
}


class Client:
    """A stand-in for boto3's SageMaker client, which keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def create_processing_job(self, **request: Any) -> dict[str, str]:
        self.requests.append(request)
        return {"ProcessingJobArn": f"arn:aws:sagemaker:{REGION}:123456789012:processing-job/job"}


@pytest.fixture(scope="module")
def boto_session() -> Iterator[boto3.Session]:
    with mock_aws():  # with credentials of its own
        session = boto3.Session(region_name=REGION)
        session.client("s3").create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
        yield session


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


@pytest.fixture(scope="module")
def session(boto_session: boto3.Session, client: Client) -> Any:
    return sdk.Session(boto_session, sagemaker_client=client, default_bucket="bucket", sagemaker_config=sdk.QUIET)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "script.py").write_text("print(1)\n")
    return tmp_path / "code"


def flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value and at != "Environment":
        return {k: v for name, item in value.items() for k, v in flat(item, f"{at}.{name}".lstrip(".")).items()}
    return {at: value}


def sent(processor: Any, code: Path, **options: Any) -> dict[str, Any]:
    """The request that the SDK sends."""
    if isinstance(processor, sdk.ScriptProcessor):
        if hasattr(processor, "code_location"):
            options |= {"code": "script.py", "source_dir": str(code)}
        else:
            options |= {"code": str(code / "script.py")}
    processor.run(arguments=["--mode", "fast"], wait=False, logs=False, **options)
    request: dict[str, Any] = processor.sagemaker_session.sagemaker_client.requests[-1]
    return request


def ours(processor: Any, **options: Any) -> dict[str, Any]:
    """The request that shardkit sends."""
    uri = "s3://bucket/out/_shardkit/code/0.tar.gz"
    where = {
        "S3Uri": uri,
        "LocalPath": "/opt/ml/processing/input/code",
        "S3DataType": "S3Prefix",
        "S3InputMode": "File",
    }
    return SageMaker(processor).request(
        entrypoint=["/bin/sh", "/opt/ml/processing/input/code/bootstrap.sh"],
        arguments=["pass1", "--job", "0"],
        inputs=[{"InputName": "code", "S3Input": where}],
        **options,
    )


def assert_alike(request: dict[str, Any], theirs: dict[str, Any]) -> None:
    mine, other = flat(request), flat(theirs)
    differing = {name for name in mine | other if mine.get(name, ...) != other.get(name, ...)}
    assert differing <= OWN, {name: (mine.get(name), other.get(name)) for name in differing - OWN}
    assert {"ProcessingJobName", "ProcessingInputs"} <= differing


def assert_valid(request: dict[str, Any], boto_session: boto3.Session) -> None:
    model = boto_session.client("sagemaker").meta.service_model.operation_model("CreateProcessingJob")
    report = ParamValidator().validate(request | {"ProcessingJobName": "features-0-1"}, model.input_shape)
    assert not report.has_errors(), report.generate_report()


MAKERS: dict[str, Any] = {
    "Processor": lambda **options: sdk.Processor(entrypoint=["/bin/run"], **options),
    "ScriptProcessor": lambda **options: sdk.ScriptProcessor(command=["python3"], **options),
    "FrameworkProcessor": sdk.framework_processor,
}
if sdk.MAJOR == 2:
    MAKERS["SKLearnProcessor"] = sdk.sklearn_processor


@pytest.mark.parametrize("options", [MINIMAL, WHOLE], ids=["minimal", "whole"])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_request(
    kind: str, options: dict[str, Any], session: Any, code: Path, boto_session: boto3.Session
) -> None:
    processor = MAKERS[kind](sagemaker_session=session, **options)
    request = ours(processor)
    assert_alike(request, sent(processor, code))
    assert_valid(request, boto_session)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_network(network: str, session: Any, code: Path) -> None:
    config = sdk.NetworkConfig(**NETWORKS[network])
    processor = MAKERS["ScriptProcessor"](sagemaker_session=session, network_config=config, **MINIMAL)
    request = ours(processor)
    assert "NetworkConfig" in request
    assert_alike(request, sent(processor, code))


def test_the_same_outputs(session: Any, code: Path) -> None:
    processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, **WHOLE)
    output = sdk.output("parts", "/opt/ml/processing/output", "s3://bucket/out/")
    theirs = sent(processor, code, outputs=[output])
    plain = {
        "OutputName": "parts",
        "S3Output": {"S3Uri": "s3://bucket/out/", "LocalPath": "/opt/ml/processing/output", "S3UploadMode": "EndOfJob"},
    }
    request = ours(processor, outputs=[plain | ({"AppManaged": False} if sdk.MAJOR == 2 else {})])
    assert_alike(request, theirs)
    assert request["ProcessingOutputConfig"]["KmsKeyId"] == "alias/output"


def test_a_role_by_its_name(session: Any, code: Path, boto_session: boto3.Session) -> None:
    boto_session.client("iam").create_role(RoleName="Data", Path="/service-role/", AssumeRolePolicyDocument="{}")
    processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, **(MINIMAL | {"role": "Data"}))
    request = ours(processor)
    assert request["RoleArn"] == ROLE
    assert_alike(request, sent(processor, code))


def test_defaults_of_the_sdks_configuration_file(boto_session: boto3.Session, client: Client, code: Path) -> None:
    defaults = {
        "RoleArn": ROLE,
        "Environment": {"FROM": "config"},
        "NetworkConfig": {"VpcConfig": {"Subnets": ["subnet-9"], "SecurityGroupIds": ["sg-9"]}},
        "ProcessingResources": {"ClusterConfig": {"VolumeKmsKeyId": "volume-key"}},
        "Tags": [{"Key": "team", "Value": "default"}, {"Key": "owner", "Value": "all"}],
    }
    modules = {"PythonSDK": sdk.QUIET["SageMaker"]["PythonSDK"]}
    config = {"SchemaVersion": "1.0", "SageMaker": modules | {"ProcessingJob": defaults}}
    session = sdk.Session(boto_session, sagemaker_client=client, default_bucket="bucket", sagemaker_config=config)
    options = MINIMAL | {"role": None, "tags": [{"Key": "team", "Value": "mine"}]}
    processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, **options)
    request = ours(processor)
    assert request["Tags"] == [{"Key": "team", "Value": "mine"}, {"Key": "owner", "Value": "all"}]
    assert_alike(request, sent(processor, code))


@pytest.mark.skipif(sdk.MAJOR == 2, reason="2.x knows no instance preferences")
@pytest.mark.parametrize("count", ["for all", "each"])
def test_instance_preferences(count: str, session: Any, code: Path) -> None:
    types = [{"InstanceType": "ml.m5.4xlarge"}, {"InstanceType": "ml.m6i.4xlarge"}]
    options = MINIMAL | {"instance_type": None, "instance_preferences": types}
    if count == "each":
        options |= {"instance_count": None, "instance_preferences": [kind | {"InstanceCount": 1} for kind in types]}
    processor = sdk.Processor(sagemaker_session=session, **options)
    request = ours(processor)
    cluster = request["ProcessingResources"]["ClusterConfig"]
    assert cluster == {"InstanceCount": 1, "InstancePreferences": types, "VolumeSizeInGB": 30}
    if count == "for all":  # otherwise the SDK writes the same count beside each type
        assert_alike(request, sent(processor, code))


def test_the_users_own_session_and_client(session: Any, boto_session: boto3.Session, client: Client) -> None:
    processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, **WHOLE)
    settings = SageMaker(processor)
    assert settings.client() is client
    assert settings.boto_session is boto_session
    assert settings.region == REGION
    assert settings.command == ("python3",)
    assert settings.base_job_name == "features"
    again = settings_from(settings.to_dict(), boto_session=boto_session)
    assert again.client().meta.region_name == REGION
    options = {"entrypoint": ["/bin/sh"]}
    assert again.request(**options) == settings.request(**options)


def test_fields_beside_the_processor_go_over_it(session: Any) -> None:
    processor = sdk.framework_processor(sagemaker_session=session, **WHOLE)
    settings = SageMaker(processor, instance_type="ml.m5.large", env={}, max_runtime=60)
    assert (settings.instance_type, settings.env, settings.max_runtime) == ("ml.m5.large", {}, 60)
    assert settings.volume_gb == 500


def test_pipeline_variables_are_refused(session: Any) -> None:
    kind = sdk.ParameterString(name="Type", default_value="ml.m5.xlarge")
    size = sdk.ParameterInteger(name="Size", default_value=30)
    for field, options in {
        "instance_type": {"instance_type": kind},
        "volume_size_in_gb": {"volume_size_in_gb": size},
        "env['A']": {"env": {"A": kind}},
    }.items():
        processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, **(MINIMAL | options))
        with pytest.raises(sk.PipelineError) as caught:
            SageMaker(processor)
        assert f"ScriptProcessor.{field} is a pipeline variable" in str(caught.value)


def test_spark_is_refused(session: Any) -> None:
    processor = sdk.PySparkProcessor(
        framework_version="3.1", role=ROLE, instance_count=2, instance_type="ml.m5.xlarge", sagemaker_session=session
    )
    with pytest.raises(sk.PipelineError, match="PySparkProcessor runs Spark"):
        SageMaker(processor)


def test_short_names_of_images(boto_session: boto3.Session) -> None:
    def uri(image: str) -> str:
        settings = SageMaker(role=ROLE, image=image, instance_type="ml.m5.xlarge", boto_session=boto_session)
        return str(settings.resolved().image.partition("/")[2])

    assert uri("sklearn:1.2-1") == "sagemaker-scikit-learn:1.2-1-cpu-py3"
    assert uri("pytorch:2.3-cpu-py311") == uri("pytorch:2.3") == "pytorch-training:2.3-cpu-py311"
    for image in ("sklearn:99", "nonesuch:1"):
        with pytest.raises(sk.PipelineError, match=f"does not know {image}.*whole URI"):
            uri(image)
    if sdk.MAJOR == 3:
        assert uri("sklearn:1.4-2-py312").startswith("sagemaker-scikit-learn:1.4-2-py312")
    else:  # it knows 1.4-2 only with another Python, which was not asked for
        with pytest.raises(sk.PipelineError, match="does not know sklearn:1.4-2-py312"):
            uri("sklearn:1.4-2-py312")


def test_no_sdk_is_imported_for_a_whole_uri(tmp_path: Path) -> None:
    code = (
        "import sys; import shardkit.engines.sagemaker as e\n"
        f"e.SageMaker(role={ROLE!r}, image={IMAGE!r}, region={REGION!r}).request(entrypoint=['/bin/sh'])\n"
        "print([name for name in sys.modules if name.startswith('sagemaker')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
