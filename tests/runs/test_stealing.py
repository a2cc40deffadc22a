"""Work stealing: a job that has done its own shard does chunks of slower ones, and whatever happens they count once."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
from crashing import LINUX, check_ledger, dying, wait_for
from fault_proxy import FaultProxy
from job_runs import JobProject
from test_jobs_crash import kill, processes_of
from test_object_store import bucket  # noqa: F401  a fixture

import shardkit as sk
from shardkit.engines.local import available_isolation
from shardkit.runfolder import attempt as attempts
from shardkit.runfolder import claims, others
from shardkit.runfolder.ledger import Ledger
from shardkit.runs import stealing
from shardkit.runs.container import job as program
from shardkit.times import now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from test_object_store import Bucket

    from shardkit.runfolder.folder import RunFolder

pytestmark = [LINUX, pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")]

# The first call with a record waits for the record's gate; later ones do not: another job is faster.
FIRST_WAITS = """
import os, time
from pathlib import Path
ROOT = Path({root!r})

def features(record):
    name = record.key.replace("/", "+")
    (ROOT / "calls" / f"{{name}} {{os.getpid()}} {{time.monotonic_ns()}}").touch()
    text = Path(record).read_text()
    if text.startswith("wait"):
        try:
            (ROOT / f"first-{{name}}").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            while not (ROOT / f"gate-{{name}}").exists():
                time.sleep(0.005)
    if text.startswith("bad"):
        raise ValueError(f"cannot make sense of {{record.key}}")
    return [{{"key": record.key, "row": i, "text": text}} for i in range(2)]
"""


class Jobs:
    """The jobs of a run that is planned, but not launched: each runs in a thread of this process."""

    def __init__(self, project: JobProject, run: sk.Run) -> None:
        self.project, self.run = project, run
        self.codes: dict[str, int] = {}
        self._threads: dict[str, threading.Thread] = {}

    def start(self, *words: str) -> None:
        """Begin a job: ``pass1``, with the number of its shard, or ``pass2``."""
        name = " ".join(words)
        number = ["--job", words[1]] if len(words) > 1 else []

        def work() -> None:
            self.codes[name] = program.main([words[0], "--run", self.run.folder.uri, *number])

        self._threads[name] = threading.Thread(target=work)
        self._threads[name].start()

    def end(self, *words: str) -> None:
        """Wait for a job's end, which must be a good one."""
        name = " ".join(words)
        self._threads[name].join(60)
        assert self.codes.get(name) == 0, f"{name} has not ended well: {self.codes}"

    def merge(self) -> sk.Run:
        self.start("pass2")
        self.end("pass2")
        return self.run

    def calls_of(self, key: str) -> int:
        return Counter(self.project.calls())[key]


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """A pass sets variables for its own process, which is this one; with them, no later command would start as a fork."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    made.write_function(FIRST_WAITS.format(root=str(made.root)))
    yield made
    made.end()


@pytest.fixture
def jobs(project: JobProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """A fast group ``a`` of one record, and ``b`` of four, the first and the last of which may wait."""
    fast(monkeypatch)
    project.write_groups("go", groups="a")
    project.write_groups("wait", "go..", "go..", "wait", groups="b")
    made = Jobs(project, project.run_jobs(wait=False, workers=1, max_failures=2))
    yield made
    for gate in ("b+r0.txt", "b+r3.txt"):
        open_gate(project, gate)
    for thread in made._threads.values():
        thread.join(60)


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and write heartbeats often."""
    monkeypatch.setattr(others, "LOOK_S", 0.1)
    monkeypatch.setattr(others, "CLOSE_LOOK_S", 0.1)
    monkeypatch.setattr(stealing, "CLOSE_LOOK_S", 0.1)
    monkeypatch.setattr(stealing, "WORTH_S", 0.1)
    monkeypatch.setattr(attempts, "HEARTBEAT_S", 0.2)


def open_gate(project: JobProject, name: str) -> None:
    (project.root / f"gate-{name}").touch()


def waits(project: JobProject, run: sk.Run, name: str) -> None:
    """Wait until a record is at work, and its job's heartbeat shows that it has come to records."""
    wait_for(lambda: (project.root / f"first-{name}").exists(), what=f"{name} at work")
    beats = lambda: [beat for beat in run.folder.heartbeats() if "records" in beat and beat.get("seconds", 0) > 0.1]  # noqa: E731
    wait_for(beats, what="a heartbeat")


def done_by(run: sk.Run) -> dict[str, str]:
    """The attempt that has done each chunk that counts, by the keys of its records."""
    ledger = Ledger(run.folder)
    keys = run.folder.records(["key"])["key"].to_pylist()
    return {keys[i]: marker["by"] for marker, ids in ledger.settled() for i in ids.tolist()}


