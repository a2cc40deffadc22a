"""The job queue at scale: how many requests a round makes of DynamoDB, and ten thousand jobs whose Lambdas die."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import threading
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from simulated_service import Faults, SimulatedService
from test_queue_faults import Dead, Mortal, check, least_calls

from shardkit.jobs import Policy, SimulatedClock, SQLiteStore, Submission, launch, monitor, observe
from shardkit.jobs.dynamodb import DynamoDBStore
from shardkit.jobs.launching import BLOCK
from shardkit.jobs.open import create_table
from shardkit.jobs.transitions import claim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shardkit.jobs import Report
    from shardkit.jobs.store import Store

pytestmark = pytest.mark.slow

JOBS = int(os.environ.get("SCALE_JOBS", "300"))  # of the simulation
REQUEST = {"ProcessingResources": {"ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge"}}}
TRAINING = {"AlgorithmSpecification": {"TrainingInputMode": "File"}, "ResourceConfig": {"InstanceType": "ml.m5.xlarge"}}
LAMBDA = Policy(launch_s=50)
PAGE_BYTES = 2**20  # of an index that a Query reads
OWNERS = tuple(f"{name} of {'many ' * 440}" for name in ("ana", "ben"))  # four hundred jobs fill a page


@pytest.fixture
def aws(ministack_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator that clients find by their environment."""
    for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", ministack_url if name == "ENDPOINT_URL" else "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_REGION", raising=False)


class Bench:
    """A table of jobs whose calls are counted, and a service."""

    def __init__(
        self, table: str, jobs: int, *, seconds: float | Callable[[str], float] = 1e6, creates_per_s: float = 1.0
    ) -> None:
        self.clock = SimulatedClock()
        self.service = SimulatedService(self.clock, seconds=seconds, creates_per_s=creates_per_s)
        self.calls: Counter[str] = Counter()
        session = boto3.Session()
        session.events.register("before-call.dynamodb", lambda model, **_: self.calls.update([model.name]))
        create_table(table)
        self.store = DynamoDBStore(table, session=session, clock=self.clock)
        self.jobs = self.store.submit_many(
            Submission(f"talent-20261121-{at:05d}", REQUEST, owner=OWNERS[at % len(OWNERS)]) for at in range(jobs)
        )

    def made(self, ask: Callable[[], Report]) -> tuple[Report, int, int]:
        """A report, how many calls it took, and how many bytes more were in use at the peak."""
        self.calls.clear()
        tracemalloc.start()
        try:
            return ask(), self.calls.total(), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def launched(self) -> None:
        """Have the service run all jobs, as if launchers had been there, five a second."""
        for job in self.store.update_many(claim(job, self.clock.time(), 60) for job in self.jobs):
            assert job is not None
            self.clock.sleep(0.2)
            self.service.create_processing_job(ProcessingJobName=job.name, **REQUEST)

    def launch(self, policy: Policy = LAMBDA) -> Report:
        return launch(self.store, self.service, policy=policy, clock=self.clock, rng=random.Random(1))

    def monitor(self) -> Report:
        return monitor(self.store, self.service, policy=LAMBDA, clock=self.clock)


def line_bytes(bench: Bench) -> int:
    """What a New job takes in the index of lanes, as DynamoDB counts: names and values."""
    page = bench.store._table.client().query(
        TableName=bench.store._table.name,
        IndexName="lane",
        KeyConditionExpression="lane = :lane",
        ExpressionAttributeValues={":lane": {"S": "New"}},
        Limit=1,
    )
    (line,) = page["Items"]
    return sum(len(name) + sum(map(len, held.values())) for name, held in line.items())


