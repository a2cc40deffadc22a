"""An engine with a queue of its own: many jobs in a call, jobs that wait in it, and jobs that give way to others."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from simulated_service import client_error

from shardkit.cli.run_lines import job_lines
from shardkit.jobs import Policy, SimulatedClock, SQLiteStore, Submission, launch, monitor, stop

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = {"ProcessingResources": {"ClusterConfig": {"InstanceCount": 1, "InstanceType": "short"}}}
POLICY = Policy(creates_per_s=2.0, batch=1000, poll_s=5.0)


class Queueing:
    """Takes jobs by the hundreds; ``room`` says how many at most, ``answers`` how each of them is."""

    def __init__(self, clock: SimulatedClock, room: int = 10_000) -> None:
        self.clock, self.room = clock, room
        self.calls = 0
        self.down = False
        self.answers: dict[str, dict[str, Any]] = {}

    def create_processing_jobs(self, requests: list[dict[str, Any]]) -> list[Exception | None]:
        self.calls += 1
        return [self._create(request["ProcessingJobName"]) for request in requests]

    def _create(self, name: str) -> Exception | None:
        if self.down:
            return client_error(
                "ServiceUnavailable", "the controller does not answer", "CreateProcessingJob", status=503
            )
        if name in self.answers:
            return client_error("ResourceInUse", "exists", "CreateProcessingJob")
        if len(self.answers) >= self.room:
            return client_error("ResourceLimitExceeded", "full", "CreateProcessingJob")
        self.say(name, WaitingReason="Priority")
        return None

    def say(self, name: str, status: str = "InProgress", **more: Any) -> None:
        now = datetime.datetime.fromtimestamp(self.clock.time(), datetime.timezone.utc)
        times = {"CreationTime": now, "LastModifiedTime": now}
        self.answers[name] = {"ProcessingJobName": name, "ProcessingJobStatus": status} | times | more

    def list_processing_jobs(self, **_: Any) -> dict[str, Any]:
        if self.down:
            raise client_error(
                "ServiceUnavailable", "the controller does not answer", "CreateProcessingJob", status=503
            )
        return {"ProcessingJobSummaries": list(self.answers.values())}

    def stop_processing_jobs(self, requests: list[dict[str, Any]]) -> list[Exception | None]:
        self.calls += 1
        return [self._stop(request["ProcessingJobName"]) for request in requests]

    def _stop(self, name: str) -> Exception | None:
        if self.answers[name]["ProcessingJobStatus"] != "InProgress":
            return client_error("ValidationException", "it has ended", "StopProcessingJob")
        self.say(name, "Stopped")
        return None

    def describe_processing_job(self, ProcessingJobName: str) -> dict[str, Any]:  # noqa: N803
        return self.answers[ProcessingJobName]


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def store(tmp_path: Path, clock: SimulatedClock) -> SQLiteStore:
    return SQLiteStore(tmp_path / "jobs.sqlite", clock=clock)


def submitted(store: SQLiteStore, count: int) -> None:
    store.submit_many(Submission(f"run-{i:04d}", REQUEST) for i in range(count))


def test_many_jobs_in_one_call(store: SQLiteStore, clock: SimulatedClock) -> None:
    submitted(store, 1200)
    engine = Queueing(clock)
    report = launch(store, engine, policy=POLICY, clock=clock)
    while report.new:
        clock.sleep(report.next_in_s)
        report = launch(store, engine, policy=POLICY, clock=clock)
    assert engine.calls == 2
    assert store.counts()["Launched"] == len(engine.answers) == 1200


def test_what_does_not_fit_waits(store: SQLiteStore, clock: SimulatedClock) -> None:
    submitted(store, 100)
    engine = Queueing(clock, room=60)
    report = launch(store, engine, policy=POLICY, clock=clock)
    assert (report.new, report.waiting, report.trouble) == (40, {"quota": 40}, "ResourceLimitExceeded: full")
    assert store.counts()["Launched"] == 60
    engine.room = 80
    clock.sleep(POLICY.probe_s + 1)  # the wait that one refusal brings
    assert len(launch(store, engine, policy=POLICY, clock=clock).launched) == 20


def test_an_engine_that_does_not_answer_costs_no_attempt(store: SQLiteStore, clock: SimulatedClock) -> None:
    submitted(store, 10)
    engine = Queueing(clock)
    engine.down = True
    for _ in range(20):  # for minutes
        monitor(store, engine, policy=POLICY, clock=clock)
        report = launch(store, engine, policy=POLICY, clock=clock)
        assert "the controller does not answer" in report.trouble or not report.launched
        clock.sleep(20)
    engine.down = False
    while store.counts()["InProgress"] < 10:
        monitor(store, engine, policy=POLICY, clock=clock)
        launch(store, engine, policy=POLICY, clock=clock)
        for name in engine.answers:
            engine.say(name)
        clock.sleep(20)
    assert [job.attempt for job in store.jobs()] == [1] * 10
    assert engine.calls < 20


def test_jobs_that_wait_are_told_from_those_that_run(store: SQLiteStore, clock: SimulatedClock) -> None:
    submitted(store, 3)
    engine = Queueing(clock)
    launch(store, engine, policy=POLICY, clock=clock)
    engine.say("run-0001-1")
    monitor(store, engine, policy=POLICY, clock=clock, force=True)
    assert [job.status for job in store.jobs()] == ["Launched", "InProgress", "Launched"]
    jobs = [
        {"status": j.status, "reason": j.reason, "cause": "", "name": j.name, "attempts": [1]} for j in store.jobs()
    ]
    assert list(job_lines(jobs)) == [
        "jobs     3: 2 waiting, 1 InProgress",
        "  2 wait for: Priority",
    ]
    versions = [job.version for job in store.jobs()]
    clock.sleep(10)
    monitor(store, engine, policy=POLICY, clock=clock, force=True)
    assert [job.version for job in store.jobs()] == versions  # nothing is written of what has not changed
    engine.say("run-0000-1")
    clock.sleep(10)
    monitor(store, engine, policy=POLICY, clock=clock, force=True)
    assert next((job.status, job.reason) for job in store.jobs()) == ("InProgress", "")


def test_many_jobs_are_stopped_in_one_call(store: SQLiteStore, clock: SimulatedClock) -> None:
    submitted(store, 300)
    engine = Queueing(clock)
    launch(store, engine, policy=POLICY, clock=clock)
    engine.say("run-0007-1", "Completed")  # which nobody has seen yet
    engine.calls = 0
    assert len(stop(store, engine, clock=clock)) == 300
    assert engine.calls == 1
    assert {job.stop_sent_at > 0 for job in store.jobs()} == {True}
    clock.sleep(10)
    monitor(store, engine, policy=POLICY, clock=clock, force=True)
    assert {status: count for status, count in store.counts().items() if count} == {"Completed": 1, "Stopped": 299}


def test_giving_way_to_others_counts_for_nothing(store: SQLiteStore, clock: SimulatedClock) -> None:
    submitted(store, 1)
    engine = Queueing(clock)
    for attempt in range(1, 41):  # more than all attempts that a job has
        while f"run-0000-{attempt}" not in engine.answers:
            clock.sleep(10)
            launch(store, engine, policy=POLICY, clock=clock)
        engine.say(f"run-0000-{attempt}", "Failed", FailureReason="Preempted: by others")
        clock.sleep(10)
        monitor(store, engine, policy=POLICY, clock=clock, force=True)
        (job,) = store.jobs()
        assert (job.status, job.cause) == ("New", "preempted")
        assert job.not_before <= clock.time() + POLICY.retry_wait_s


@pytest.mark.parametrize(
    ("reason", "cause", "attempts"),
    [("NodeFailure: x", "node", 5), ("OutOfMemory: x", "memory", 3), ("JobLost: x", "lost", 3)],
)
def test_causes_with_a_budget(
    store: SQLiteStore, clock: SimulatedClock, reason: str, cause: str, attempts: int
) -> None:
    submitted(store, 1)
    engine = Queueing(clock)
    for attempt in range(1, attempts + 1):
        while f"run-0000-{attempt}" not in engine.answers:
            clock.sleep(1000)
            launch(store, engine, policy=POLICY, clock=clock)
        engine.say(f"run-0000-{attempt}", "Failed", FailureReason=reason)
        clock.sleep(10)
        monitor(store, engine, policy=POLICY, clock=clock, force=True)
    (job,) = store.jobs()
    assert (job.status, job.cause, job.attempt) == ("Failed", cause, attempts)
