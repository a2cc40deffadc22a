"""The job queue, one event at a time, against a simulated service."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from simulated_service import Faults, SimulatedService, client_error

from shardkit.jobs import (
    Change,
    EngineRefused,
    Job,
    JobConflict,
    JobError,
    JobNotFound,
    Policy,
    Report,
    SimulatedClock,
    SQLiteStore,
    StoreError,
    Submission,
    adopt,
    again,
    classify,
    drive,
    export_jobs,
    import_jobs,
    launch,
    monitor,
    observe,
    stop,
    transitions,
)
from shardkit.jobs.job import MAX_ATTEMPT, SENT
from shardkit.jobs.pace import Pace
from shardkit.jobs.store import Waiting
from shardkit.jobs.transitions import tries_left, wait_after

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CREATE = "create_processing_job"


def request_of(*types: str, instances: int = 1, **more: Any) -> dict[str, Any]:
    kinds = types or ("ml.m5.xlarge",)
    cluster: dict[str, Any] = {"InstanceCount": instances, "VolumeSizeInGB": 30}
    if len(kinds) == 1:
        cluster["InstanceType"] = kinds[0]
    else:
        cluster["InstancePreferences"] = [{"InstanceType": kind, "InstanceCount": instances} for kind in kinds]
        del cluster["InstanceCount"]
    return {
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    } | more


class Bench:
    """A store, a service and a clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = SimulatedClock()
        self.service = SimulatedService(self.clock, seconds=100)
        self.store = SQLiteStore(path, clock=self.clock)
        self.policy = Policy()

    def submit(self, *job_ids: str, **options: Any) -> None:
        for job_id in job_ids:
            self.store.submit(job_id, options.pop("request", None) or request_of(), **options)

    def launch(self, **changes: Any) -> Report:
        return launch(self.store, self.service, policy=self.rules(changes), clock=self.clock)

    def monitor(self, *, force: bool = True, **changes: Any) -> Report:
        return monitor(self.store, self.service, policy=self.rules(changes), clock=self.clock, force=force)

    def rules(self, changes: dict[str, Any]) -> Policy:
        return Policy(**(vars(self.policy) | changes))

    def finish(self) -> dict[str, int]:
        drive(self.store, self.service, policy=self.policy, clock=self.clock)
        return self.store.counts()

    def observe(self, *answers: dict[str, Any]) -> list[Change]:
        return observe(self.store, self.service, answers, policy=self.policy, clock=self.clock)

    def wait(self, seconds: float) -> Report:
        self.clock.sleep(seconds)
        return self.monitor()

    def __getitem__(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def status(self) -> str:
        return " ".join(f"{job.job_id}:{job.status}" for job in self.store.jobs())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "jobs.sqlite")


# ---- submitting ----------------------------------------------------------------------------------------------------


def test_a_job_from_new_to_completed(bench: Bench) -> None:
    job = bench.store.submit("talent-p1-0001", request_of(), owner="ana", tags={"run": "7"})
    assert (job.status, job.attempt, job.name, job.owner, job.tags) == ("New", 0, "", "ana", {"run": "7"})
    assert bench.launch().launched == ("talent-p1-0001-1",)
    assert bench["talent-p1-0001"].status == "Launched"
    bench.wait(20)
    assert bench["talent-p1-0001"].status == "InProgress"
    report = bench.wait(90)
    assert [change.status for change in report.changed] == ["Completed"] and report.ended
    job = bench["talent-p1-0001"]
    (attempt,) = job.attempts
    assert (job.status, job.attempt, job.name) == ("Completed", 1, "talent-p1-0001-1")
    assert attempt["name"] == job.name and attempt["status"] == "Completed"
    assert attempt["launched_at"] == attempt["created_at"] < attempt["ended_at"]
    assert attempt["instance_type"] == "ml.m5.xlarge" and attempt["instances"] == 1


def test_the_same_job_twice_is_one_job(bench: Bench) -> None:
    bench.submit("a")
    bench.launch()
    assert bench.store.submit("a", dict(reversed(request_of().items()))).status == "Launched"
    with pytest.raises(JobConflict, match="There is a job a already, with another request. Submit this one under"):
        bench.store.submit("a", request_of("ml.m5.large"))
    bench.submit("b")
    with pytest.raises(JobConflict, match="another list of jobs that it depends on"):
        bench.store.submit("b", request_of(), depends_on=["a"])


def test_submissions_are_all_or_none(bench: Bench) -> None:
    with pytest.raises(JobNotFound, match="Job b depends on c, which was not submitted"):
        bench.store.submit_many([Submission("a", request_of()), Submission("b", request_of(), ["c"])])
    assert bench.store.jobs() == []
    with pytest.raises(JobError, match="names every attempt itself"):
        bench.submit("a", request=request_of(ProcessingJobName="mine"))
    with pytest.raises(JobError, match="cannot be written as JSON"):
        bench.submit("a", request=request_of(Environment={"a": object()}))


@pytest.mark.parametrize("bad", ["", "-a", "a-", "a_b", "a.b", "ä", "a b", "a" * 59, "a\n", 7])
def test_ids_that_cannot_name_an_attempt(bench: Bench, bad: Any) -> None:
    with pytest.raises(JobError, match="cannot be a job id"):
        bench.submit(bad)


@pytest.mark.parametrize("good", ["a", "0", "a--b", "run-20261122-0001", "A" * 58])
def test_names_of_all_attempts_are_names_for_the_service(good: str, bench: Bench) -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    shape = model.operation_model("CreateProcessingJob").input_shape.members["ProcessingJobName"]
    bench.submit(good)
    for attempt in (1, 9999):
        name = f"{good}-{attempt}"
        assert re.fullmatch(shape.metadata["pattern"], name) and len(name) <= shape.metadata["max"]


