"""The job queue with faults: the service throttles, loses answers and lacks capacity, and launchers die at any step.

Whatever happens, every job ends, no job has two running attempts at once, and no attempt is forgotten.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import warm
from file_service import line_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from simulated_service import Faults, SimulatedService, client_error

from shardkit.jobs import (
    JobConflict,
    Policy,
    SimulatedClock,
    SQLiteStore,
    Submission,
    again,
    drive,
    launch,
    monitor,
    observe,
    stop,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

REQUEST = {
    "ProcessingResources": {"ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge"}},
    "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
}
TRAINING = {"AlgorithmSpecification": {"TrainingInputMode": "File"}, "ResourceConfig": {"InstanceType": "ml.m5.xlarge"}}
BAD_DAY = Faults(
    throttled=0.2, lost=0.1, capacity=0.03, internal=0.02, stopped=0.01, timeout=0.01, died=0.01, hidden_reason=0.2
)
QUOTA = 20
POLICY = Policy()


def make_service(clock: SimulatedClock, seed: int, **options: Any) -> SimulatedService:
    def seconds(name: str) -> float:
        return random.Random(f"{seed}{name}").uniform(300, 900)

    return SimulatedService(clock, seed=seed, **({"quota": QUOTA, "faults": BAD_DAY, "seconds": seconds} | options))


def submit(store: SQLiteStore, jobs: int) -> None:
    store.submit_many(Submission(f"run-{i:04d}", REQUEST) for i in range(jobs))


def check(store: SQLiteStore, service: SimulatedService) -> None:
    """Check what must be true when all jobs have ended."""
    known = {entry["name"]: entry for job in store.jobs() for entry in job.attempts}
    assert not service.twice
    assert not service.alive()
    assert set(service.jobs) == set(known), "attempts that the store knows nothing of, or that never were"
    statuses = {name: attempt.status(service.clock.time()) for name, attempt in service.jobs.items()}
    for job in store.jobs():
        assert job.status == "Completed", job
        ends = [statuses[entry["name"]] for entry in job.attempts]
        assert ends.count("Completed") == 1 and ends[-1] == "Completed"
        assert [entry["attempt"] for entry in job.attempts] == list(range(1, job.attempt + 1))


def least_calls(service: SimulatedService, policy: Policy) -> float:
    """The fewest calls that are possible, with the random numbers of this service.

    Each attempt (a job's name decides how many it needs) takes one CreateProcessingJob that gets through; one in five
    is throttled and one in twenty lost before it is carried out. While jobs run, one page of the list every ``poll_s``
    shows which have ended; no schedule of these attempts on so many instances, or at one create a second, is shorter
    than ``shortest``. Pages that fail, requests for the reason of a failure, and calls that are refused for a quota
    that nobody knew all count against the queue.
    """
    creates = len(service.jobs) / ((1 - service.faults.throttled) * (1 - service.faults.lost / 2))
    work_s = sum(attempt.over_at - attempt.created_at for attempt in service.jobs.values())
    shortest = max(work_s / service.quota, len(service.jobs) / service.creates_per_s)
    return creates + shortest / policy.poll_s


@pytest.mark.whole
def test_many_jobs_on_a_bad_day(tmp_path: Path) -> None:
    clock = SimulatedClock()
    service = make_service(clock, 1)
    store = SQLiteStore(tmp_path / "jobs.sqlite", clock=clock)
    submit(store, 200)
    drive(store, service, clock=clock, rng=random.Random(1))
    check(store, service)
    assert sum(service.calls.values()) <= 1.2 * least_calls(service, POLICY), service.answers
    assert not service.answers["CreateProcessingJob", "too fast"]


# ---- launchers that die --------------------------------------------------------------------------------------------


class Dead(BaseException):
    """A launcher has died, as by SIGKILL or a Lambda's time-out."""


class Mortal:
    """Wraps what a launcher uses: before or after each call the launcher may die, or another one go on."""

    def __init__(self, inner: Any, step: Callable[[], None]) -> None:
        self._inner, self._step = inner, step

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._step()
            answer = method(*args, **kwargs)
            self._step()
            return answer

        return call


class Stage:
    """Threads that take turns at random, but reproducibly; each step may be the last of its thread."""

    def __init__(self, rng: random.Random, death: float) -> None:
        self.rng, self.death, self.deaths = rng, death, 0
        self._names: list[int] = []
        self._turns: dict[int, threading.Lock] = {}  # each holds its thread up until it is that one's turn
        self.errors: list[BaseException] = []

    def perform(self, actor: Callable[[Callable[[], None]], None], actors: int) -> None:
        self._names = list(range(actors))
        threads = [threading.Thread(target=self._run, args=(actor, name), daemon=True) for name in self._names]
        for name in self._names:
            self._turns[name] = threading.Lock()
            self._turns[name].acquire()
        for thread in threads:
            thread.start()
        self._turns[0].release()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]

    def _run(self, actor: Callable[[Callable[[], None]], None], name: int) -> None:
        self._await(name)
        try:
            while True:
                life = self.life(name)
                try:
                    actor(life)
                    break
                except Dead:
                    self.deaths += 1
        except BaseException as error:
            self.errors.append(error)
        finally:
            self._names.remove(name)
            if self._names:
                self._turns[self.rng.choice(self._names)].release()

    def life(self, name: int) -> Callable[[], None]:
        dead = False

        def step() -> None:
            nonlocal dead
            if dead or self.rng.random() < self.death:
                dead = True  # and stays dead: nothing is cleaned up
                raise Dead
            if len(self._names) > 1:
                chosen = self.rng.choice(self._names)
                if chosen != name:
                    self._turns[chosen].release()
                    self._await(name)

        return step

    def _await(self, name: int) -> None:
        assert self._turns[name].acquire(timeout=120)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("seed", "jobs", "quota", "actors", "death"),
    [
        (1, 40, QUOTA, 1, 0.02),
        (2, 40, QUOTA, 2, 0.0),
        (4, 20, QUOTA, 3, 0.05),
        (6, 150, 8, 2, 0.001),  # which takes so long that calls can be compared with the fewest
    ],
)
def test_launchers_that_die_and_take_turns(
    tmp_path: Path, *, seed: int, jobs: int, quota: int, actors: int, death: float
) -> None:
    clock = SimulatedClock()
    service = make_service(clock, seed, quota=quota)
    stores = [SQLiteStore(tmp_path / "jobs.sqlite", clock=clock) for _ in range(actors)]
    submit(stores[0], jobs)
    rng = random.Random(seed)
    stage = Stage(rng, death)

    def launcher(step: Callable[[], None]) -> None:
        store: Any = Mortal(rng.choice(stores), step)
        drive(store, Mortal(service, step), clock=Mortal(clock, step), rng=rng)

    stage.perform(launcher, actors)
    assert bool(stage.deaths) == bool(death)
    check(stores[0], service)
    if jobs >= 150:
        assert sum(service.calls.values()) <= 1.2 * least_calls(service, POLICY), service.answers


