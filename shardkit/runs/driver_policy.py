"""The permissions of a driver that is a job, and of what starts it: policy documents of IAM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.runs.requests import slug
from shardkit.spec.input import LISTS

if TYPE_CHECKING:
    from shardkit.spec.spec import Spec

Document = dict[str, Any]
PASSED_TO = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
LOG_GROUP = "log-group:/aws/sagemaker/ProcessingJobs"


def policy_of(pipeline: Spec, template: Document) -> Document:
    """What the driver's role may do: make, watch and stop the jobs of this pipeline, and what every job has to do.

    ``template`` is the driver's own request.
    """
    here = _Place(template)
    engine: Any = pipeline.engine
    statements = _jobs(pipeline, here) if pipeline.queue is None else [_table(pipeline.queue.place, here)]
    statements += [
        *_storage(pipeline, here),
        _allow(
            "Logs",
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            f"{here.arn('logs', LOG_GROUP)}*",
        ),
        _allow("Metrics", ["cloudwatch:PutMetricData"], "*"),
        *_image(template["AppSpecification"]["ImageUri"], here),
    ]
    if engine.output_kms_key:
        statements.append(_use_of_key("Key", ["Decrypt", "GenerateDataKey"], engine.output_kms_key, here))
    if engine.volume_kms_key:
        statements.append(_use_of_key("VolumeKey", ["CreateGrant"], engine.volume_kms_key, here))
    if engine.network is not None and engine.network.subnets:
        statements.append(_allow("Vpc", list(_VPC), "*"))
    return _document(statements)


def trust_of(service: str) -> Document:
    """Who may take on a role: that service."""
    return _document([{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}])


def starter_policy_of(template: Document, name: str) -> Document:
    """What the role of a service may do that starts the driver."""
    here = _Place(template)
    calls = ["CreateProcessingJob", "DescribeProcessingJob", "StopProcessingJob", "AddTags"]
    jobs = [here.arn("sagemaker", f"processing-job/{prefix}-*") for prefix in _both_cases(name)]
    return _document(
        [
            _allow("Driver", [f"sagemaker:{call}" for call in calls], jobs),
            _allow("RoleOfTheDriver", ["iam:PassRole"], template["RoleArn"], Condition=PASSED_TO),
        ]
    )


_VPC = (
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
)


class _Place:
    """The partition, account and region of the driver, from its request."""

    def __init__(self, template: Document) -> None:
        _, self.partition, _, _, self.account, *_ = template["RoleArn"].split(":")
        environment = template["Environment"]
        self.region = environment.get("AWS_REGION") or environment["AWS_DEFAULT_REGION"]

    def arn(self, service: str, what: str) -> str:
        """The ARN of something there."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{what}"


def _allow(sid: str, actions: list[str], resource: str | list[str], **more: Any) -> Document:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource} | more


def _document(statements: list[Document]) -> Document:
    return {"Version": "2012-10-17", "Statement": statements}


def _both_cases(name: str) -> list[str]:
    """A name as it is given, and as the service's ARNs have it: in small letters."""
    return list(dict.fromkeys([name, name.lower()]))


def _jobs(pipeline: Spec, here: _Place) -> list[Document]:
    """The calls for the jobs, whose names begin with the pipeline's."""
    engine: Any = pipeline.engine
    kinds = dict.fromkeys([engine.jobs.capitalize(), engine.for_merge().jobs.capitalize()])
    calls = [f"{verb}{kind}Job" for kind in kinds for verb in ("Create", "Describe", "Stop")]
    calls += ["AddTags"] * bool(engine.tags)
    prefixes = _both_cases(slug(pipeline.pipeline_name(), 14))
    jobs = [here.arn("sagemaker", f"{kind.lower()}-job/{prefix}-*") for kind in kinds for prefix in prefixes]
    roles = list(dict.fromkeys([engine.role, engine.for_merge().role]))
    return [
        _allow("Jobs", [f"sagemaker:{call}" for call in calls], jobs),
        _allow("JobList", [f"sagemaker:List{kind}Jobs" for kind in kinds], "*"),
        _allow("RoleOfTheJobs", ["iam:PassRole"], roles, Condition=PASSED_TO),
    ]


