"""The job queue in an account of AWS: an AWS SAM template, and the zip of its functions.

    write_deployment("deploy")      # deploy/template.yaml and deploy/shardkit-jobs.zip, for `sam deploy`

The template is made of data, so that table, functions and permissions are those that the code has and needs.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import yaml

from shardkit.errors import PipelineError
from shardkit.jobs.dynamodb_table import TABLE, TIME_TO_LIVE
from shardkit.jobs.handlers import NAMESPACE, PLACE, STATE_CHANGES

ZIP, TEMPLATE = "shardkit-jobs.zip", "template.yaml"
PACKAGE = Path(__file__).parent.parent
SAME_TIME = (1980, 1, 1, 0, 0, 0)  # of all files in the zip, so that the same code is the same zip

LAUNCH_TIMEOUT_S, MONITOR_TIMEOUT_S, SUBMIT_TIMEOUT_S = 120, 300, 120
MEMORY_MB = 256
LOG_DAYS = 30
STUCK_MINUTES = 30

Data = dict[str, Any]


def write_deployment(folder: str | Path) -> tuple[Path, Path]:
    """Write the template and, beside it, the zip that it names.

    Returns:
        Where they are.

    Raises:
        PipelineError: They cannot be written.
    """
    home = Path(folder)
    template, code = home / TEMPLATE, home / ZIP
    try:
        home.mkdir(parents=True, exist_ok=True)
        code.write_bytes(zipped())
        template.write_text(template_text(), "utf-8")
    except OSError as error:
        raise PipelineError(f"{error.filename} cannot be written: {error.strerror}.") from error
    return template, code


# What the queue's modules use of the package's others.
BESIDE_JOBS = ("__init__", "_lazy", "_version", "masking", "plugins", "printable", "user_state")


def zipped() -> bytes:
    """The code of the functions: the queue, which needs no other package than boto3; always the same bytes."""
    files = [
        *(
            PACKAGE / name
            for name in (
                "__init__.py",
                "_lazy.py",
                "_version.py",
                "masking.py",
                "plugins.py",
                "printable.py",
                "user_state.py",
            )
        ),
        *sorted((PACKAGE / "jobs").glob("*.py")),
    ]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"shardkit/{file.relative_to(PACKAGE).as_posix()}", SAME_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    return made.getvalue()


def template_text() -> str:
    """The template as YAML."""
    note = (
        "# The job queue of shardkit, made by `shardkit jobs deploy-template`.\n"
        "# Write it with --output DIR to have the functions' code beside it, then: sam deploy --guided\n"
    )
    return note + yaml.dump(template(), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes every list and table where it stands: no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is shared."""
        return True


def template() -> Data:
    """The template as data."""
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Transform": "AWS::Serverless-2016-10-31",
        "Description": "The job queue of shardkit: a table of jobs, and the functions that launch and watch them.",
        "Parameters": _parameters(),
        "Conditions": _conditions(),
        "Resources": {
            **_table(),
            "Topic": {"Type": "AWS::SNS::Topic"},
            "Email": {
                "Type": "AWS::SNS::Subscription",
                "Condition": "HasEmail",
                "Properties": {"TopicArn": _ref("Topic"), "Protocol": "email", "Endpoint": _ref("NotifyEmail")},
            },
            "DeadLetters": {
                "Type": "AWS::SQS::Queue",
                "Properties": {"MessageRetentionPeriod": 4 * 86400, "SqsManagedSseEnabled": True},
            },
            **_function("submit", SUBMIT_TIMEOUT_S, [], {}, retries=2, age_s=3600),
            **_function("launch", LAUNCH_TIMEOUT_S, _launches(), _every("LaunchEvery"), retries=0, age_s=120),
            **_function(
                "monitor", MONITOR_TIMEOUT_S, _monitors(), _every("MonitorEvery") | _ends(), retries=1, age_s=900
            ),
            **_alarms(),
        },
        "Outputs": {
            "Jobs": {"Description": "The place of the jobs, for every tool.", "Value": _ref_place()},
            "Submit": {"Description": "The function that takes jobs.", "Value": _ref("SubmitFunction")},
            "TopicArn": {"Description": "Where notices and alarms go; name it in notify.", "Value": _ref("Topic")},
            "DeadLettersUrl": {"Description": "The calls that failed for good.", "Value": _ref("DeadLetters")},
        },
    }


# ---- what it is told ------------------------------------------------------------------------------------------------


