"""What a run may cost: its jobs are launched until it is spent, by whichever launcher, and those of others go on."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from simulated_service import Faults, SimulatedService

from shardkit.jobs import Policy, SimulatedClock, SQLiteStore, Submission, again, drive, launch, monitor
from shardkit.jobs.clock import iso
from shardkit.jobs.job import Job
from shardkit.jobs.spending import COST, FORGET_S, CostLimit, cost_limit_of, limit_cost

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = {"ProcessingResources": {"ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge"}}}
PRICES = {"ml.m5.xlarge": 3.6}  # a dollar for a thousand seconds


class World:
    """A queue in a file with a service: 20 jobs of ten minutes and a merge, of which five may run at once."""

    def __init__(self, path: Path, *, faults: Faults = Faults()) -> None:  # noqa: B008  it is frozen
        self.clock = SimulatedClock()
        self.service = SimulatedService(self.clock, quota=5, seconds=600, faults=faults)
        self.path = path / "jobs.sqlite"
        self.store = SQLiteStore(self.path, clock=self.clock)
        self.submit("costly")

    def submit(self, run: str) -> None:
        ids = [f"{run}-{number:02d}" for number in range(20)]
        self.store.submit_many([Submission(each, REQUEST, run=run) for each in ids])
        self.store.submit_many([Submission(f"{run}-merge", REQUEST, depends_on=ids, run=run)])

    def limit(self, usd: float, run: str = "costly") -> None:
        limit_cost(self.store, run, CostLimit(usd, PRICES), self.clock.time())

    def drive(self, **options: Any) -> None:
        drive(self.store, self.service, policy=Policy(), clock=self.clock, rng=random.Random(1), **options)

    def spent(self, run: str = "costly") -> float:
        return CostLimit(1, PRICES).spent(self.store.jobs(run=run), self.clock.time())


def test_launches_end_when_it_is_spent_and_what_runs_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.limit(6.0)
    world.drive()
    counts = world.store.counts(run="costly")
    assert 10 <= counts["Completed"] <= 15 and counts["Completed"] + counts["Failed"] == 21
    assert 6.0 < world.spent() < 6.0 + 5 * 0.65
    failed = world.store.jobs(status="Failed")
    assert {job.cause for job in failed} == {COST} and not any(job.attempts for job in failed)
    assert "may cost $6.00" in failed[0].reason
    assert not [job for job in world.store.jobs() if job.live]


def test_other_runs_go_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.submit("other")
    world.limit(2.0)
    world.drive()
    assert world.store.counts(run="other")["Completed"] == 21
    assert world.store.counts(run="costly")["Failed"] > 10


@pytest.mark.whole
def test_it_outlives_its_launchers(tmp_path: Path) -> None:
    """Every round is another process, as those of a Lambda are."""
    world = World(tmp_path)
    world.limit(6.0)
    while world.store.jobs(status=("New", "Launched", "InProgress"), limit=1):
        world.store.close()
        world.store = SQLiteStore(world.path, clock=world.clock)
        monitor(world.store, world.service, clock=world.clock)
        launch(world.store, world.service, clock=world.clock, rng=random.Random(1))
        world.clock.sleep(20)
    assert world.store.counts()["Failed"] >= 5 and world.spent() < 6.0 + 5 * 0.65


def test_with_a_higher_limit_the_rest_is_launched(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.limit(3.0)
    world.drive()
    before = world.store.counts()["Completed"]
    world.limit(100.0)
    for job in world.store.jobs(status="Failed"):
        again(world.store, job.job_id, clock=world.clock)
    world.drive()
    assert world.store.counts()["Completed"] == 21 > before
    limit_cost(world.store, "costly", None, world.clock.time())
    assert cost_limit_of(world.store, "costly") is None


def test_a_job_that_failed_is_not_tried_again_then(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Faults(died=0.5))
    world.limit(3.0)
    world.drive()
    tried = [job for job in world.store.jobs(status="Failed") if job.attempts]
    assert tried and {job.cause for job in tried} <= {COST, "died"} and COST in {job.cause for job in tried}


def test_a_limit_is_forgotten_when_all_jobs_have_ended_long_ago(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.limit(1e6)
    world.drive()
    assert world.clock.time() - 1_800_000_000 < FORGET_S or cost_limit_of(world.store, "costly") is None
    world.clock.sleep(FORGET_S)
    launch(world.store, world.service, clock=world.clock)
    assert cost_limit_of(world.store, "costly") is None


def test_what_counts() -> None:
    def job(*entries: dict[str, Any], status: str = "Completed", instances: int = 1) -> Job:
        return Job("a", status=status, attempts=tuple({"attempt": 1} | each for each in entries), instances=instances)

    def ran(seconds: float | None, **more: Any) -> dict[str, Any]:
        times = {"created_at": iso(1000.0)} | ({"ended_at": iso(1000.0 + seconds)} if seconds is not None else {})
        return times | {"instance_type": "ml.m5.xlarge"} | more

    limit = CostLimit(1.0, {"ml.m5.xlarge": 3.6, "ml.m5.4xlarge": 14.4})
    spent = {
        "ended": limit.spent([job(ran(100)), job(ran(50), ran(50))], 5000.0),
        "running": limit.spent([job(ran(None), status="InProgress")], 1300.0),
        "lost": limit.spent([job(ran(None), status="Failed")], 1300.0),
        "without an instance": limit.spent([job(ran(100, cause="capacity"))], 5000.0),
        "several instances": limit.spent([job(ran(100), instances=4)], 5000.0),
        "an unknown type": limit.spent([job(ran(100, instance_type="ml.new.xlarge"))], 5000.0),
        "billed otherwise": limit.spent([job(ran(100, billable_s=30.0))], 5000.0),
        "never launched": limit.spent([job(status="New")], 5000.0),
    }
    assert {name: pytest.approx(usd) for name, usd in spent.items()} == {
        "ended": 0.2,
        "running": 0.3,
        "lost": 0.0,
        "without an instance": 0.0,
        "several instances": 0.4,
        "an unknown type": 0.4,
        "never launched": 0.0,
        "billed otherwise": 0.03,
    }
