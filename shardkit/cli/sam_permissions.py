"""The permissions of the queue's functions in an account of AWS."""

from __future__ import annotations

from typing import Any

from shardkit.cli.sam_words import Data, arn, if_, ref, sub


def allow(actions: list[str], resource: Any = None, **more: Any) -> Data:
    """A statement of a policy."""
    target = {} if resource is None else {"Resource": resource}
    return {"Effect": "Allow", "Action": actions, **target, **more}


def uses_table() -> list[Data]:
    """What every function may do with the table, and with the bucket of large requests."""
    table = arn("dynamodb", "table/${TableName}")
    indexes = arn("dynamodb", "table/${TableName}/index/*")
    actions = ["BatchGetItem", "ConditionCheckItem", "GetItem", "PutItem", "UpdateItem"]
    objects = sub("arn:${AWS::Partition}:s3:::${RequestsBucket}/${TableName}/*")
    return [
        allow([f"dynamodb:{action}" for action in actions], table),
        allow(["dynamodb:Query"], indexes),
        if_("HasBucket", allow(["s3:GetObject", "s3:PutObject"], objects)),
    ]


def _jobs() -> list[Data]:
    return [arn("sagemaker", f"{kind}-job/*") for kind in ("processing", "training")]


def launches() -> list[Data]:
    """What the launcher may do."""
    service = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    calls = [f"sagemaker:{verb}{kind}Job" for verb in ("Create", "Describe") for kind in ("Processing", "Training")]
    return [
        allow([*calls, "sagemaker:AddTags"], _jobs()),
        allow(["iam:PassRole"], ref("PassRoleArns"), Condition=service),
    ]


def monitors() -> list[Data]:
    """What the monitor may do, which also notifies people."""
    calls = [f"sagemaker:{verb}{kind}Job" for verb in ("Describe", "Stop") for kind in ("Processing", "Training")]
    return [
        allow(calls, _jobs()),
        allow(["sagemaker:ListProcessingJobs", "sagemaker:ListTrainingJobs"], "*"),
        allow(["sns:Publish"], ref("Topic")),
        if_("HasNoticeParameters", allow(["ssm:GetParameter"], ref("NoticeParameters"))),
        if_("HasNoticeSecrets", allow(["secretsmanager:GetSecretValue"], ref("NoticeSecrets"))),
    ]
