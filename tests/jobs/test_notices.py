"""Notices: whoever asked gets a notice of a job's end, whatever the servers of other receivers do."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from shardkit.jobs import JobError, SimulatedClock, SQLiteStore, again
from shardkit.jobs.causes import __doc__ as causes_doc
from shardkit.jobs.job import SENT, Job
from shardkit.jobs.message import notice_of, slack_of, subject_of, text_of
from shardkit.jobs.notices import MOST_TRIES, send_notices
from shardkit.jobs.policy import ATTEMPTS
from shardkit.jobs.targets import check_target
from shardkit.jobs.wording import CAUSES_IN_WORDS, log_url
from shardkit.units import human_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST = {"ProcessingResources": {"ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2}}}
SECRET = "T0SECRET/B0SECRET/xyzzy"
ATTEMPT = {
    "attempt": 1,
    "name": "talent-1",
    "instance_type": "ml.m5.2xlarge",
    "instances": 2,
    "launched_at": "2027-01-15T08:01:00.000+00:00",
    "created_at": "2027-01-15T08:01:01.000+00:00",
    "ended_at": "2027-01-15T08:31:01.000+00:00",
    "status": "Failed",
    "cause": "user",
}


class Hook:
    """A server that receives messages, and answers with ``answers`` and then, when these are used up, with 200."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.asked = 0
        self.answers: list[int | str] = []
        self.always: int | str = 200
        self.headers: dict[str, str] = {}
        self.released = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.asked += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = hook.answers.pop(0) if hook.answers else hook.always
                if answer == "hang":
                    hook.released.wait(30)
                    return
                if answer == 200:
                    hook.got.append((self.path, body))
                self.send_response(int(answer))
                for name, value in hook.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"no_service" if answer == 410 else f"what is {hook.url}?".encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()
    monkeypatch.setenv("HOOK", made.url)
    yield made
    made.close()


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()
    monkeypatch.setenv("OTHER", made.url)
    yield made
    made.close()