def counts_once(project: JobProject, run: sk.Run) -> None:
    """Check the dataset, the ledger, and that no part is left that does not count."""
    assert project.keys_and_rows(run) == project.expected()
    summary = check_ledger(run)
    assert summary.status == "done"
    assert sk.check(run.output_uri).ok
    parts = {part.file.key for part in Ledger(run.folder).parts()}
    assert {entry.key for entry in run.folder.files.entries("parts")} == parts


# ---- whole jobs --------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_slow_job_ends_as_soon_as_another_has_done_its_chunks(jobs: Jobs, project: JobProject) -> None:
    open_gate(project, "b+r3.txt")
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")  # and never returns
    jobs.start("pass1", "0")
    jobs.end("pass1", "0")
    jobs.end("pass1", "1")
    run = jobs.merge()
    counts_once(project, run)
    assert set(done_by(run).values()) == {"0-0001"}
    assert (jobs.calls_of("b/r0.txt"), jobs.calls_of("b/r1.txt")) == (2, 1)
    assert run.summary().stolen == {"1": {"0": 4}}
    assert "stolen   4 records of 1 slow shard, done by 1 other job" in str(run.summary())


@pytest.mark.whole
def test_a_job_does_what_another_has_claimed_and_is_slow_with(jobs: Jobs, project: JobProject) -> None:
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")
    jobs.start("pass1", "0")
    waits(project, jobs.run, "b+r3.txt")  # the last one, in the job that has claimed it
    assert claims.holder(jobs.run.folder, 1, 3) == "0-0001"
    open_gate(project, "b+r0.txt")
    jobs.end("pass1", "1")
    jobs.end("pass1", "0")  # gives up what it is at
    run = jobs.merge()
    counts_once(project, run)
    assert {key: by for key, by in done_by(run).items() if key.startswith("b")} == dict.fromkeys(
        (f"b/r{i}.txt" for i in range(4)), "1-0001"
    )
    assert jobs.calls_of("b/r3.txt") == 2


@pytest.mark.whole
def test_an_owner_that_begins_again_leaves_to_others_what_they_are_at(jobs: Jobs, project: JobProject) -> None:
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")
    jobs.start("pass1", "0")
    waits(project, jobs.run, "b+r3.txt")
    jobs.start("pass1", "1")  # as if the first attempt were lost, which goes on all the same
    jobs.end("pass1", "1")
    open_gate(project, "b+r0.txt")
    jobs.end("pass1", "0")
    run = jobs.merge()
    assert project.keys_and_rows(run) == project.expected()
    assert check_ledger(run).records["done"] == 5
    assert set(done_by(run).values()) == {"0-0001", "1-0002"}


def beat(folder: RunFolder, name: str, state: str = "running") -> None:
    """Write the heartbeat of a job that has done its own shard."""
    shard, attempt = name.rsplit("-")
    folder.write_heartbeat(
        {
            "shard": int(shard),
            "attempt": int(attempt),
            "state": state,
            "message": None,
            "phase": attempts.STEALING,
            "started": now(),
            "at": now(),
        }
    )


@pytest.mark.whole
@pytest.mark.parametrize("sign", ["none", "one", "many"])
def test_claims_of_a_job_that_gives_no_sign_of_life_are_void(
    jobs: Jobs, project: JobProject, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "CLAIM_S", 1.0)
    folder, ended = jobs.run.folder, threading.Event()
    open_gate(project, "b+r3.txt")
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")
    for chunk in range(4):
        assert claims.claim(folder, 1, chunk, "2-0001")
    if sign != "none":
        beat(folder, "2-0001")

    def live() -> None:
        while sign == "many" and not ended.wait(0.1):
            beat(folder, "2-0001")

    living = threading.Thread(target=live)
    living.start()
    begun = time.monotonic()
    jobs.start("pass1", "0")
    jobs.end("pass1", "0")
    took_s = time.monotonic() - begun
    ended.set()
    living.join()
    stolen = Ledger(folder).stolen().get("1", {}).get("0", 0)
    if sign == "many":
        assert stolen == 0
        open_gate(project, "b+r0.txt")
    else:
        assert stolen == 4
        assert took_s >= claims.CLAIM_S or sign == "none"
    jobs.end("pass1", "1")
    beat(folder, "2-0001", "done")
    counts_once(project, jobs.merge())