def _table(place: str, here: _Place) -> Document:
    """The calls for a table of jobs, which somebody else launches."""
    table = here.arn("dynamodb", f"table/{place.partition('://')[2].partition('?')[0]}")
    calls = ("BatchGetItem", "ConditionCheckItem", "DescribeTable", "GetItem", "PutItem", "Query", "UpdateItem")
    return _allow("Queue", [f"dynamodb:{call}" for call in calls], [table, f"{table}/index/*"])


def _storage(pipeline: Spec, here: _Place) -> list[Document]:
    """The input is listed, or its lists are read; the run folder and the dataset are read and written.

    Of files in a list that does not say how large they are, the size and etag are asked for.
    """
    output = _bucket_and_key(pipeline.output.uri)
    listed, read = _inputs(pipeline)
    statements = []
    prefixes: dict[str, list[str]] = {}
    for bucket, key in (*listed, output):
        prefixes.setdefault(bucket, []).append(f"{key}*")
    for number, (bucket, keys) in enumerate(prefixes.items()):
        names = sorted(set(keys))
        condition = {} if "*" in names else {"Condition": {"StringLike": {"s3:prefix": names}}}
        statements.append(
            _allow(f"Listing{number or ''}", ["s3:ListBucket"], f"arn:{here.partition}:s3:::{bucket}", **condition)
        )
    if read:
        statements.append(_allow("Lists", ["s3:GetObject"], [f"arn:{here.partition}:s3:::{each}" for each in read]))
    if pipeline.inside is not None:  # what is inside of objects is read to plan a run, as far as sizes do not say it
        inputs = [f"arn:{here.partition}:s3:::{bucket}/{key}*" for bucket, key in listed]
        statements.append(_allow("Inside", ["s3:GetObject"], inputs))
    calls = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    bucket, key = output
    statements.append(_allow("Output", calls, f"arn:{here.partition}:s3:::{bucket}/{key}*"))
    return statements


def _inputs(pipeline: Spec) -> tuple[list[tuple[str, str]], list[str]]:
    """The buckets and prefixes that are listed, and the objects that are read to plan a run.

    Raises:
        PipelineError: a list lies on this machine, where a driver elsewhere does not see it.
    """
    listed: list[tuple[str, str]] = []
    read: list[str] = []
    for part in pipeline.input.places():
        if part.uri is not None:
            listed.append(_bucket_and_key(part.uri))
        for name in ("manifest", *LISTS):
            if (uri := getattr(part, name)) is None:
                continue
            if not uri.startswith("s3://"):
                raise PipelineError(
                    f"input.{name}: {uri} is on this machine, where a driver that is a job does not see it.",
                    hint="Put it into S3.",
                )
            bucket, _, key = uri.partition("://")[2].partition("/")
            # The data files of an inventory lie beside the folders of its manifests.
            is_report = name == "manifest" and key.endswith("/manifest.json")
            read.append(f"{bucket}/{'/'.join(key.split('/')[:-2])}/*" if is_report else f"{bucket}/{key}")
        if part.manifest is not None and not part.manifest.endswith("/manifest.json"):
            bucket, key = _bucket_and_key(part.uri) if part.uri is not None else ("*", "")
            read.append(f"{bucket}/{key}*")
    return listed, read


def _bucket_and_key(uri: str) -> tuple[str, str]:
    """The bucket of a folder, and what its objects' keys begin with."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, f"{key.strip('/')}/" if key.strip("/") else ""


def _image(uri: str, here: _Place) -> list[Document]:
    """Fetching the image, if it is in ECR."""
    registry, _, rest = uri.partition("/")
    account, _, host = registry.partition(".")
    if not host.startswith("dkr.ecr.") or not rest:
        return []
    region = host.split(".")[2]
    repository = rest.partition("@")[0].partition(":")[0]
    calls = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    arn = f"arn:{here.partition}:ecr:{region}:{account}:repository/{repository}"
    return [_allow("Registry", ["ecr:GetAuthorizationToken"], "*"), _allow("Image", calls, arn)]


def _use_of_key(sid: str, calls: list[str], key: str, here: _Place) -> Document:
    """Using a key, which is named by its ARN, its id or its alias."""
    actions = [f"kms:{call}" for call in calls]
    if "alias/" in key:
        alias = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": f"alias/{key.partition('alias/')[2]}"}}
        return _allow(sid, actions, here.arn("kms", "key/*"), Condition=alias)
    return _allow(sid, actions, key if key.startswith("arn:") else here.arn("kms", f"key/{key}"))