def test_lists_and_counts(bench: Bench) -> None:
    bench.submit("r1-a", "r1-b", run="r1", owner="ana")
    bench.submit("r2-a", run="r2", owner="ben")
    bench.launch()
    assert [job.job_id for job in bench.store.jobs(run="r1")] == ["r1-a", "r1-b"]
    assert [job.job_id for job in bench.store.jobs(run="r1", latest=True, limit=1)] == ["r1-b"]
    assert [job.job_id for job in bench.store.jobs(owner="ben")] == ["r2-a"]
    assert sum(bench.store.counts(run="r1").values()) == 2
    assert [job.job_id for job in bench.store.jobs(status="New")] == ["r1-b", "r2-a"]
    assert [job.job_id for job in bench.store.jobs(status=["New", "Launched"], limit=2)] == ["r1-a", "r1-b"]
    assert {status: n for status, n in bench.store.counts().items() if n} == {"New": 2, "Launched": 1}
    with pytest.raises(JobNotFound, match="has no job 'r3'"):
        bench.store.get("r3")
    with pytest.raises(JobError, match="There is no status 'Running'"):
        bench.store.jobs(status="Running")


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(StoreError, match=r"text cannot be used as a store of jobs"):
        SQLiteStore(tmp_path / "text")
    SQLiteStore(tmp_path / "later").close()
    with sqlite3.connect(tmp_path / "later") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="a newer version of shardkit"):
        SQLiteStore(tmp_path / "later")


# ---- conditional writes --------------------------------------------------------------------------------------------


def test_a_change_is_written_only_where_nobody_was_faster(bench: Bench) -> None:
    bench.submit("a")
    mine, theirs = bench["a"], SQLiteStore(bench.path).get("a")
    assert mine == theirs
    changed = bench.store.update(replace(mine, reason="mine"))
    assert changed is not None and changed.version == mine.version + 1
    assert SQLiteStore(bench.path).update(replace(theirs, reason="theirs")) is None
    assert bench["a"] == changed
    assert bench.store.put_state("key", {"n": 1}, 0) and not bench.store.put_state("key", {"n": 2}, 0)
    assert bench.store.put_state("key", {"n": 2}, 1) and not bench.store.put_state("key", {"n": 3}, 1)
    assert bench.store.state("key") == ({"n": 2}, 2)


