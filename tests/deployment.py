"""Runs beside ministack in its network: brings the template up and submits jobs, or watches them. Prints JSON.

python deployment.py submit NUMBER FOLDER | watch NUMBER QUEUE SECONDS
"""

from __future__ import annotations

import functools
import json
import random
import sys
import time
from typing import Any

import boto3
from botocore.config import Config
from engine_jobs import ROLE, request

from shardkit.cli.deploy import ZIP, write_deployment
from shardkit.jobs.open import open_store
from shardkit.jobs.service import set_policy

PLACE = "dynamodb://shardkit-jobs?expire_days=90"
STACK, CODE, TOLD = "jobs", "code", "told"
PATIENT = Config(retries={"mode": "standard", "total_max_attempts": 20})
# Like the service's, but faster, because the service is on this machine.
POLICY = {"creates_per_s": 25.0, "poll_s": 5.0, "retry_wait_s": 0.5, "capacity_wait_s": 0.5, "throttle_max_s": 5.0}
POLICY |= {"lease_s": 10.0, "settle_s": 1.0, "overlap_s": 30.0, "recheck_s": 60.0, "lost_s": 20.0}


@functools.cache
def client(service: str, config: Config | None = None) -> Any:
    """A client, which takes longer to make than twenty requests."""
    return boto3.client(service, config=config)


def deploy(folder: str) -> dict[str, str]:
    """Bring the template up, as `sam deploy` does: the code into a bucket, and the stack."""
    template, code = write_deployment(folder)
    s3, cloud = client("s3"), client("cloudformation")
    s3.create_bucket(Bucket=CODE, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3.upload_file(str(code), CODE, ZIP)
    given = {"PassRoleArns": ROLE, "NotifyEmail": "somebody@example.com", "RequestsBucket": CODE, "ExpireDays": "30"}
    cloud.create_stack(
        StackName=STACK,
        TemplateBody=template.read_text().replace(f"CodeUri: {ZIP}", f"CodeUri: s3://{CODE}/{ZIP}"),
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()],
    )
    cloud.get_waiter("stack_create_complete").wait(StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    outputs = cloud.describe_stacks(StackName=STACK)["Stacks"][0]["Outputs"]
    output_values = {each["OutputKey"]: each["OutputValue"] for each in outputs}
    queue = client("sqs").create_queue(QueueName=TOLD)["QueueUrl"]
    about = client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    arn = about["Attributes"]["QueueArn"]
    may_send = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [may_send]})
    client("sqs").set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
    client("sns").subscribe(
        TopicArn=output_values["TopicArn"], Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"}
    )
    set_policy(open_store(output_values["Jobs"]), POLICY)
    return output_values | {"Queue": queue}


def submit(number: int, topic: str) -> None:
    """Submit jobs through the function, a hundred in a call; make each call twice, as if the answer had been lost."""
    about = request("unused", "true")
    del about["ProcessingJobName"]
    function = client("lambda", config=Config(read_timeout=120))
    jobs = [
        {"id": f"small-{i:04d}", "request": about, "owner": f"team-{i % 3}", "run": "small", "notify": [topic]}
        for i in range(number)
    ]
    for first in range(0, number, 100):
        for _ in range(2):
            payload = json.dumps({"jobs": jobs[first : first + 100]})
            answer = function.invoke(FunctionName="shardkit-jobs-submit", Payload=payload)
            reply = json.load(answer["Payload"])
            assert "FunctionError" not in answer and len(reply["jobs"]) == len(jobs[first : first + 100]), reply


def watch(number: int, queue: str, seconds: float) -> dict[str, Any]:
    """Wait until all jobs have ended and their notices are there; send SageMaker's events of ended jobs meanwhile."""
    begun = time.monotonic()
    told: dict[str, int] = {}
    sent: set[str] = set()
    store = open_store(PLACE)
    while time.monotonic() - begun < seconds:
        lines = listed()
        _send_events([line for line in lines if line["ProcessingJobName"] not in sent], sent)
        _receive(queue, told)
        counts = store.counts()
        if counts["Completed"] == number and len(told) == number:
            break
        time.sleep(1)
    last = {job.job_id: job.notice_at for job in store.jobs()}
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "counts": store.counts(),
        "told": told,
        "open_notices": sum(at >= 0 for at in last.values()),
        "attempts": [_times(line) for line in listed()],
        "attempts_known": sum(len(job.attempts) for job in store.jobs()),
    }


def listed() -> list[dict[str, Any]]:
    """All jobs that the service lists."""
    engine = client("sagemaker", config=PATIENT)
    pages = engine.get_paginator("list_processing_jobs").paginate(MaxResults=100)
    return [line for page in pages for line in page["ProcessingJobSummaries"]]


def _times(line: dict[str, Any]) -> list[Any]:
    ended = line.get("ProcessingEndTime")
    end = ended.timestamp() if ended else None
    return [line["ProcessingJobName"], line["ProcessingJobStatus"], line["CreationTime"].timestamp(), end]


def _send_events(lines: list[dict[str, Any]], sent: set[str]) -> None:
    """Send the events of every third job, twice and in random order; the monitor finds the others by itself.

    One waits for the other, as each that runs beside another one is a process of its own.
    """
    function = client("lambda")
    ended = [line for line in lines if line.get("ProcessingEndTime")]
    sent |= {line["ProcessingJobName"] for line in ended}
    chosen = [line for line in ended if hash(line["ProcessingJobName"]) % 3 == 0] * 2
    random.shuffle(chosen)
    for line in chosen[:100]:
        detail = {
            "ProcessingJobName": line["ProcessingJobName"],
            "ProcessingJobStatus": line["ProcessingJobStatus"],
            "FailureReason": line.get("FailureReason", ""),
            "ExitMessage": line.get("ExitMessage", ""),
            "CreationTime": int(line["CreationTime"].timestamp() * 1000),
            "ProcessingEndTime": int(line["ProcessingEndTime"].timestamp() * 1000),
        }
        event = {"source": "aws.sagemaker", "detail-type": "SageMaker Processing Job State Change", "detail": detail}
        function.invoke(FunctionName="shardkit-jobs-monitor", Payload=json.dumps(event))


def _receive(queue: str, told: dict[str, int]) -> None:
    sqs = client("sqs")
    while True:
        messages = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
        for message in messages:
            notice = json.loads(message["Body"])
            told[notice["job_id"]] = told.get(notice["job_id"], 0) + 1
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        if not messages:
            return


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "submit":
        answer: dict[str, Any] = dict(deploy(rest[1]))
        submit(int(rest[0]), answer["TopicArn"])
    else:
        answer = watch(int(rest[0]), rest[1], float(rest[2]))
    json.dump(answer, sys.stdout)
