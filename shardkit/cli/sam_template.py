"""The AWS SAM template of the queue, as data.

It is made from the code's own data, so that the table, functions and permissions are those that the code needs.
"""

from __future__ import annotations

from shardkit.cli.sam_alarms import alarms
from shardkit.cli.sam_permissions import allow, launches, monitors, uses_table
from shardkit.cli.sam_words import Data, if_, ref, sub
from shardkit.jobs.dynamodb_table import TABLE, TIME_TO_LIVE
from shardkit.jobs.handlers import PLACE, STATE_CHANGES

ZIP = "shardkit-jobs.zip"  # in the template's folder
LAUNCH_TIMEOUT_S, MONITOR_TIMEOUT_S, SUBMIT_TIMEOUT_S = 120, 300, 120
MEMORY_MB = 256
LOG_DAYS = 30


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
                "Properties": {"TopicArn": ref("Topic"), "Protocol": "email", "Endpoint": ref("NotifyEmail")},
            },
            "DeadLetters": {
                "Type": "AWS::SQS::Queue",
                "Properties": {"MessageRetentionPeriod": 4 * 86400, "SqsManagedSseEnabled": True},
            },
            **_function("submit", SUBMIT_TIMEOUT_S, [], {}, retries=2, age_s=3600),
            **_function("launch", LAUNCH_TIMEOUT_S, launches(), _every("LaunchEvery"), retries=0, age_s=120),
            **_function(
                "monitor", MONITOR_TIMEOUT_S, monitors(), _every("MonitorEvery") | _ends(), retries=1, age_s=900
            ),
            **alarms(),
        },
        "Outputs": {
            "Jobs": {"Description": "The place of the jobs, for every tool.", "Value": _ref_place()},
            "Submit": {"Description": "The function that takes jobs.", "Value": ref("SubmitFunction")},
            "TopicArn": {"Description": "Where notices and alarms go; name it in notify.", "Value": ref("Topic")},
            "DeadLettersUrl": {"Description": "The calls that failed for good.", "Value": ref("DeadLetters")},
        },
    }


def _parameters() -> Data:
    every = {"Type": "String", "Default": "rate(1 minute)", "AllowedPattern": r"(rate|cron)\(.+\)"}
    names = {"Type": "CommaDelimitedList", "Default": ""}
    return {
        "TableName": {
            "Type": "String",
            "Default": "shardkit-jobs",
            "AllowedPattern": "[a-zA-Z0-9_-]{3,50}",
            "Description": "The name of the table of jobs; the functions are named after it.",
        },
        "CreateTable": {
            "Type": "String",
            "Default": "true",
            "AllowedValues": ["true", "false"],
            "Description": "false: the table exists already, from an earlier deployment that was removed.",
        },
        "PassRoleArns": {
            "Type": "CommaDelimitedList",
            "Description": "The roles that jobs may have: everybody who may submit can run programs as each of them.",
        },
        "NotifyEmail": {"Type": "String", "Default": "", "Description": "Gets notices and alarms; may be empty."},
        "LaunchEvery": every | {"Description": "How often the launcher runs."},
        "MonitorEvery": every | {"Description": "How often the monitor looks; events of SageMaker come in between."},
        "ExpireDays": {
            "Type": "Number",
            "Default": 90,
            "MinValue": 1,
            "Description": "How many days after its end a job may be deleted from the table.",
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
        text = {"Fn::Join": ["", ref(name)]} if many else ref(name)
        return {"Fn::Not": [{"Fn::Equals": [text, ""]}]}

    return {
        "MakesTable": {"Fn::Equals": [ref("CreateTable"), "true"]},
        "HasEmail": given("NotifyEmail"),
        "HasBucket": given("RequestsBucket"),
        "HasNoticeParameters": given("NoticeParameters", many=True),
        "HasNoticeSecrets": given("NoticeSecrets", many=True),
    }


def _ref_place() -> Data:
    plain = "dynamodb://${TableName}?expire_days=${ExpireDays}"
    return if_("HasBucket", sub(f"{plain}&requests=s3://${{RequestsBucket}}/${{TableName}}"), sub(plain))


def _table() -> Data:
    about = {
        "TableName": ref("TableName"),
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
        allow(["logs:CreateLogStream", "logs:PutLogEvents"], {"Fn::GetAtt": [log, "Arn"]}),
        allow(["sqs:SendMessage"], {"Fn::GetAtt": ["DeadLetters", "Arn"]}),
        *uses_table(),
        *statements,
    ]
    assume = allow(["sts:AssumeRole"]) | {"Principal": {"Service": "lambda.amazonaws.com"}}
    keep = {"DeletionPolicy": "Delete", "UpdateReplacePolicy": "Delete"}
    failed = {"Type": "SQS", "Destination": {"Fn::GetAtt": ["DeadLetters", "Arn"]}}
    return {
        log: {
            "Type": "AWS::Logs::LogGroup",
            **keep,
            "Properties": {"LogGroupName": sub(f"/aws/lambda/{full}"), "RetentionInDays": LOG_DAYS},
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
                "FunctionName": sub(full),
                "CodeUri": ZIP,
                "Handler": f"shardkit.jobs.handlers.{name}",
                "Runtime": ref("Runtime"),
                "Architectures": [ref("Architecture")],
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
    return {"Every": {"Type": "Schedule", "Properties": {"Schedule": ref(parameter)}}}


def _ends() -> Data:
    """SageMaker's events of jobs that end. The monitor's own look sees how they begin."""
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