def test_of_many_that_change_the_same_job_one_wins_each_time(bench: Bench) -> None:
    bench.submit("a")
    won: list[int] = []

    def count(store: SQLiteStore) -> None:
        while len(won) < 100:
            job = store.get("a")
            if store.update(replace(job, base=job.base + 1)) is not None:
                won.append(job.base)

    stores = [bench.store, bench.store, SQLiteStore(bench.path), SQLiteStore(bench.path)]
    threads = [threading.Thread(target=count, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == list(range(bench["a"].base)) and len(won) >= 100


# ---- the pace ------------------------------------------------------------------------------------------------------


def test_one_create_a_second_for_all_launchers_together(bench: Bench) -> None:
    bench.submit(*(f"a-{i}" for i in range(5)))
    assert len(bench.launch().launched) == 1
    other = launch(SQLiteStore(bench.path), bench.service, policy=bench.policy, clock=bench.clock)
    assert other.launched == () and other.next_in_s == pytest.approx(1) and other.waiting == {"pace": 4}
    bench.clock.sleep(1)
    assert len(bench.launch().launched) == 1
    began = bench.clock.time()
    report = bench.launch(launch_s=10)  # as a Lambda would call it
    assert len(report.launched) == 3 and bench.clock.time() - began == pytest.approx(3)
    assert not bench.service.answers["CreateProcessingJob", "ThrottlingException"]


def test_a_launch_has_its_limits(bench: Bench) -> None:
    bench.submit(*(f"a-{i}" for i in range(9)))
    assert len(bench.launch(launch_s=100, max_launches=4).launched) == 4
    began = bench.clock.time()
    assert len(bench.launch(launch_s=3).launched) == 3
    assert bench.clock.time() - began <= 3


def test_throttled_calls_are_made_again_later_and_later(bench: Bench) -> None:
    bench.submit("a")
    waits = []
    for _ in range(8):
        bench.service.fail_next(CREATE, client_error("ThrottlingException", "Rate exceeded", "CreateProcessingJob"))
        report = bench.launch()
        assert bench["a"].status == "New" and "ThrottlingException" in report.trouble
        waits.append(bench.store.state("launch")[0]["next_at"] - bench.clock.time())
        bench.clock.sleep(waits[-1])
    assert waits[0] <= 2 and waits[5] > 8 * waits[0] and max(waits) <= 60
    assert bench.launch().launched == ("a-1",)
    assert len(bench["a"].attempts) == 1


def test_a_launch_with_time_goes_on_after_calls_that_were_throttled_or_lost(bench: Bench) -> None:
    bench.submit(*(f"a-{i:02d}" for i in range(40)))
    throttled = client_error("ThrottlingException", "Rate exceeded", "CreateProcessingJob")
    bench.service.fail_next(CREATE, throttled, throttled, ReadTimeoutError(endpoint_url="https://service"))
    report = bench.launch(launch_s=50)
    assert 25 <= len(report.launched) < 40 and not report.trouble and bench.store.counts()["New"] == report.new
    assert [job.job_id for job in bench.store.jobs(status="Launched") if job.exists == "maybe"] != []
    assert not bench.service.answers["CreateProcessingJob", "too fast"]
    bench.clock.sleep(60)
    assert bench.finish() == {**dict.fromkeys(bench.store.counts(), 0), "Completed": 40}


def test_moments_for_calls_are_not_wasted_on_jobs_that_others_took(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit(*(f"a-{i:02d}" for i in range(30)))
    create = bench.service.create_processing_job

    def others_are_faster(**request: Any) -> Any:
        monkeypatch.undo()
        stop(bench.store, bench.service, [f"a-{i:02d}" for i in range(10, 20)], clock=bench.clock)
        return create(**request)

    monkeypatch.setattr(bench.service, CREATE, others_are_faster)
    began = bench.clock.time()
    report = bench.launch(launch_s=60)
    assert len(report.launched) == 20 and report.new == 0 and bench.clock.time() - began < 20


def test_two_launchers_do_not_get_into_each_others_moments(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is throttled, and goes on with the moments that it has; those of the other one come later."""
    bench.submit(*(f"a-{i:02d}" for i in range(10)))
    taken: list[float] = []

    def throttled_once(**_: Any) -> Any:
        monkeypatch.undo()
        assert Pace(bench.store, Policy(launch_s=50), bench.clock, None).reserve(10) == 10
        taken.append(bench.store.state("launch")[0]["next_at"])
        raise client_error("ThrottlingException", "Rate exceeded", "CreateProcessingJob")

    monkeypatch.setattr(bench.service, CREATE, throttled_once)
    began = bench.clock.time()
    report = bench.launch(launch_s=9)
    assert 4 <= len(report.launched) <= 8 and bench.clock.time() - began <= 9
    assert bench.store.state("launch")[0]["next_at"] >= taken[0]


def test_a_quota_of_long_ago_wakes_nobody(bench: Bench) -> None:
    over = client_error("ResourceLimitExceeded", "no more", "CreateProcessingJob")
    bench.submit("a", request=request_of("ml.m5.large"))
    bench.service.fail_next(CREATE, over)
    bench.launch()
    bench.clock.sleep(100)
    assert bench.launch().launched == ("a-1",)
    bench.wait(200)
    bench.submit("b", request=request_of("ml.p4d.24xlarge"))
    bench.service.fail_next(CREATE, over)
    for _ in range(2):
        report = bench.launch()
        assert report.waiting == {"quota": 1} and report.next_in_s > 1


def test_a_loop_does_not_end_on_what_an_index_does_not_show_yet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that changed less than a second ago are in no list, as it may be while they go from one index to another."""
    bench.submit("a")
    bench.submit("b", depends_on=["a"])
    shown, waiting = bench.store.jobs, bench.store.waiting

    def settled() -> bool:
        return all(job.changed_at + 0.9 <= bench.clock.time() for job in shown())

    monkeypatch.setattr(SQLiteStore, "lag_s", 1.0)
    monkeypatch.setattr(bench.store, "jobs", lambda **given: shown(**given) if settled() else [])
    monkeypatch.setattr(
        bench.store, "waiting", lambda now, **how: waiting(now, **how) if settled() else Waiting((), 0, 0, None, 0)
    )
    bench.finish()
    assert [job.status for job in shown()] == ["Completed", "Completed"]


DAY_S = 86_400.0


class Wrong:
    """A clock that is ahead for a while; the service's own is right."""

    def __init__(self, right: SimulatedClock) -> None:
        self.right, self.ahead_s = right, DAY_S

    def time(self) -> float:
        return self.right.time() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        self.right.sleep(seconds)


@pytest.mark.parametrize("when", ["claimed", "waiting", "launched", "stopping"])
def test_what_a_clock_that_was_a_day_ahead_has_written_keeps_nothing_waiting(bench: Bench, when: str) -> None:
    bench.submit("a")
    begun, clock = bench.clock.time(), Wrong(bench.clock)
    claimed = bench.store.update(transitions.claim(bench["a"], clock.time(), bench.policy.lease_s))
    assert claimed is not None
    if when != "claimed":
        bench.store.update(transitions.put_back(claimed, clock.time(), "throttled", wait_s=float(when == "waiting")))
    if when in {"launched", "stopping"}:
        launch(bench.store, bench.service, clock=clock)
        monitor(bench.store, bench.service, clock=clock, force=True)
    if when == "stopping":
        stop(bench.store, bench.service, clock=clock)
    clock.ahead_s = 0.0
    bench.finish()
    assert bench["a"].status == ("Stopped" if when == "stopping" else "Completed")
    assert bench.clock.time() - begun < 600.0


def test_a_clock_that_was_set_back_stops_nobody(bench: Bench) -> None:
    bench.submit("a", "b")
    bench.launch()
    bench.monitor()
    bench.clock.now -= 86400
    assert bench.launch().launched == ("b-1",)
    assert bench.monitor(force=False).looked


class Paused:
    """A store or a service whose user is paused before its n-th writing call, while others go on."""

    WRITES = ("update", "update_many", "put_state", CREATE, "stop_processing_job")

    def __init__(self, of: Any, step: list[int], meanwhile: Callable[[], object]) -> None:
        self._of, self._step, self._meanwhile = of, step, meanwhile

    def __getattr__(self, name: str) -> Any:
        do = getattr(self._of, name)
        if name not in self.WRITES:
            return do

        def instead(*given: Any, **named: Any) -> Any:
            given = tuple(list(each) if hasattr(each, "__next__") else each for each in given)  # as it is before
            self._step[0] -= 1
            if self._step[0] == 0:
                self._meanwhile()
            return do(*given, **named)

        return instead


def test_a_server_that_was_paused_at_any_step_launches_nothing_twice(tmp_path: Path) -> None:
    """Of two jobs, one of which has two attempts."""
    step = 0
    while True:
        step += 1
        bench, left = Bench(tmp_path / f"{step}.sqlite"), [step]
        bench.service.outcomes = {"a-1": "died"}
        bench.submit("a", "b")
        store = Paused(bench.store, left, bench.finish)
        service = Paused(bench.service, left, bench.finish)
        for _ in range(4):
            monitor(store, service, policy=bench.policy, clock=bench.clock, force=True)
            launch(store, service, policy=bench.policy, clock=bench.clock)
            bench.clock.sleep(20.0)
        bench.finish()
        assert {job.status for job in bench.store.jobs()} == {"Completed"}, step
        assert not bench.service.twice, step
        assert sorted(bench.service.jobs) == ["a-1", "a-2", "b-1"], step
        if left[0] > 0:
            break
    assert step > 5


# ---- quotas --------------------------------------------------------------------------------------------------------


def test_a_quota_keeps_jobs_new_and_lowers_the_number_in_flight(bench: Bench) -> None:
    bench.service.quota = 3
    bench.submit(*(f"a-{i}" for i in range(6)))
    report = bench.launch(launch_s=30)
    assert report.waiting == {"quota": 3} and "ResourceLimitExceeded" in report.trouble
    assert "ResourceLimitExceeded" in bench["a-3"].reason and bench["a-3"].status == "New"
    for _ in range(20):
        bench.clock.sleep(1)
        bench.launch()
    assert bench.service.answers["CreateProcessingJob", "ResourceLimitExceeded"] == 1
    bench.wait(100)
    assert len(bench.launch(launch_s=30).launched) == 3
    assert bench.finish()["Completed"] == 6
    assert bench.service.answers["CreateProcessingJob", "ResourceLimitExceeded"] <= 3


def test_a_quota_that_was_raised_is_found_out(bench: Bench) -> None:
    bench.service.quota, bench.service.seconds = 2, 5000
    bench.submit(*(f"a-{i}" for i in range(10)))
    bench.launch(launch_s=30)
    bench.service.quota = 8
    bench.clock.sleep(61)
    assert len(bench.launch(launch_s=30).launched) == 6


def test_a_quota_of_one_type_does_not_hold_up_another(bench: Bench) -> None:
    bench.submit("a", "b")
    bench.submit("c", request=request_of("ml.m5.large"))
    bench.service.quota = 1
    bench.launch(launch_s=1.5)
    bench.service.quota = 2
    assert bench.launch(launch_s=3).launched == ("c-1",)


def test_no_more_instances_than_the_policy_allows(bench: Bench) -> None:
    bench.submit("a", request=request_of(instances=2))
    bench.submit("b", "c")
    bench.submit("huge", request=request_of(instances=4))
    report = bench.launch(launch_s=10, max_instances=3)
    assert report.launched == ("a-1", "b-1") and report.waiting == {"max_instances": 2}
    bench.policy = Policy(max_instances=3)
    counts = bench.finish()
    assert (counts["Completed"], counts["Failed"]) == (3, 1)
    assert "max_instances allows 3" in bench["huge"].reason


# ---- failures ------------------------------------------------------------------------------------------------------


def test_no_capacity_means_the_next_instance_preference_first(bench: Bench) -> None:
    bench.service.outcomes = {"a-1": "capacity", "a-2": "capacity", "a-3": "internal"}
    bench.submit("a", request=request_of("ml.m5.xlarge", "ml.m6i.xlarge", "ml.c5.xlarge"))
    bench.finish()
    first = [
        attempt.request["ProcessingResources"]["ClusterConfig"]["InstancePreferences"][0]["InstanceType"]
        for attempt in bench.service.jobs.values()
    ]
    assert first == ["ml.m5.xlarge", "ml.m6i.xlarge", "ml.c5.xlarge", "ml.m5.xlarge"]
    job = bench["a"]
    assert (job.status, job.attempt) == ("Completed", 4)
    assert [attempt.get("cause", "") for attempt in job.attempts] == ["capacity", "capacity", "internal", ""]
    assert [attempt["instance_type"] for attempt in job.attempts] == first
    assert "CapacityError" in job.attempts[0]["reason"]


def test_the_users_own_failure_is_final_and_told_in_its_own_words(bench: Bench) -> None:
    bench.service.outcomes = {"a-1": "user"}
    bench.submit("a")
    bench.finish()
    job = bench["a"]
    assert (job.status, job.attempt, job.cause, job.reason) == ("Failed", 1, "user", "ValueError: no such column")


@pytest.mark.parametrize(("outcome", "tries"), [("died", 3), ("stopped", 3), ("timeout", 3), ("internal", 5)])
def test_attempts_are_limited_for_every_cause(bench: Bench, outcome: str, tries: int) -> None:
    bench.service.outcomes = {f"a-{i}": outcome for i in range(1, 100)}
    bench.service.seconds = 4000 if outcome == "timeout" else 100
    bench.submit("a")
    bench.finish()
    job = bench["a"]
    assert (job.status, job.attempt, job.cause) == ("Failed", tries, outcome)
    assert [attempt["cause"] for attempt in job.attempts] == [outcome] * tries


@pytest.mark.parametrize(("retries", "tries"), [("0", 1), ("2", 3)])
def test_a_job_says_how_often_its_own_faults_are_tried_again(bench: Bench, retries: str, tries: int) -> None:
    """Those of its program count together; the service's own are tried again by the policy, beside them."""
    bench.service.outcomes = {f"a-{i}": ("capacity", "user", "died")[i % 3] for i in range(1, 100)}
    bench.store.submit("a", request_of(), tags={"own_retries": retries})
    bench.finish()
    job = bench["a"]
    causes = [attempt["cause"] for attempt in job.attempts]
    assert job.status == "Failed"
    assert sum(cause in {"user", "died"} for cause in causes) == tries
    assert causes[:3] == ["user", "died", "capacity"][: len(causes)]


def test_attempts_are_limited_in_all(bench: Bench) -> None:
    bench.service.outcomes = {f"a-{i}": ("died", "stopped", "internal", "capacity")[i % 4] for i in range(1, 100)}
    bench.policy = Policy(max_attempts=6, attempts={"died": 50})
    bench.submit("a")
    bench.finish()
    assert (bench["a"].status, bench["a"].attempt) == ("Failed", 6)


def test_trying_again_has_a_budget_of_its_own(bench: Bench) -> None:
    bench.service.outcomes = {f"a-{i}": "died" for i in range(1, 6)}
    bench.submit("a")
    bench.finish()
    assert bench["a"].attempt == 3
    job = again(bench.store, "a", clock=bench.clock)
    assert (job.status, job.reason, job.cause) == ("New", "", "")
    bench.finish()
    assert (bench["a"].status, bench["a"].attempt, len(bench["a"].attempts)) == ("Completed", 6, 6)
    with pytest.raises(JobConflict, match="Job a has completed; only a job that failed or was stopped"):
        again(bench.store, "a")


def test_a_new_budget_begins_with_the_shortest_wait_and_numbers_of_attempts_end() -> None:
    died: Any = tuple({"attempt": at, "name": f"a-{at}", "cause": "died"} for at in range(1, 4))
    job = Job("a", attempt=3, attempts=died)
    policy = Policy(retry_wait_s=5.0, retry_wait_max_s=1000.0)
    assert [wait_after(replace(job, base=base), "died", policy) for base in (0, 2, 3)] == [40.0, 10.0, 5.0]
    later = [replace(job, base=3, attempt=number) for number in (MAX_ATTEMPT - 1, MAX_ATTEMPT)]
    assert [tries_left(each, "died", policy) for each in later] == [True, False]


def test_only_failures_without_a_reason_are_described(bench: Bench) -> None:
    bench.service.outcomes = {"a-1": "user", "b-1": "user"}
    bench.submit("a", "b", "c")
    bench.launch(launch_s=5)
    bench.service.jobs["b-1"].hidden = True
    bench.wait(100)
    assert bench.service.calls["DescribeProcessingJob"] == 1
    assert bench["a"].reason == bench["b"].reason == "ValueError: no such column"


ENDINGS = [
    ("Failed", "CapacityError: no such instance", "", "capacity"),
    ("Failed", "InternalServerError: We encountered an internal error.", "", "internal"),
    ("Failed", "AlgorithmError: See job logs, exit code: 137", "", "died"),
    ("Failed", "AlgorithmError: See job logs, exit code: 137", "transient: disk", "transient"),
    ("Failed", "AlgorithmError: See job logs, exit code: 75", "", "transient"),
    ("Failed", "AlgorithmError: See job logs, exit code: 1", "", "user"),
    ("Failed", "AlgorithmError: See job logs", "", "died"),
    ("Failed", "AlgorithmError: See job logs", "ValueError", "user"),
    ("Failed", "ClientError: Failed to download data.", "", "client"),
    ("Failed", "ClientError: MaxRuntimeInSeconds exceeded", "", "timeout"),
    ("Failed", "", "", "unknown"),
    ("Stopped", "", "", "stopped"),
    ("Stopped", "Maximum runtime exceeded", "", "timeout"),
]


@pytest.mark.parametrize(("status", "reason", "message", "cause"), ENDINGS)
def test_causes(status: str, reason: str, message: str, cause: str) -> None:
    answer = {"ProcessingJobStatus": status, "FailureReason": reason, "ExitMessage": message}
    assert classify(answer) == cause


# ---- calls whose answer nobody heard -------------------------------------------------------------------------------


def lose(bench: Bench, *, created: bool) -> Report:
    """Launch with a call that gets no answer, whether it is carried out or not."""
    call = bench.service._create

    def lost(name: str, request: dict[str, Any]) -> dict[str, Any]:
        if created:
            call(name, request)
        raise ReadTimeoutError(endpoint_url="https://service")

    bench.service._create = lost  # type: ignore[method-assign]
    try:
        return bench.launch()
    finally:
        bench.service._create = call  # type: ignore[method-assign]


def test_a_lost_answer_to_a_call_that_was_done_costs_no_call(bench: Bench) -> None:
    bench.submit("a")
    assert "ReadTimeoutError" in lose(bench, created=True).trouble
    assert bench["a"].status == "Launched"
    assert bench.finish()["Completed"] == 1
    assert bench.service.calls["CreateProcessingJob"] == 1 and list(bench.service.jobs) == ["a-1"]


def test_a_call_that_was_not_done_is_made_again_under_the_same_name(bench: Bench) -> None:
    bench.submit("a")
    lose(bench, created=False)
    bench.clock.sleep(3)
    assert bench.launch().launched == () and bench["a"].status == "Launched"
    assert bench.finish()["Completed"] == 1
    assert bench.service.calls["CreateProcessingJob"] == 2 and list(bench.service.jobs) == ["a-1"]
    assert len(bench["a"].attempts) == 1


@pytest.mark.parametrize(
    "error",
    [EndpointConnectionError(endpoint_url="https://x"), OSError("reset"), client_error("x", "", "", status=503)],
)
def test_errors_after_which_nobody_knows(bench: Bench, error: Exception) -> None:
    bench.submit("a")
    bench.service.fail_next(CREATE, error)
    assert bench.launch().trouble
    assert bench["a"].status == "Launched"
    assert bench.finish()["Completed"] == 1


@pytest.mark.parametrize("code", ["ResourceInUse", "ValidationException"])
def test_the_same_call_again_is_recognised(bench: Bench, code: str) -> None:
    bench.submit("a")
    lose(bench, created=True)
    bench.service.delay_s = 60  # the list does not show it yet
    bench.wait(20)
    bench.service.fail_next(CREATE, client_error(code, "Processing job a-1 already exists", "CreateProcessingJob"))
    assert bench.launch().launched == ("a-1",)
    assert bench.finish()["Completed"] == 1 and list(bench.service.jobs) == ["a-1"]


@pytest.mark.parametrize("code", ["ThrottlingException", "ResourceLimitExceeded", "ValidationException"])
def test_an_error_says_nothing_of_an_earlier_call(bench: Bench, code: str) -> None:
    bench.submit("a")
    lose(bench, created=True)
    bench.service.delay_s = 60
    bench.wait(20)
    bench.service.fail_next(CREATE, client_error(code, "no", "CreateProcessingJob"))
    bench.launch()
    assert bench["a"].status == "Launched"
    assert bench.finish()["Completed"] == 1 and list(bench.service.jobs) == ["a-1"]


@pytest.mark.parametrize("code", ["ThrottlingException", "ResourceLimitExceeded", "ValidationException"])
def test_calls_that_the_client_library_repeated_are_not_trusted(bench: Bench, code: str) -> None:
    bench.submit("a")
    bench.service.create_processing_job(ProcessingJobName="a-1", **request_of())  # the first try of the same call
    bench.service.fail_next(CREATE, client_error(code, "no", "CreateProcessingJob", retries=2))
    bench.launch()
    assert bench["a"].status == "Launched"
    assert bench.finish()["Completed"] == 1 and list(bench.service.jobs) == ["a-1"]


class Dead(BaseException):
    pass


@pytest.mark.parametrize("created", [True, False])
def test_a_launcher_that_dies_in_the_call(bench: Bench, monkeypatch: pytest.MonkeyPatch, *, created: bool) -> None:
    bench.submit("a")
    call = bench.service.create_processing_job

    def dies(**request: Any) -> Any:
        if created:
            call(**request)
        monkeypatch.setattr(bench.store, "update", gone)
        raise Dead

    def gone(job: Job) -> None:
        raise Dead

    monkeypatch.setattr(bench.service, CREATE, dies)
    with pytest.raises(Dead):
        bench.launch()
    monkeypatch.undo()
    assert bench["a"].status == "Launched"
    assert bench.finish()["Completed"] == 1
    assert list(bench.service.jobs) == ["a-1"]


def test_a_late_call_of_a_stopped_job_is_stopped_too(bench: Bench) -> None:
    bench.submit("a", "b")
    bench.launch()
    bench.clock.sleep(1)
    lose(bench, created=False)
    stop(bench.store, bench.service, ["b"], clock=bench.clock)
    bench.wait(20)
    bench.wait(20)
    assert bench.status() == "a:InProgress b:Stopped"
    bench.service.create_processing_job(ProcessingJobName="b-1", **request_of())
    bench.wait(20)
    assert bench.service.stops == ["b-1"]


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_request_that_the_service_refuses(bench: Bench) -> None:
    bench.submit("a", "b")
    bench.service.fail_next(CREATE, client_error("ValidationException", "Invalid image URI x.", "CreateProcessingJob"))
    report = bench.launch(launch_s=5)
    assert [(change.job_id, change.cause) for change in report.changed] == [("a", "refused")]
    assert bench["a"].reason == "ValidationException: Invalid image URI x." and report.launched == ("b-1",)


@pytest.mark.parametrize(
    "error", [NoCredentialsError(), client_error("ExpiredToken", "expired", "CreateProcessingJob")]
)
def test_no_job_suffers_for_expired_credentials(bench: Bench, error: Exception) -> None:
    bench.submit("a")
    bench.service.fail_next(CREATE, error)
    with pytest.raises(EngineRefused, match="The service takes no calls from here: .* Check credentials"):
        bench.launch()
    assert bench["a"].status == "New"
    bench.service.fail_next("list_processing_jobs", error)
    bench.clock.sleep(5)
    bench.launch()
    with pytest.raises(EngineRefused):
        bench.monitor()
    assert bench.finish()["Completed"] == 1


def test_a_fault_of_the_engine_is_raised(bench: Bench) -> None:
    bench.submit("a")
    bench.service.fail_next(CREATE, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        bench.launch()
    assert bench.finish()["Completed"] == 1 and bench["a"].attempt == 1


# ---- stopping ------------------------------------------------------------------------------------------------------


def test_stopping(bench: Bench) -> None:
    bench.submit("a", "b", "c")
    bench.launch()
    stopped = stop(bench.store, bench.service, ["a", "b"], clock=bench.clock)
    assert [(job.job_id, job.status) for job in stopped] == [("a", "Launched"), ("b", "Stopped")]
    assert bench.service.stops == ["a-1"]
    bench.finish()
    assert bench.status() == "a:Stopped b:Stopped c:Completed"
    assert bench["a"].reason == "Stopped as asked." and bench["a"].attempts[0]["status"] == "Stopped"
    assert again(bench.store, "a", clock=bench.clock).status == "New"
    assert again(bench.store, "b", clock=bench.clock).status == "New"
    bench.finish()
    assert [bench[job_id].name for job_id in "abc"] == ["a-2", "b-1", "c-1"]


def test_what_cannot_be_stopped_now_is_stopped_later(bench: Bench) -> None:
    bench.submit("a")
    bench.launch()
    bench.service.fail_next("stop_processing_job", client_error("ThrottlingException", "", "StopProcessingJob"))
    assert stop(bench.store, bench.service, clock=bench.clock)[0].status == "Launched"
    bench.finish()
    assert bench.status() == "a:Stopped" and bench.service.stops == ["a-1"]


def test_a_job_that_ends_before_it_can_be_stopped(bench: Bench) -> None:
    bench.service.outcomes = {"b-1": "died"}
    bench.submit("a", "b")
    bench.launch(launch_s=2)
    bench.clock.sleep(200)
    stop(bench.store, bench.service, clock=bench.clock)
    bench.finish()
    assert bench.status() == "a:Completed b:Failed" and bench["b"].attempt == 1


def test_an_uncertain_job_that_is_stopped_is_not_created_any_more(bench: Bench) -> None:
    bench.submit("a", "b")
    lose(bench, created=False)
    bench.clock.sleep(3)
    lose(bench, created=True)
    stop(bench.store, bench.service, clock=bench.clock)
    bench.finish()
    assert bench.status() == "a:Stopped b:Stopped"
    assert list(bench.service.jobs) == ["b-1"] and bench.service.stops == ["b-1"]


# ---- dependencies --------------------------------------------------------------------------------------------------


def test_a_job_waits_for_all_that_it_needs(bench: Bench) -> None:
    bench.submit("a", "b")
    bench.submit("last", depends_on=["a", "b", "a"])
    assert bench["last"].depends_on == ("a", "b")
    assert bench.launch(launch_s=5).waiting == {"dependency": 1}
    bench.service.jobs["b-1"].ends_at += 100
    bench.wait(110)
    assert bench.launch().launched == ()
    bench.wait(100)
    assert bench.launch().launched == ("last-1",)


def test_a_job_fails_with_what_it_needs_and_comes_back_with_it(bench: Bench) -> None:
    bench.service.outcomes = {"a-1": "user"}
    bench.submit("a", "b")
    bench.submit("p2", depends_on=["a", "b"])
    bench.submit("p3", depends_on=["p2"])
    assert bench.finish()["Failed"] == 3
    assert (bench["p2"].cause, bench["p2"].attempt) == ("dependency", 0)
    assert "It needs a, which did not complete" in bench["p2"].reason
    again(bench.store, "a", clock=bench.clock)
    assert bench.status() == "a:New b:Completed p2:New p3:New"
    assert bench.finish()["Completed"] == 4
    stop(bench.store, bench.service)


def test_a_stopped_job_takes_those_that_need_it_along(bench: Bench) -> None:
    bench.submit("a")
    bench.submit("p2", depends_on=["a"])
    stop(bench.store, bench.service, ["a"], clock=bench.clock)
    bench.finish()
    assert bench.status() == "a:Stopped p2:Failed"


# ---- looking -------------------------------------------------------------------------------------------------------


def test_a_look_is_a_page_of_what_changed(bench: Bench) -> None:
    bench.service.creates_per_s, bench.policy = 200, Policy(creates_per_s=100)
    bench.service.seconds = 5000
    bench.submit(*(f"r-{i}" for i in range(350)))
    bench.launch(launch_s=10)
    bench.clock.sleep(1)
    bench.service.create_processing_job(ProcessingJobName="other-1", **request_of())
    assert bench.wait(20).calls == 4
    for name in ("r-7-1", "r-8-1"):
        bench.service.jobs[name].ends_at = bench.clock.time() + 60
    assert bench.wait(100).calls == 1
    assert bench.store.counts()["Completed"] == 2
    assert not bench.monitor(force=False).looked


def test_nothing_in_flight_nothing_to_look_at(bench: Bench) -> None:
    bench.submit("a")
    assert bench.monitor().calls == 0
    assert bench.finish()["Completed"] == 1 and bench.monitor().calls == 0


def test_a_look_that_fails_half_way_is_made_again(bench: Bench) -> None:
    bench.submit("a")
    bench.launch()
    for error in (client_error("ThrottlingException", "", "ListProcessingJobs"), OSError("reset")):
        bench.service.fail_next("list_processing_jobs", error)
        assert bench.wait(20).trouble
    bench.service.outcomes = {}
    bench.service.jobs["a-1"].outcome, bench.service.jobs["a-1"].hidden = "user", True
    bench.service.fail_next("describe_processing_job", client_error("ThrottlingException", "", "DescribeProcessingJob"))
    assert bench.wait(100).trouble and bench["a"].live
    bench.wait(20)
    assert bench["a"].status == "Failed"


def test_a_change_that_the_list_never_showed_is_found(bench: Bench) -> None:
    bench.submit("a")
    bench.launch()
    bench.wait(20)
    bench.service.jobs["a-1"].ends_at = bench.clock.time() - 3000  # long before the last look, by the service's times
    bench.wait(100)
    assert bench["a"].status == "InProgress"
    bench.finish()
    assert bench["a"].status == "Completed"


def test_a_job_that_vanished(bench: Bench) -> None:
    bench.submit("a", "b")
    bench.service.seconds = 5000
    bench.launch(launch_s=2)
    bench.wait(20)
    del bench.service.jobs["a-1"]
    bench.finish()
    assert bench.status() == "a:Completed b:Completed"
    assert [attempt.get("cause") for attempt in bench["a"].attempts] == ["lost", None]


def test_a_job_that_never_showed_up_is_created_again_under_its_name(bench: Bench) -> None:
    bench.submit("a")
    bench.launch()
    del bench.service.jobs["a-1"]
    bench.finish()
    assert bench["a"].status == "Completed" and bench["a"].name == "a-1"


# ---- a store that was lost ------------------------------------------------------------------------------------------


def lost_store(bench: Bench, tmp_path: Path) -> SQLiteStore:
    fresh = SQLiteStore(tmp_path / "another.sqlite", clock=bench.clock)
    for job in bench.store.jobs():
        fresh.submit(job.job_id, bench.store.requests([job.job_id])[job.job_id], depends_on=job.depends_on)
    return fresh


def busy(bench: Bench) -> None:
    """Jobs in all states."""
    bench.service.outcomes = {"b-1": "died", "c-1": "user"}
    bench.submit("a", "b", "c", "d", "e")
    bench.submit("last", depends_on=["a", "d"])
    bench.service.seconds = lambda name: 400 if name == "d-1" else 100
    bench.launch(launch_s=3.5)
    bench.wait(105)
    bench.clock.sleep(20)
    bench.launch()


def test_adopting_what_the_service_runs(bench: Bench, tmp_path: Path) -> None:
    busy(bench)
    assert bench["b"].name == "b-2" and bench["d"].live
    fresh = lost_store(bench, tmp_path)
    changes = adopt(fresh, bench.service, clock=bench.clock)
    assert {change.name: change.status for change in changes} == {
        "a-1": "Completed", "b-2": "InProgress", "c-1": "Failed", "d-1": "InProgress"
    }  # fmt: skip
    assert [entry.get("cause") for entry in fresh.get("b").attempts] == ["died", None]
    assert adopt(fresh, bench.service, clock=bench.clock) == []
    drive(fresh, bench.service, clock=bench.clock)
    assert [job.status for job in fresh.jobs()] == ["Completed", "Completed", "Failed"] + ["Completed"] * 3
    assert not bench.service.twice


def test_without_adopting_nothing_runs_twice_either(bench: Bench, tmp_path: Path) -> None:
    busy(bench)
    fresh = lost_store(bench, tmp_path)
    drive(fresh, bench.service, clock=bench.clock)
    assert [job.status for job in fresh.jobs()] == ["Completed", "Completed", "Failed"] + ["Completed"] * 3
    assert sorted(bench.service.jobs) == ["a-1", "b-1", "b-2", "c-1", "d-1", "e-1", "last-1"]
    assert not bench.service.twice


@pytest.mark.parametrize("requests", [True, False])
def test_export_and_import(bench: Bench, tmp_path: Path, *, requests: bool) -> None:
    busy(bench)
    data = json.loads(json.dumps(export_jobs(bench.store, requests=requests)))
    fresh = SQLiteStore(tmp_path / "another.sqlite", clock=bench.clock)
    if not requests:
        with pytest.raises(JobError, match="exported without its request"):
            import_jobs(fresh, data)
        fresh = lost_store(bench, tmp_path)
    assert import_jobs(fresh, data) == (6 if requests else 4)
    assert fresh.jobs() == bench.store.jobs()
    assert import_jobs(fresh, data) == 0
    drive(fresh, bench.service, clock=bench.clock)
    assert fresh.counts()["Completed"] == 5 and not bench.service.twice


def test_an_old_snapshot_catches_up(bench: Bench, tmp_path: Path) -> None:
    bench.service.outcomes = {"a-1": "died", "a-2": "died"}
    bench.submit("a")
    bench.launch()
    data = export_jobs(bench.store)
    while bench["a"].attempt < 3:
        bench.wait(20)
        bench.launch()
    fresh = SQLiteStore(tmp_path / "another.sqlite", clock=bench.clock)
    import_jobs(fresh, data)
    drive(fresh, bench.service, clock=bench.clock)
    assert fresh.get("a").status == "Completed" and fresh.get("a").name == "a-3"
    assert not bench.service.twice


def test_data_of_another_format(bench: Bench) -> None:
    with pytest.raises(JobError, match="exported in format 9; this version reads 1"):
        import_jobs(bench.store, {"format": 9, "jobs": []})


def test_owners_take_turns(bench: Bench) -> None:
    bench.submit(*(f"ana-{i}" for i in range(100)), owner="ana")
    bench.submit("ben-0", "ben-1", owner="ben")
    bench.submit("cleo-0", owner="cleo")
    first = bench.launch(launch_s=6).launched
    assert first == ("ana-0-1", "ben-0-1", "cleo-0-1", "ana-1-1", "ben-1-1", "ana-2-1", "ana-3-1")


def test_a_ceiling_of_an_instance_type(bench: Bench) -> None:
    bench.submit("a", "b", "c")
    bench.submit("d", request=request_of("ml.m5.large"))
    bench.submit("e", request=request_of(instances=3))
    report = bench.launch(launch_s=30, ceilings={"ml.m5.xlarge": 2})
    assert report.launched == ("a-1", "b-1", "d-1") and report.waiting == {"max_instances": 2}
    bench.wait(110)
    assert bench.launch(launch_s=30, ceilings={"ml.m5.xlarge": 2}).launched == ("c-1",)
    assert bench["e"].reason == "It needs 3 instances at once; ceilings allows 2."


TRAINING = {
    "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
    "ResourceConfig": {"InstanceType": "ml.p3.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 50},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
}


def test_training_jobs_go_the_same_way(bench: Bench) -> None:
    bench.service.outcomes = {"b-1": "user", "c-1": "capacity"}
    for job_id in "abc":
        bench.submit(job_id, request=TRAINING)
    bench.submit("d", depends_on=["a"])
    assert bench["a"].kind == "training" and (bench["a"].instance_type, bench["a"].instances) == ("ml.p3.2xlarge", 2)
    assert bench.finish() == {"New": 0, "Launched": 0, "InProgress": 0, "Completed": 3, "Failed": 1, "Stopped": 0}
    assert bench["b"].reason == "ValueError: no such column" and bench["c"].attempt == 2
    assert bench.service.calls["CreateTrainingJob"] == 4 and bench.service.calls["CreateProcessingJob"] == 1
    bench.submit("e", request=TRAINING)
    bench.launch()
    bench.wait(20)
    stop(bench.store, bench.service, ["e"], clock=bench.clock)
    assert bench.finish()["Stopped"] == 1 and bench.service.calls["StopTrainingJob"] == 1
    with pytest.raises(JobError, match="The request of job f has a TrainingJobName"):
        bench.submit("f", request=TRAINING | {"TrainingJobName": "f-1"})


def test_an_engine_without_training_jobs_refuses_them(bench: Bench) -> None:
    class Processing:
        def __getattr__(self, name: str) -> Any:
            if "training" in name:
                raise AttributeError(name)
            return getattr(bench.service, name)

    bench.submit("a", request=TRAINING)
    bench.submit("b")
    drive(bench.store, Processing(), clock=bench.clock)
    assert bench.status() == "a:Failed b:Completed" and "has no training jobs" in bench["a"].reason


# ---- events --------------------------------------------------------------------------------------------------------


def test_events_tell_what_the_list_would(bench: Bench) -> None:
    bench.service.outcomes = {"a-1": "capacity", "b-1": "user"}
    bench.service.faults = Faults(hidden_reason=1.0)
    bench.submit("a", "b", "c", notify=["arn:aws:sns:eu-west-1:123456789012:jobs"])
    bench.launch(launch_s=10)
    bench.clock.sleep(100)
    events = [bench.service.event(name) for name in ("c-1", "b-1", "a-1", "a-1")]
    late = bench.service.event("c-1", ago_s=100)
    assert late["ProcessingJobStatus"] == "InProgress"
    without_reason = {key: value for key, value in events[2].items() if key != "FailureReason"}
    looks = bench.service.calls["ListProcessingJobs"]
    changes = bench.observe(*events[:2], without_reason, events[3], late)
    assert {change.name: change.status for change in changes} == {"a-1": "New", "b-1": "Failed", "c-1": "Completed"}
    assert (bench["a"].cause, bench["b"].cause, bench["b"].reason) == ("capacity", "user", "ValueError: no such column")
    assert bench.service.calls["ListProcessingJobs"] == looks and bench.service.calls["DescribeProcessingJob"] == 1
    assert len(changes) == 3, "an event that came twice tells of one change"
    assert bench.observe(*events, late) == [] and bench.finish()["Completed"] == 2
    assert bench.observe(*events, {"ProcessingJobName": "another-1", "ProcessingJobStatus": "Failed"}) == []


def test_an_end_makes_a_notice_due_once(bench: Bench) -> None:
    bench.service.outcomes = {"a-1": "user"}
    bench.submit("a", notify=["arn:aws:sns:eu-west-1:123456789012:jobs"])
    bench.submit("b")
    assert bench.finish()["Failed"] == 1
    (due,) = bench.store.notices(bench.clock.time())
    assert due.job_id == "a" and due.notice_at == due.changed_at
    bench.store.update(replace(due, notice_at=SENT))
    assert bench.store.notices(bench.clock.time() + 1e6) == []
    again(bench.store, "a", clock=bench.clock)
    assert bench.finish()["Completed"] == 2
    assert [job.job_id for job in bench.store.notices(bench.clock.time())] == ["a"]


# ---- policies ------------------------------------------------------------------------------------------------------


def test_policies_as_data() -> None:
    assert Policy.from_dict({"poll_s": 5, "attempts": {"died": 1}}).tries("died") == 1
    assert Policy.local(poll_s=1).poll_s == 1
    cases: list[tuple[Callable[[], Policy], str]] = [
        (lambda: Policy.from_dict({"pol_s": 5}), "A policy has no 'pol_s'"),
        (lambda: Policy(attempts={"bored": 1}), "There is no cause 'bored'"),
        (lambda: Policy(poll_s=0), "poll_s must be more than 0"),
    ]
    for make, message in cases:
        with pytest.raises(JobError, match=message):
            make()


# ---- the house -----------------------------------------------------------------------------------------------------


def test_the_queue_needs_the_standard_library_and_botocore_only(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import shardkit.jobs; print(*(set(sys.modules) - before), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    allowed = {"shardkit", "boto3", "botocore", "dateutil", "jmespath", "urllib3", "six", "s3transfer", "certifi"}
    assert not {name for name in loaded - allowed if name not in sys.stdlib_module_names}
    ours = {name for name in done.stdout.split() if name.startswith("shardkit.")}
    assert {name for name in ours if not name.startswith("shardkit.jobs")} <= {
        "shardkit._lazy",
        "shardkit._version",
        "shardkit.masking",
        "shardkit.plugins",
        "shardkit.printable",
        "shardkit.units",
        "shardkit.user_state",
    }