class Queue:
    """A store with a clock that only tests move."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = SimulatedClock()
        self.store = SQLiteStore(path, clock=self.clock)

    def end(self, job_id: str, *notify: str, status: str = "Failed", **more: Any) -> Job:
        facts = {name: more.pop(name) for name in ("run", "tags", "owner") if name in more}
        job = self.store.submit(job_id, REQUEST, notify=notify, **facts)
        cause = "" if status == "Completed" else "user"
        ended = replace(
            job, status=status, changed_at=self.clock.time(), **({"cause": cause, "reason": "KeyError: 'title'"} | more)
        )
        done = self.store.update(ended)
        assert done is not None
        return done

    def send(self, **options: Any) -> Any:
        return send_notices(self.store, **({"clock": self.clock, "region": "", "timeout_s": 5.0} | options))


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "jobs.sqlite")


# ---- SNS, Parameter Store and Secrets Manager, by their own protocols ------------------------------------------------


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def session(aws: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in (
        ("AWS_ENDPOINT_URL", aws),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    return boto3.Session()


def test_a_topic_gets_text_for_people_and_data_for_machines(queue: Queue, session: Any) -> None:
    sns, sqs = session.client("sns"), session.client("sqs")
    topic = sns.create_topic(Name="jobs")["TopicArn"]
    url = sqs.create_queue(QueueName="ended")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(
        TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"FilterPolicy": json.dumps({"status": ["Failed"]})}
    )
    queue.end("fine", topic, status="Completed", reason="")
    fifo = sns.create_topic(Name="jobs.fifo", Attributes={"FifoTopic": "true"})["TopicArn"]
    queue.end("talent", topic, fifo, attempts=(ATTEMPT,), owner="ana", attempt=1)
    report = queue.send(session=session, place="dynamodb://jobs", region=None)
    assert report.sent == ("fine", "talent") and not report.trouble
    (message,) = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    envelope = json.loads(message["Body"])
    assert envelope["Subject"] == "shardkit: job talent Failed (user)"
    notice = json.loads(envelope["Message"])
    assert notice["job_id"] == "talent" and notice["attempts"] == 1 and notice["cause"] == "user"
    assert notice["waited_s"] == pytest.approx(60) and notice["ran_s"] == 1800
    assert notice["instance_type"] == "ml.m5.2xlarge" and notice["reason"] == "KeyError: 'title'"
    assert notice["again"] == "shardkit jobs again talent --store dynamodb://jobs"
    assert notice["log_url"].startswith("https://eu-west-1.console.aws.amazon.com/cloudwatch/home?region=eu-west-1#")
    assert queue.store.get("talent").notice_at == SENT
    assert queue.send(session=session).sent == ()


def test_a_topic_that_is_not_there_is_tried_again(queue: Queue, session: Any) -> None:
    topic = "arn:aws:sns:eu-west-1:123456789012:nowhere"
    queue.end("a", topic)
    report = queue.send(session=session)
    assert report.later == 1 and "NotFound" in report.trouble[0] and topic in report.trouble[0]
    session.client("sns").create_topic(Name="nowhere")
    queue.clock.sleep(60)
    assert queue.send(session=session).sent == ("a",)


@pytest.mark.whole
def test_urls_are_kept_in_parameter_store_and_in_secrets_manager(queue: Queue, session: Any, hook: Hook) -> None:
    session.client("ssm").put_parameter(Name="/teams/hook", Value=hook.url, Type="SecureString")
    secrets = session.client("secretsmanager")
    arn = secrets.create_secret(Name="hook", SecretString=json.dumps({"url": hook.url}))["ARN"]
    secrets.create_secret(Name="plain", SecretString=hook.url)
    secrets.create_secret(Name="bad", SecretString=f"ftp://example.org/{SECRET}")
    targets = "webhook:ssm:/teams/hook", f"webhook:secret:{arn}", "slack:secret:plain"
    missing = "webhook:secret:bad", "webhook:ssm:/not/there", "webhook:env:NOT_THERE"
    queue.end("a", *targets, *missing)
    report = queue.send(session=session)
    assert len(hook.got) == 3 and {path for path, _ in hook.got} == {f"/{SECRET}"}
    assert queue.store.get("a").notified == targets
    assert report.trouble == (
        "What is kept for webhook:secret:bad is no https URL.",
        report.trouble[1],
        "webhook:env:NOT_THERE: this process has no variable NOT_THERE.",
    )
    assert "ParameterNotFound" in report.trouble[1]


# ---- webhooks ------------------------------------------------------------------------------------------------------


def test_a_webhook_that_fails_is_tried_again_and_nobody_else_is_told_twice(
    queue: Queue, hook: Hook, other: Hook
) -> None:
    hook.answers = [500, 302, 404]
    hook.headers = {"Location": other.url}
    queue.end("a", "webhook:env:HOOK", "slack:env:OTHER")
    due = []
    for _ in range(20):
        due.append(queue.send())
        if due[-1].sent:
            break
        queue.clock.sleep(queue.store.get("a").notice_at - queue.clock.time() - 0.5)
        assert not queue.send().more and queue.store.notices(queue.clock.time()) == []
        queue.clock.sleep(0.5)
    assert [report.later for report in due] == [1, 1, 1, 0] and due[-1].sent == ("a",)
    assert len(hook.got) == 1 and len(other.got) == 1 and hook.asked == 4
    assert queue.clock.time() == SimulatedClock().time() + 60 + 120 + 240
    job = queue.store.get("a")
    assert (job.notice_at, job.notice_tries, job.notified) == (SENT, 3, ("slack:env:OTHER", "webhook:env:HOOK"))


def test_a_notice_is_given_up_in_the_end(queue: Queue, hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    hook.always = 410
    queue.end("a", "slack:env:HOOK")
    tries = 0
    with caplog.at_level(logging.WARNING):
        while queue.store.get("a").notice_at != SENT:
            report = queue.send()
            tries += 1
            queue.clock.sleep(4 * 3600)
    assert tries == MOST_TRIES == hook.asked and report.given_up == ("a",)
    assert report.trouble == ("slack:env:HOOK answered 410 no_service.",)
    assert "notice of job a was given up after 10 tries: slack:env:HOOK has not got it" in caplog.text


def test_a_server_that_hangs_holds_up_nobody(queue: Queue, hook: Hook, other: Hook) -> None:
    hook.always = "hang"
    for n in range(5):
        queue.end(f"a{n}", "webhook:env:HOOK")
        queue.end(f"b{n}", "webhook:env:OTHER")
    begun = time.monotonic()
    report = queue.send(timeout_s=0.5)
    assert time.monotonic() - begun < 3 and hook.asked == 1
    assert len(other.got) == 5 and report.later == 5 and len(report.sent) == 5
    assert report.trouble == ("webhook:env:HOOK did not answer within 0.5 s.",)
    assert [queue.store.get(f"a{n}").notice_tries for n in range(5)] == [1] * 5


def test_a_call_ends_in_time_and_the_next_one_goes_on(queue: Queue, hook: Hook) -> None:
    for n in range(3):
        queue.end(f"a{n}", "webhook:env:HOOK")
    assert queue.send(budget_s=0.0).more and hook.asked == 0
    first = queue.send(limit=2)
    assert len(first.sent) == 2 and first.more
    assert queue.send().sent == ("a2",)


def test_a_server_that_asks_for_peace_gets_it(queue: Queue, hook: Hook) -> None:
    hook.answers, hook.headers = [429], {"Retry-After": "300"}
    for n in range(3):
        queue.end(f"a{n}", "slack:env:HOOK")
    assert queue.send().later == 3 and hook.asked == 1
    assert [queue.store.get(f"a{n}").notice_tries for n in range(3)] == [1, 0, 0]
    queue.clock.sleep(299)
    assert queue.send().sent == ()
    queue.clock.sleep(1)
    assert len(queue.send().sent) == 3


def test_two_senders_at_once_send_once(queue: Queue, hook: Hook) -> None:
    for n in range(20):
        queue.end(f"a{n}", "webhook:env:HOOK")
    barrier = threading.Barrier(3)

    def send() -> None:
        with SQLiteStore(queue.path, clock=queue.clock) as store:
            barrier.wait()
            send_notices(store, clock=queue.clock, region="")

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(body["job_id"] for _, body in hook.got) == sorted(f"a{n}" for n in range(20))


def test_a_sender_that_dies_leaves_the_notice_to_the_next(
    queue: Queue, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.end("a", "webhook:env:HOOK")
    with monkeypatch.context() as patch:
        patch.setattr("shardkit.jobs.notices.notice_of", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            queue.send()
    assert queue.send().sent == ()  # for a while it may still be at work
    queue.clock.sleep(200)
    assert queue.send().sent == ("a",)


def test_a_job_that_is_tried_again_is_told_of_again(queue: Queue, hook: Hook) -> None:
    queue.end("a", "webhook:env:HOOK")
    queue.send()
    job = again(queue.store, "a", clock=queue.clock)
    assert job.status == "New" and queue.store.notices(queue.clock.time()) == []
    queue.store.update(replace(job, status="Completed", cause="", reason="", changed_at=queue.clock.time()))
    assert queue.send().sent == ("a",)
    assert [body["status"] for _, body in hook.got] == ["Failed", "Completed"]


@pytest.mark.whole
def test_the_url_is_nowhere(
    queue: Queue, hook: Hook, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ODD", f"https://127.0.0.1:1/\x7f{SECRET}")
    monkeypatch.setenv("CLOSED", f"http://127.0.0.1:1/{SECRET}")
    monkeypatch.setenv("FAR", f"http://198.51.100.1/{SECRET}")
    monkeypatch.setenv("NO_TLS", hook.url.replace("http:", "https:"))
    hook.always = 500
    queue.end("a", *(f"{kind}:env:{name}" for kind in ("slack", "webhook") for name in ("HOOK", "ODD", "CLOSED")))
    queue.end("b", "webhook:env:FAR", "webhook:env:NO_TLS")
    for _ in range(MOST_TRIES):
        report = queue.send()
        queue.clock.sleep(5 * 3600)
    assert set(report.given_up) == {"a", "b"}
    assert "webhook:env:CLOSED cannot be reached: Connection refused." in report.trouble
    assert "What is kept for webhook:env:FAR is no https URL." in report.trouble
    stored = b"".join(path.read_bytes() for path in queue.path.parent.glob("jobs.sqlite*"))
    for text in (caplog.text, repr(report), repr(queue.store.jobs()), stored.decode("latin-1")):
        assert "SECRET" not in text
    assert b"webhook:env:FAR" in stored


# ---- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "arn:aws:sns:eu-west-1:111122223333:jobs",
        "arn:aws-cn:sns:cn-north-1:111122223333:jobs.fifo",
        "slack:env:SLACK_URL",
        "webhook:ssm:/teams/a/hook",
        "slack:secret:prod/slack-hook",
        "webhook:secret:arn:aws:secretsmanager:eu-west-1:111122223333:secret:hook-a1b2c3",
    ],
)
def test_targets(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (f"https://hooks.slack.com/services/{SECRET}", "https://hooks.slack.com/..."),
        (f"slack:https://me:{SECRET[:8]}@example.org/{SECRET}", "slack:https://example.org/..."),
        (f"webhook:{SECRET}", "'webhook:T0SECR...'"),
        (f"webhook:env:{SECRET}", "'webhook:env:T0...'"),
        (f"slack:ssm:hooks.slack.com/services/{SECRET}", "'slack:ssm:ho...'"),
        ("arn:aws:sqs:eu-west-1:111122223333:jobs", "'arn:aws:sqs:eu-west-1:111122223333:jobs'"),
        ("ana@example.org", "'ana@example.org'"),
        ("", "''"),
        (7, "7"),
    ],
)
def test_what_is_no_target_is_named_without_its_secret(target: Any, shown: str) -> None:
    with pytest.raises(JobError) as caught:
        check_target(target)
    message = str(caught.value)
    assert shown in message and "SECRET/" not in message and "env:NAME" in message


# ---- what it says --------------------------------------------------------------------------------------------------


def test_a_run_is_told_of_by_its_last_job(queue: Queue) -> None:
    for n in range(8):
        queue.end(f"p1-{n}", run="talent", status="Failed" if n % 4 == 3 else "Completed", reason=f"Why {n} <&>")
    output = "s3://bucket/my features/"
    last = queue.end("p2", "webhook:env:HOOK", run="talent", tags={"output": output}, cause="dependency")
    notice = notice_of(queue.store, last, place="jobs.sqlite")
    assert notice["about"] == "run" and notice["again"] == f"shardkit resume '{output}'"
    assert {name: n for name, n in notice["run_jobs"].items() if n} == {"Completed": 6, "Failed": 3}
    assert [each["job_id"] for each in notice["run_failed"]] == ["p1-3", "p1-7", "p2"]
    text = text_of(notice)
    assert text.startswith("Run talent Failed with job p2 before its first attempt: a job that it needs did not")
    assert "Jobs       6 Completed, 3 Failed\n" in text and "  p1-3: Why 3 <&>\n" in text
    shown = json.dumps(slack_of(notice))
    assert "Why 3 &lt;&amp;&gt;" in shown and "<&>" not in shown
    assert subject_of(notice) == "shardkit: run talent Failed (dependency)"
    assert subject_of(notice | {"run": "größe\n" * 30}).isascii() and len(subject_of(notice | {"run": "a" * 300})) == 99


def test_the_text_for_people(queue: Queue) -> None:
    job = queue.end("talent", attempts=(ATTEMPT,), owner="ana", attempt=1)
    assert text_of(notice_of(queue.store, job, place="my jobs.sqlite")).splitlines() == [
        "Job talent Failed after 1 attempt: the program failed.",
        "",
        "KeyError: 'title'",
        "",
        "Owner      ana",
        "Instance   2 x ml.m5.2xlarge",
        "Waited     1 min 0 s",
        "Ran        30 min 0 s",
        "Log group  /aws/sagemaker/ProcessingJobs talent-1/",
        "Try again  shardkit jobs again talent --store 'my jobs.sqlite'",
    ]
    done = queue.end("fine", status="Completed", reason="")
    assert "again" not in text_of(notice_of(queue.store, done))


def test_links_to_logs() -> None:
    job = Job("a-b", attempts=({"name": "a-b-1", "created_at": "x"}, {"name": "a-b-2"}), kind="training")
    tail = "$252Faws$252Fsagemaker$252FTrainingJobs$3FlogStreamNameFilter$3Da-b-1$252F"
    place = "/cloudwatch/home?region={0}#logsV2:log-groups/log-group/"
    for region, host in (("eu-west-1", "aws.amazon.com"), ("cn-north-1", "amazonaws.cn")):
        assert log_url(job, region) == f"https://{region}.console.{host}{place.format(region)}{tail}"
    assert log_url(job, "") == "" == log_url(Job("a"), "eu-west-1")


def test_every_cause_has_words() -> None:
    assert set(CAUSES_IN_WORDS) == set(ATTEMPTS) and all(f"\n    {cause} " in causes_doc for cause in ATTEMPTS)
    assert [human_seconds(each) for each in (4.25, 9.96, 59, 190, 7500, 273600)] == [
        "4.2 s", "10 s", "59 s", "3 min 10 s", "2 h 5 min", "3 d 4 h",
    ]  # fmt: skip