def test_a_launch_round_over_two_pages_of_jobs(aws: None) -> None:
    """The calls of a Lambda's round, 50 s at one create a second: within 1.2 of the least possible.

    Whoever launches in turn and never twice has to read: every page of the New lane (1 MB each), one page of the live
    jobs, whether anybody waits for others, what launchers and what monitors have learned. And for every block of jobs:
    see that they are still there, take the moments of the calls, claim them, read their requests, write what became of
    them. Without blocks it would be a read and two writes for every job.
    """
    bench = Bench("many", 800)
    line = line_bytes(bench)
    report, calls, peak_bytes = bench.made(bench.launch)
    launched = len(report.launched)
    pages = math.ceil(800 * line / PAGE_BYTES)
    least = pages + 1 + 1 + 1 + 1 + 5 * math.ceil(launched / BLOCK)
    assert (
        launched == 51
        and pages == 2
        and report.new == 749
        and not bench.service.answers["CreateProcessingJob", "too fast"]
    )
    assert Counter(bench.store.get(name[:-2]).owner for name in report.launched).most_common()[-1][1] >= 25
    assert calls <= 1.2 * least, bench.calls
    assert calls < (1 + 2) * launched / 3, "not a third of what single writes take"
    page = Bench("page", PAGE_BYTES // line)
    assert peak_bytes < 1.3 * page.made(page.launch)[2]


def test_a_monitor_round_over_hundreds_of_live_jobs(aws: None) -> None:
    """The calls of a look: within 1.2 of the least possible, whether all jobs have changed, some or none.

    Whoever looks in turn has to read one page of the live jobs and what monitors have learned, to take the turn, to see
    whether anybody waits for others, and to leave word of what was seen. For each page of the service's list: read the
    jobs, and write them in one transaction.
    """
    bench = Bench("live", 280, seconds=lambda name: 200 if name < "talent-20261121-00090" else 400, creates_per_s=5.0)
    bench.launched()
    bench.clock.sleep(20)
    peaks: dict[int, int] = {}
    # A page may have a few more jobs than have changed, for a look begins at the time of the latest change before it.
    for wait_s, changed, pages in ((60, 280, 3), (60, 0, 0), (120, 90, 1), (180, 190, 2)):
        bench.clock.sleep(wait_s)
        report, calls, peaks[pages] = bench.made(bench.monitor)
        least = 1 + 1 + 1 + 1 + 1 + 2 * pages
        assert len(report.changed) == changed and report.looked
        assert calls <= 1.2 * least, bench.calls
    assert bench.store.counts()["Completed"] == 280
    assert max(peaks.values()) < 1.15 * peaks[1], "several pages of changes take more memory than one"


# ---- ten thousand jobs, and Lambdas that die -----------------------------------------------------------------------------


class Stage:
    """Actors that take turns at random in simulated time; each step may be the last of an invocation.

    One acts at a time, of those that need not wait any more. Only when all of them wait, time moves on.
    """

    def __init__(self, clock: SimulatedClock, dice: random.Random, death: float) -> None:
        self.clock, self.dice, self.death, self.deaths = clock, dice, death, 0
        self._wake: dict[int, float] = {}
        self._turns: dict[int, threading.Semaphore] = {}
        self._errors: list[BaseException] = []

    def perform(self, *actors: Callable[[Life], bool], every_s: float) -> None:
        """Let each act again and again, from one full minute or the like to the next, until it says that all is done."""
        threads = []
        for name, actor in enumerate(actors):
            self._wake[name] = self.clock.time() + name
            self._turns[name] = threading.Semaphore(0)
            threads.append(threading.Thread(target=self._run, args=(name, actor, every_s), daemon=True))
            threads[-1].start()
        self._hand_over()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _run(self, name: int, actor: Callable[[Life], bool], every_s: float) -> None:
        self._turns[name].acquire()
        try:
            done = False
            while not done and not self._errors:
                begun = self.clock.time()
                try:
                    done = actor(Life(self, name))
                except Dead:
                    self.deaths += 1
                self.wait(name, max(begun + every_s - self.clock.time(), 1.0))
        except BaseException as error:
            self._errors.append(error)
        finally:
            del self._wake[name]
            self._hand_over()

    def _hand_over(self) -> None:
        if self._wake:
            self.clock.now = max(self.clock.now, min(self._wake.values()))
            awake = [name for name, at in self._wake.items() if at <= self.clock.now]
            self._turns[self.dice.choice(awake)].release()

    def wait(self, name: int, seconds: float) -> None:
        self._wake[name] = self.clock.now + seconds
        self._hand_over()
        self._turns[name].acquire()


class Life:
    """One invocation; it is its clock, too."""

    def __init__(self, stage: Stage, name: int) -> None:
        self._stage, self._name, self._dead = stage, name, False

    def step(self, seconds: float = 0.0) -> None:
        if self._dead or self._stage.dice.random() < self._stage.death:
            self._dead = True  # and stays dead: nothing is cleaned up
            raise Dead
        self._stage.wait(self._name, seconds)

    def time(self) -> float:
        return self._stage.clock.time()

    def sleep(self, seconds: float) -> None:
        self.step(max(seconds, 0.0))


class Lagging:
    """A store whose reads of many jobs may be as they were some seconds ago, like an index of DynamoDB."""

    def __init__(self, inner: Any, clock: SimulatedClock, dice: random.Random) -> None:
        self._inner, self._clock, self._dice = inner, clock, dice
        self._told: dict[str, tuple[float, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in {"flight", "waiting", "unblock"}:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            told_at, answer = self._told.get(name, (0.0, None))
            if self._clock.time() - told_at < 2 and self._dice.random() < 0.4:
                return answer
            answer = method(*args, **kwargs)
            self._told[name] = (self._clock.time(), answer)
            return answer

        return call


class Post:
    """State-change events: late, twice, out of order, and some never."""

    def __init__(self, service: SimulatedService, dice: random.Random) -> None:
        self._service, self._dice, self._known = service, dice, 0
        self._due: list[tuple[float, float, str]] = []  # when it arrives, when it happened, and the job

    def due(self) -> list[dict[str, Any]]:
        """The events that arrive now."""
        for attempt in itertools.islice(self._service.jobs.values(), self._known, None):
            for at in (attempt.created_at, attempt.ends_at):
                for _ in range(self._dice.choice([0, 1, 1, 1, 2])):
                    late_s = self._dice.choice([1, 5, 30, 2000]) * self._dice.random()
                    heapq.heappush(self._due, (at + late_s, at, attempt.name))
        self._known = len(self._service.jobs)
        now, told = self._service.clock.time(), []
        while self._due and self._due[0][0] <= now:
            _, at, name = heapq.heappop(self._due)
            told.append(self._service.event(name, ago_s=max(now - at - 0.001, 0.0)))
        return told


BAD_DAY = Faults(
    throttled=0.2, lost=0.1, capacity=0.05, internal=0.02, stopped=0.01, timeout=0.01, died=0.01, hidden_reason=0.2
)


def owner_of(number: int, jobs: int) -> str:
    """Nine tenths are one owner's, and were submitted first; the last ten are another's."""
    return "big" if number < 0.9 * jobs else "small" if number >= jobs - 10 else "middle"


def simulated(
    clock: SimulatedClock, jobs: int, *, quota: int, seconds: tuple[float, float]
) -> tuple[SimulatedService, list[Submission]]:
    """A service with a quota, on which jobs take between so many seconds, and jobs of three owners for it."""
    service = SimulatedService(
        clock, seed=1, quota=quota, faults=BAD_DAY, seconds=lambda name: random.Random(name).uniform(*seconds)
    )
    submissions = [
        Submission(f"run-{at:05d}", TRAINING if at % 7 == 0 else REQUEST, owner=owner_of(at, jobs))
        for at in range(jobs)
    ]
    return service, submissions


def simulate(store: Store, mortal: Callable[[Life], Any], service: SimulatedService, stage: Stage) -> None:
    """Let two launchers, two monitors and the receiver of events bring all jobs to their end."""
    post = Post(service, stage.dice)

    def engine(life: Life) -> Any:
        return Mortal(service, lambda: life.step(0.05))

    def ended() -> bool:
        counts = store.counts()
        return not counts["New"] + counts["Launched"] + counts["InProgress"]

    def launcher(life: Life) -> bool:
        launch(mortal(life), engine(life), policy=LAMBDA, clock=life, rng=stage.dice)
        return ended()

    def looker(life: Life) -> bool:
        for _ in range(3):
            monitor(mortal(life), engine(life), policy=LAMBDA, clock=life)
            life.sleep(20)
        return ended()

    def listener(life: Life) -> bool:
        for _ in range(10):
            observe(mortal(life), engine(life), post.due(), policy=LAMBDA, clock=life)
            life.sleep(5)
        return ended()

    stage.perform(launcher, launcher, looker, looker, listener, every_s=60)
    check(store, service)
    assert stage.deaths > len(store.jobs()) / 100
    assert not service.answers["CreateProcessingJob", "too fast"]


def test_lambdas_that_die_bring_all_jobs_to_their_end(tmp_path: Path) -> None:
    """Every function that is started each minute may die at any step; reads of many jobs lag behind.

    All jobs end, none runs twice at once, none is forgotten; an owner with ten jobs does not wait for one with thousands.
    """
    clock, dice = SimulatedClock(), random.Random(1)
    service, submissions = simulated(clock, JOBS, quota=max(JOBS // 10, 20), seconds=(60, 300))
    store = SQLiteStore(tmp_path / "jobs.sqlite", clock=clock)
    store.submit_many(submissions)
    lagging, begun = Lagging(store, clock, dice), clock.time()
    simulate(store, lambda life: Mortal(lagging, life.step), service, Stage(clock, dice, death=0.002))
    jobs = store.jobs()
    last = {owner: max(job.changed_at for job in jobs if job.owner == owner) - begun for owner in ("small", "big")}
    assert last["small"] < 0.3 * last["big"], last
    assert service.calls.total() <= 1.6 * least_calls(service, LAMBDA), service.answers


def test_lambdas_that_die_within_what_the_store_does(aws: None) -> None:
    """The same with DynamoDB, where each step is a call of it. A call takes as long as all of a round does with SQLite.

    So there are few jobs, and they are short; whose turn it is and how many calls of the service there are do not
    depend on the store.
    """
    clock, lives = SimulatedClock(), threading.local()
    service, submissions = simulated(clock, 40, quota=15, seconds=(20, 80))
    session = boto3.Session()
    for moment in ("before-call.dynamodb", "after-call.dynamodb"):
        session.events.register(moment, lambda **_: lives.now.step())
    create_table("lives")
    store = DynamoDBStore("lives", clock=clock)
    store.submit_many(submissions)
    shared = DynamoDBStore("lives", session=session, clock=clock)

    def mortal(life: Life) -> DynamoDBStore:
        lives.now = life
        return shared

    simulate(store, mortal, service, Stage(clock, random.Random(1), death=0.008))