@pytest.mark.whole
def test_a_record_that_fails_elsewhere_is_in_quarantine_once(jobs: Jobs, project: JobProject) -> None:
    (project.data / "b" / "r2.txt").write_text("bad.")
    open_gate(project, "b+r3.txt")
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")
    jobs.start("pass1", "0")
    jobs.end("pass1", "0")
    jobs.end("pass1", "1")
    run = jobs.merge()
    assert [entry["key"] for entry in run.quarantine()] == ["b/r2.txt"]
    assert check_ledger(run).records == {"listed": 5, "done": 4, "quarantined": 1, "skipped": 0}


@pytest.mark.whole
def test_what_was_taken_for_done_and_is_not_is_done_by_the_next_attempt(
    project: JobProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_done = others.Others.have_done
    monkeypatch.setattr(others.Others, "have_done", lambda self, ids: self.by.endswith("-0001") or have_done(self, ids))
    project.write_groups("go", "go", groups="ab")
    jobs = Jobs(project, project.run_jobs(wait=False, workers=1))
    for number in "01":
        jobs.start("pass1", number)
        jobs.end("pass1", number)
    counts_once(project, jobs.merge())
    assert set(done_by(jobs.run).values()) == {"0-0002", "1-0002"}


@pytest.mark.whole
def test_too_many_failures_of_another_job_fail_that_one(project: JobProject, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    project.write_groups("go", groups="a")
    project.write_groups("wait", "bad.", "go..", "go..", groups="b")
    jobs = Jobs(project, project.run_jobs(wait=False, workers=1, max_failures=0))
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")
    jobs.start("pass1", "0")
    jobs.end("pass1", "0")
    open_gate(project, "b+r0.txt")
    with pytest.raises(AssertionError, match="not ended well"):
        jobs.end("pass1", "1")
    assert jobs.codes["pass1 1"] == 1


@pytest.mark.whole
def test_a_job_whose_day_others_have_computed_leaves_it_to_pass_2(
    project: JobProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    days = ["2024-05-01", "2024-05-02"]
    project.write_groups("go", groups=days[:1])
    project.write_groups("wait", "go..", "go..", groups=days[1:])
    run = project.run_jobs(wait=False, workers=1, shards={"by": "date", "path": "{Y}-{m}-{d}"})
    jobs = Jobs(project, run)
    jobs.start("pass1", "1")
    waits(project, jobs.run, f"{days[1]}+r0.txt")
    jobs.start("pass1", "0")
    jobs.end("pass1", "0")
    jobs.end("pass1", "1")
    assert [entry.key for entry in run.folder.files.entries("merged")] == [f"merged/{days[0]}.json"]
    counts_once(project, jobs.merge())


@pytest.mark.slow
def test_in_a_bucket(project: JobProject, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    fast(monkeypatch)
    project.write_groups("go", groups="a")
    project.write_groups("wait", "go..", "go..", "go..", groups="b")
    run = project.run_jobs(wait=False, workers=1, output=f"{bucket.uri}/out")
    jobs = Jobs(project, run)
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")
    jobs.start("pass1", "0")
    jobs.end("pass1", "0")
    jobs.end("pass1", "1")
    counts_once(project, jobs.merge())
    assert run.summary().stolen == {"1": {"0": 4}}


def requests_of_jobs(project: JobProject, there: Bucket, url: str, *, steal: bool) -> Counter[str]:
    """The requests to the store that three jobs make which are all fast."""
    run = project.run_jobs(
        wait=False, workers=1, output=f"{there.uri}/{steal}", shards={"by": "directory", "steal": steal}
    )
    made: Counter[str] = Counter()

    def gate(request: Any) -> None:
        kind = "LIST" if "list-type=2" in request.path else request.command
        if kind != "PUT" or "/progress/" not in request.path:  # of heartbeats there are as many as it takes seconds
            made[kind] += 1

    jobs = Jobs(project, run)
    with pytest.MonkeyPatch.context() as patched, FaultProxy(urlsplit(url).port or 0, gate=gate).running() as proxy:
        patched.setenv("AWS_ENDPOINT_URL", proxy)
        for number in "012":
            jobs.start("pass1", number)
        for number in "012":
            jobs.end("pass1", number)
    jobs.merge()
    assert run.summary().stolen == {}
    return made


@pytest.mark.slow
def test_where_nobody_is_slow_it_costs_few_requests(
    project: JobProject,
    bucket: Bucket,  # noqa: F811
    s3_url: str,
) -> None:
    project.write_groups(*["go"] * 3)
    without = requests_of_jobs(project, bucket, s3_url, steal=False)
    project.forget_calls()
    more = requests_of_jobs(project, bucket, s3_url, steal=True) - without
    assert set(project.calls()) == {key for key, _ in project.expected()}
    assert len(project.calls()) == 9
    # Of each job one look at the others' heartbeats, and the heartbeats of those that had not ended by then.
    assert more["PUT"] == 0
    assert more["LIST"] <= 3
    assert more["GET"] <= 6


@pytest.mark.whole
def test_without_stealing_each_job_does_its_own(project: JobProject, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    project.write_groups("go", groups="a")
    project.write_groups("wait", "go", groups="b")
    run = project.run_jobs(wait=False, workers=1, shards={"by": "directory", "steal": False})
    jobs = Jobs(project, run)
    jobs.start("pass1", "1")
    waits(project, jobs.run, "b+r0.txt")
    jobs.start("pass1", "0")
    jobs.end("pass1", "0")
    assert project.calls().count("b/r1.txt") == 0
    open_gate(project, "b+r0.txt")
    jobs.end("pass1", "1")
    counts_once(project, jobs.merge())
    assert run.folder.files.entries(claims.FOLDER) == []


# ---- on an engine ------------------------------------------------------------------------------------------------

# In one job, or on one instance, each record takes ten times as long as elsewhere, until a file named fast is there.
# What is stolen are chunks of a job whose heartbeat has come, after five seconds: others must be at work until then.
ONE_IS_SLOW = """
import json, os, time
from pathlib import Path
config = Path(os.environ.get("SHARDKIT_OPT_ML", "/opt/ml"), "config")
job = json.loads((config / "processingjobconfig.json").read_text())["ProcessingJobName"]
host = json.loads((config / "resourceconfig.json").read_text())["current_host"]

def features(record):
    is_slow = {slow!r} in f"{{job}}/{{host}}"
    time.sleep(0.05 if Path({root!r}, "fast").exists() else 3.0 if is_slow else 0.3)
    return [{{"key": record.key, "row": i}} for i in range(2)]
"""


def one_is_slow(project: JobProject, where: str) -> str:
    return ONE_IS_SLOW.format(slow=where, root=str(project.root))


@pytest.mark.slow
def test_instances_of_one_job(project: JobProject) -> None:
    project.write_function(one_is_slow(project, "algo-1"))
    project.write_records({f"r{i:02}.txt": "go" for i in range(48)})
    begun = time.monotonic()
    run = project.run_jobs(shards={"by": "s3key", "instances": 2}, workers=1)
    assert time.monotonic() - begun < 72  # alone, the slow instance would take that long
    counts_once(project, run)
    assert run.summary().stolen["0"]


@pytest.mark.slow
def test_a_run_that_is_stopped_while_jobs_steal_goes_on(project: JobProject) -> None:
    project.write_function(one_is_slow(project, "-g1-00002-"))
    project.write_groups(*["go"] * 48)
    with dying(project.start_driver(workers=2)) as driver:
        run = project.wait_for_run()
        wait_for(lambda: run.folder.files.entries(claims.FOLDER), what="a claim")
        wait_for(lambda: Ledger(run.folder).stolen(), what="a chunk that was stolen")
        run.stop()
        (project.root / "fast").touch()
        driver.process.wait(timeout=60)
    assert run.summary().status == "interrupted"
    run.resume(quiet=True)
    assert project.keys_and_rows(run) == project.expected()
    assert check_ledger(run).status == "done"
    assert sk.check(run.output_uri).ok


@pytest.mark.slow
def test_jobs_are_killed_while_they_steal(project: JobProject) -> None:
    moments = random.Random(0)
    project.write_function(one_is_slow(project, "-g1-00002-"))
    project.write_groups(*["go"] * 48)
    driver = project.start_driver(workers=2)
    run = project.wait_for_run()
    with dying(driver):
        wait_for(lambda: run.folder.files.entries(claims.FOLDER), what="a claim")
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline and driver.process.poll() is None:
            time.sleep(moments.uniform(0.1, 1.0))
            if victims := processes_of(project, moments.choice(["bootstrap.py", "shardkit-worker"])):
                kill(moments.choice(victims))
        (project.root / "fast").touch()
        driver.process.wait(timeout=200)
    for _ in range(5):  # attempts may be used up
        try:
            run.resume(quiet=True)
            break
        except sk.RunFailed:
            continue
    killed = run.failures()  # whose workers were killed twice: such a record is set aside, as one that kills them
    if len(killed):
        assert set(killed["error"]) == {"WorkerDied"}
        run.retry(quiet=True)
    assert project.keys_and_rows(run) == project.expected()
    check_ledger(run)
    # A job that was killed, and had nothing left to do, counts as running for a while.
    wait_for(lambda: run.summary().status == "done", what="the end of the run")
    assert sk.check(run.output_uri).ok