# ---- real processes --------------------------------------------------------------------------------------------------


def start(folder: Path, *, lost: float = 0.0) -> warm.Forked | subprocess.Popen[Any]:
    policy = json.dumps({"lease_s": 1.0, "max_instances": 20})
    program = Path(__file__).parents[1] / "file_service.py"
    with (folder / "said").open("a") as said:
        words = [program, folder / "jobs.sqlite", folder, lost, policy]
        return warm.start(words, env=os.environ, stdout=said, stderr=said)


def spans(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The times in which the attempts of each job ran."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in folder.glob("*.job"):
        line = line_of(path)
        times = (line["CreationTime"].timestamp(), line["ProcessingEndTime"].timestamp())
        found.setdefault(path.stem.rpartition("-")[0], []).append(times)
    return {job_id: sorted(times) for job_id, times in found.items()}


def check_folder(folder: Path, jobs: int) -> list[str]:
    """Check that no job is forgotten and none runs twice at once; returns the calls that were made."""
    with SQLiteStore(folder / "jobs.sqlite") as store:
        assert store.counts()["Completed"] == jobs
        known = {entry["name"] for job in store.jobs() for entry in job.attempts}
    assert known == {path.stem for path in folder.glob("*.job")}
    for times in spans(folder).values():
        assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(times))
    return (folder / "calls").read_text().split()


@pytest.mark.whole
def test_processes_that_launch_at_the_same_time_call_once_for_every_attempt(tmp_path: Path) -> None:
    submit(SQLiteStore(tmp_path / "jobs.sqlite"), 60)
    launchers = [start(tmp_path) for _ in range(3)]
    assert [launcher.wait(60) for launcher in launchers] == [0, 0, 0]
    calls = check_folder(tmp_path, 60)
    assert len(calls) == len(set(calls))


@pytest.mark.whole
def test_processes_killed_at_random_moments(tmp_path: Path) -> None:
    dice = random.Random(7)
    submit(SQLiteStore(tmp_path / "jobs.sqlite"), 100)
    launchers = [start(tmp_path, lost=0.1) for _ in range(2)]
    kills, until = 0, time.monotonic() + 120
    while any(launcher.poll() != 0 for launcher in launchers):
        assert time.monotonic() < until
        time.sleep(dice.uniform(0.1, 0.6))
        at = dice.randrange(len(launchers))
        if launchers[at].poll() is None and kills < 12:
            os.kill(launchers[at].pid, signal.SIGKILL)
            launchers[at].wait()
            kills += 1
        if launchers[at].poll() not in {0, None}:
            launchers[at] = start(tmp_path, lost=0.1)
    assert kills > 3, (tmp_path / "said").read_text()
    check_folder(tmp_path, 100)


# ---- many jobs ---------------------------------------------------------------------------------------------------------


