"""The alarms that call people when the queue in an account of AWS is in trouble."""

from __future__ import annotations

from typing import Any

from shardkit.cli.sam_words import Data, ref
from shardkit.jobs.handlers import NAMESPACE

STUCK_MINUTES = 30


def alarms() -> Data:
    """The alarms: they go to the topic, as does the message that all is well again."""
    resources: Data = {}
    for name in ("submit", "launch", "monitor"):
        resources[f"{name.title()}Fails"] = _alarm(
            f"Two of three times five minutes, the function {name} failed.",
            "AWS/Lambda",
            "Errors",
            {"FunctionName": ref(f"{name.title()}Function")},
            periods=3,
            DatapointsToAlarm=2,
        )
    for name in ("launch", "monitor"):
        resources[f"{name.title()}Silent"] = _alarm(
            f"The function {name} was not called for 15 minutes.",
            "AWS/Lambda",
            "Invocations",
            {"FunctionName": ref(f"{name.title()}Function")},
            periods=3,
            ComparisonOperator="LessThanThreshold",
            TreatMissingData="breaching",
        )
    resources["QueueStuck"] = _alarm(
        f"For {STUCK_MINUTES} minutes jobs have waited for something that will not pass by itself.",
        NAMESPACE,
        "stuck",
        {"table": ref("TableName")},
        periods=STUCK_MINUTES // 5,
        Statistic="Minimum",
    )
    resources["CallsLost"] = _alarm(
        "Calls of the functions failed for good; they are in the queue of dead letters.",
        "AWS/SQS",
        "ApproximateNumberOfMessagesVisible",
        {"QueueName": {"Fn::GetAtt": ["DeadLetters", "QueueName"]}},
        periods=1,
        Statistic="Maximum",
    )
    return resources


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
        "AlarmActions": [ref("Topic")],
        "OKActions": [ref("Topic")],
    }
    return {"Type": "AWS::CloudWatch::Alarm", "Properties": about | more}