def _parameters() -> Data:
    every = {"Type": "String", "Default": "rate(1 minute)", "AllowedPattern": r"(rate|cron)\(.+\)"}
    names = {"Type": "CommaDelimitedList", "Default": ""}
    return {
        "TableName": {
            "Type": "String",
            "Default": "shardkit-jobs",
            "AllowedPattern": "[a-zA-Z0-9_-]{3,50}",
            "Description": "Of the table of jobs; the functions are named after it.",
        },
        "CreateTable": {
            "Type": "String",
            "Default": "true",
            "AllowedValues": ["true", "false"],
            "Description": "false: the table is there, of an earlier deployment that was removed.",
        },
        "PassRoleArns": {
            "Type": "CommaDelimitedList",
            "Description": "The roles that jobs may have: whoever may submit can run programs as each of them.",
        },
        "NotifyEmail": {"Type": "String", "Default": "", "Description": "Gets notices and alarms; may be empty."},
        "LaunchEvery": every | {"Description": "How often the launcher runs."},
        "MonitorEvery": every | {"Description": "How often the monitor looks; events of SageMaker come in between."},
        "ExpireDays": {
            "Type": "Number",
            "Default": 90,
            "MinValue": 1,
            "Description": "So many days after its end a job may go from the table.",
        },
        "RequestsBucket": {
            "Type": "String",
            "Default": "",
            "Description": "A bucket for requests that are too large for the table; may be empty.",
        },
        "NoticeParameters": names
        | {"Description": "ARNs of parameters of Parameter Store that hold URLs for notices; may be empty."},
        "NoticeSecrets": names
        | {"Description": "ARNs of secrets of Secrets Manager that hold URLs for notices; may be empty."},
        "Runtime": {
            "Type": "String",
            "Default": "python3.13",
            "AllowedValues": ["python3.11", "python3.12", "python3.13"],
        },
        "Architecture": {"Type": "String", "Default": "arm64", "AllowedValues": ["arm64", "x86_64"]},
    }


def _conditions() -> Data:
    def given(name: str, *, many: bool = False) -> Data:
        text = {"Fn::Join": ["", _ref(name)]} if many else _ref(name)
        return {"Fn::Not": [{"Fn::Equals": [text, ""]}]}

    return {
        "MakesTable": {"Fn::Equals": [_ref("CreateTable"), "true"]},
        "HasEmail": given("NotifyEmail"),
        "HasBucket": given("RequestsBucket"),
        "HasNoticeParameters": given("NoticeParameters", many=True),
        "HasNoticeSecrets": given("NoticeSecrets", many=True),
    }


def _ref(name: str) -> Data:
    return {"Ref": name}


def _sub(text: str) -> Data:
    return {"Fn::Sub": text}


def _arn(service: str, what: str) -> Data:
    return _sub(f"arn:${{AWS::Partition}}:{service}:${{AWS::Region}}:${{AWS::AccountId}}:{what}")


def _if(condition: str, this: Any, other: Any = None) -> Data:
    return {"Fn::If": [condition, this, _ref("AWS::NoValue") if other is None else other]}


def _ref_place() -> Data:
    plain = "dynamodb://${TableName}?expire_days=${ExpireDays}"
    return _if("HasBucket", _sub(f"{plain}&requests=s3://${{RequestsBucket}}/${{TableName}}"), _sub(plain))


# ---- the table and the functions ------------------------------------------------------------------------------------


def _table() -> Data:
    about = {
        "TableName": _ref("TableName"),
        **TABLE,
        "TimeToLiveSpecification": TIME_TO_LIVE,
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
    }
    keep = {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}
    return {"Table": {"Type": "AWS::DynamoDB::Table", "Condition": "MakesTable", **keep, "Properties": about}}


def _function(
    name: str, timeout_s: int, statements: list[Data], events: Data, *, retries: int, age_s: int
) -> dict[str, Data]:
    """A function with its log and its role."""
    title, full = name.title(), f"${{TableName}}-{name}"
    log, role, function = f"{title}Log", f"{title}Role", f"{title}Function"
    allowed = [
        _allow(["logs:CreateLogStream", "logs:PutLogEvents"], {"Fn::GetAtt": [log, "Arn"]}),
        _allow(["sqs:SendMessage"], {"Fn::GetAtt": ["DeadLetters", "Arn"]}),
        *_uses_table(),
        *statements,
    ]
    assume = _allow(["sts:AssumeRole"]) | {"Principal": {"Service": "lambda.amazonaws.com"}}
    keep = {"DeletionPolicy": "Delete", "UpdateReplacePolicy": "Delete"}
    failed = {"Type": "SQS", "Destination": {"Fn::GetAtt": ["DeadLetters", "Arn"]}}
    return {
        log: {
            "Type": "AWS::Logs::LogGroup",
            **keep,
            "Properties": {"LogGroupName": _sub(f"/aws/lambda/{full}"), "RetentionInDays": LOG_DAYS},
        },
        role: {
            "Type": "AWS::IAM::Role",
            "Properties": {
                "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [assume]},
                "Policies": [
                    {"PolicyName": "queue", "PolicyDocument": {"Version": "2012-10-17", "Statement": allowed}}
                ],
            },
        },
        function: {
            "Type": "AWS::Serverless::Function",
            "DependsOn": [log],
            "Properties": {
                "FunctionName": _sub(full),
                "CodeUri": ZIP,
                "Handler": f"shardkit.jobs.handlers.{name}",
                "Runtime": _ref("Runtime"),
                "Architectures": [_ref("Architecture")],
                "Timeout": timeout_s,
                "MemorySize": MEMORY_MB,
                "Role": {"Fn::GetAtt": [role, "Arn"]},
                "Environment": {"Variables": {PLACE: _ref_place()}},
                "EventInvokeConfig": {
                    "MaximumRetryAttempts": retries,
                    "MaximumEventAgeInSeconds": age_s,
                    "DestinationConfig": {"OnFailure": failed},
                },
                **({"Events": events} if events else {}),
            },
        },
    }