class Stopwatch:
    """An engine that measures its own time."""

    def __init__(self, inner: SimulatedService) -> None:
        self._inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(**kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(**kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return call


@pytest.mark.whole
@pytest.mark.alone
def test_a_round_over_ten_thousand_jobs_takes_less_than_a_second(tmp_path: Path) -> None:
    clock = SimulatedClock()
    service = SimulatedService(clock, creates_per_s=200, seconds=lambda name: random.Random(name).uniform(100, 200))
    engine: Any = Stopwatch(service)
    store = SQLiteStore(tmp_path / "jobs.sqlite", clock=clock)
    request = REQUEST | {"Environment": {f"KEY_{i}": "x" * 800 for i in range(5)}}
    store.submit_many(Submission(f"run-{i:05d}", request) for i in range(9_999))
    store.submit("run-last", request, depends_on=[f"run-{i:05d}" for i in range(9_999)])

    def seconds_of_a_round(creates: int) -> float:
        policy = Policy(creates_per_s=100, launch_s=20, max_launches=creates)
        begun, before = time.perf_counter(), engine.seconds
        monitor(store, engine, policy=policy, clock=clock, force=True)
        launch(store, engine, policy=policy, clock=clock)
        return time.perf_counter() - begun - (engine.seconds - before)

    seconds = [seconds_of_a_round(20) for _ in range(3)]  # nearly all are New
    launch(store, engine, policy=Policy(creates_per_s=100, launch_s=20, max_launches=1000), clock=clock)
    for _ in range(12):
        seconds.append(seconds_of_a_round(20))  # a thousand are in flight, and end in the end
        clock.sleep(20)
    assert store.counts()["Completed"] > 1000
    assert max(seconds) < 1, seconds


# ---- any order of anything -----------------------------------------------------------------------------------------------


class Queue(RuleBasedStateMachine):
    """Submit, launch, look, stop, try again, wait, and let calls fail, in any order."""

    ids = Bundle("ids")

    @initialize(seed=st.integers(0, 1000), quota=st.integers(1, 5))
    def begin(self, seed: int, quota: int) -> None:
        self.clock = SimulatedClock()
        faults = Faults(throttled=0.1, lost=0.2, capacity=0.1, died=0.2, stopped=0.1, user=0.1, hidden_reason=0.3)
        self.service = make_service(self.clock, seed, quota=quota, faults=faults)
        self.store = SQLiteStore(":memory:", clock=self.clock)
        self.rng = random.Random(seed)

    @rule(target=ids, needs=st.lists(ids, max_size=2), training=st.booleans())
    def submit(self, needs: list[str], *, training: bool) -> str:
        job_id = f"job-{len(self.store.jobs())}"
        self.store.submit(job_id, TRAINING if training else REQUEST, depends_on=needs)
        return job_id

    @rule(launch_s=st.sampled_from([0, 15]))
    def launch(self, launch_s: int) -> None:
        launch(self.store, self.service, policy=Policy(launch_s=launch_s), clock=self.clock, rng=self.rng)

    @rule(place=st.integers(0, 50), ago_s=st.sampled_from([0, 0, 30, 2000]))
    def event(self, place: int, ago_s: int) -> None:
        """An event, perhaps late, of a job and of one that is not the store's."""
        names = [name for name, job in self.service.jobs.items() if job.created_at <= self.clock.time() - ago_s]
        if names:
            told = self.service.event(names[place % len(names)], ago_s=ago_s)
            field = "TrainingJobName" if "TrainingJobName" in told else "ProcessingJobName"
            observe(self.store, self.service, [told, told | {field: "another-1"}, told], clock=self.clock)

    @rule(force=st.booleans())
    def look(self, *, force: bool) -> None:
        monitor(self.store, self.service, clock=self.clock, force=force)

    @rule(seconds=st.sampled_from([1, 20, 120, 1000]))
    def wait(self, seconds: int) -> None:
        self.clock.sleep(seconds)

    @rule(job_id=ids)
    def stop(self, job_id: str) -> None:
        stop(self.store, self.service, [job_id], clock=self.clock)

    @rule(job_id=ids)
    def again(self, job_id: str) -> None:
        job = self.store.get(job_id)
        if job.status in {"Failed", "Stopped"}:
            assert again(self.store, job_id, clock=self.clock).status == "New"
        else:
            with pytest.raises(JobConflict):
                again(self.store, job_id, clock=self.clock)

    @rule(
        code=st.sampled_from(["ThrottlingException", "ResourceLimitExceeded", "ValidationException", "InternalFailure"])
    )
    def refuse(self, code: str) -> None:
        self.service.fail_next("create_processing_job", client_error(code, "no", "CreateProcessingJob"))

    @invariant()
    def never_two_at_once(self) -> None:
        if hasattr(self, "service"):
            assert not self.service.twice

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        drive(self.store, self.service, clock=self.clock, rng=self.rng)
        jobs = self.store.jobs()
        known = {entry["name"] for job in jobs for entry in job.attempts}
        assert set(self.service.jobs) <= known
        assert not self.service.twice
        ended = {name: attempt.status(self.clock.time()) for name, attempt in self.service.jobs.items()}
        for job in jobs:
            assert job.ended
            assert (job.status == "Completed") == (ended.get(job.name) == "Completed")
            assert job.status != "Completed" or all(
                self.store.get(needs).status == "Completed" for needs in job.depends_on
            )
        self.store.close()


TestQueue = Queue.TestCase
TestQueue.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