def _every(parameter: str) -> Data:
    return {"Every": {"Type": "Schedule", "Properties": {"Schedule": _ref(parameter)}}}


def _ends() -> Data:
    """What SageMaker says of jobs that end. How they begin, the monitor's own look sees."""
    ended = ["Completed", "Failed", "Stopped"]
    return {
        f"{kind}Ends": {
            "Type": "EventBridgeRule",
            "Properties": {
                "Pattern": {
                    "source": ["aws.sagemaker"],
                    "detail-type": [change],
                    "detail": {f"{kind}JobStatus": ended},
                }
            },
        }
        for kind, change in zip(("Processing", "Training"), STATE_CHANGES, strict=True)
    }


# ---- who may do what ------------------------------------------------------------------------------------------------


def _allow(actions: list[str], resource: Any = None, **more: Any) -> Data:
    target = {} if resource is None else {"Resource": resource}
    return {"Effect": "Allow", "Action": actions, **target, **more}


def _uses_table() -> list[Data]:
    table = _arn("dynamodb", "table/${TableName}")
    indexes = _arn("dynamodb", "table/${TableName}/index/*")
    actions = ["BatchGetItem", "ConditionCheckItem", "GetItem", "PutItem", "UpdateItem"]
    objects = _sub("arn:${AWS::Partition}:s3:::${RequestsBucket}/${TableName}/*")
    return [
        _allow([f"dynamodb:{action}" for action in actions], table),
        _allow(["dynamodb:Query"], indexes),
        _if("HasBucket", _allow(["s3:GetObject", "s3:PutObject"], objects)),
    ]


def _jobs() -> list[Data]:
    return [_arn("sagemaker", f"{kind}-job/*") for kind in ("processing", "training")]


def _launches() -> list[Data]:
    service = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    calls = [f"sagemaker:{verb}{kind}Job" for verb in ("Create", "Describe") for kind in ("Processing", "Training")]
    return [
        _allow([*calls, "sagemaker:AddTags"], _jobs()),
        _allow(["iam:PassRole"], _ref("PassRoleArns"), Condition=service),
    ]


def _monitors() -> list[Data]:
    calls = [f"sagemaker:{verb}{kind}Job" for verb in ("Describe", "Stop") for kind in ("Processing", "Training")]
    return [
        _allow(calls, _jobs()),
        _allow(["sagemaker:ListProcessingJobs", "sagemaker:ListTrainingJobs"], "*"),
        _allow(["sns:Publish"], _ref("Topic")),
        _if("HasNoticeParameters", _allow(["ssm:GetParameter"], _ref("NoticeParameters"))),
        _if("HasNoticeSecrets", _allow(["secretsmanager:GetSecretValue"], _ref("NoticeSecrets"))),
    ]


# ---- what calls a person --------------------------------------------------------------------------------------------


def _alarms() -> Data:
    """Alarms: they go to the topic, as do the words that all is well again."""
    found: Data = {}
    for name in ("submit", "launch", "monitor"):
        found[f"{name.title()}Fails"] = _alarm(
            f"Two of three times five minutes, the function {name} failed.",
            "AWS/Lambda",
            "Errors",
            {"FunctionName": _ref(f"{name.title()}Function")},
            periods=3,
            DatapointsToAlarm=2,
        )
    for name in ("launch", "monitor"):
        found[f"{name.title()}Silent"] = _alarm(
            f"The function {name} was not called for 15 minutes.",
            "AWS/Lambda",
            "Invocations",
            {"FunctionName": _ref(f"{name.title()}Function")},
            periods=3,
            ComparisonOperator="LessThanThreshold",
            TreatMissingData="breaching",
        )
    found["QueueStuck"] = _alarm(
        f"For {STUCK_MINUTES} minutes jobs have waited, though nothing that passes by itself kept them.",
        NAMESPACE,
        "stuck",
        {"table": _ref("TableName")},
        periods=STUCK_MINUTES // 5,
        Statistic="Minimum",
    )
    found["CallsLost"] = _alarm(
        "Calls of the functions failed for good; they lie in the queue of dead letters.",
        "AWS/SQS",
        "ApproximateNumberOfMessagesVisible",
        {"QueueName": {"Fn::GetAtt": ["DeadLetters", "QueueName"]}},
        periods=1,
        Statistic="Maximum",
    )
    return found


def _alarm(text: str, namespace: str, metric: str, dimensions: Data, *, periods: int, **more: Any) -> Data:
    """An alarm, by default on one or more in periods of five minutes."""
    about = {
        "AlarmDescription": text,
        "Namespace": namespace,
        "MetricName": metric,
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
        "Statistic": "Sum",
        "Period": 300,
        "EvaluationPeriods": periods,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",
        "AlarmActions": [_ref("Topic")],
        "OKActions": [_ref("Topic")],
    }
    return {"Type": "AWS::CloudWatch::Alarm", "Properties": about | more}
