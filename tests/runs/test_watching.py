"""What somebody sees who watches a run whose jobs wait, give way to others, and whose engine does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from job_runs import JobProject
from simulated_service import client_error

import shardkit as sk
from shardkit.engines.local import LocalEngine
from shardkit.runfolder.display import Quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT = "PartitionTimeLimit (engine.time is longer than the partition allows)"


class Moody(LocalEngine):
    """Its jobs wait for a few looks, the first of them gives way to others, and it does not always answer."""

    looks = 0
    at_last: Callable[[], None] = staticmethod(lambda: None)

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        if request["ProcessingJobName"].endswith("00000-1"):
            return self.create_failed_job("Preempted: others took its node.\nAnd more.", **request)
        return super().create_processing_job(**request)

    def list_processing_jobs(self, **request: Any) -> dict[str, Any]:
        self.looks += 1
        if 2 <= self.looks < 6:
            raise client_error("ServiceUnavailable", "the controller is away", "ListProcessingJobs", status=503)
        answer = super().list_processing_jobs(**request)
        if self.looks > 9:
            self.at_last()
            return answer
        for line in answer["ProcessingJobSummaries"]:
            if line["ProcessingJobStatus"] == "InProgress":
                line["WaitingReason"] = LIMIT if "00001" in line["ProcessingJobName"] else "Priority"
        return answer


class Recorder(Quiet):
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []

    def update(self, done: int, line: str) -> None:
        self.lines.append(line)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path)
    yield made
    made.end()


@pytest.mark.whole
def test_what_is_shown_of_jobs_that_wait_and_are_tried_again(
    project: JobProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Recorder()
    monkeypatch.setattr("shardkit.runs.on_engine.make_progress", lambda **_: shown)
    project.write_groups("wait")
    moody = Moody(project.engine_root, max_instances=4)
    moody.at_last = project.open_gate
    engine = sk.Local(client=moody)
    run = sk.Pipeline(**project.fields()).run(engine)
    assert run.summary().status == "done"
    assert any(", 3 waiting (Priority) | " in line for line in shown.lines)
    assert any("the controller is away" in line for line in shown.lines)
    assert len(shown.notes) == 3, shown.notes  # each once, however many rounds saw it
    notes = {note.partition(":")[0]: note for note in shown.notes}
    assert notes["1 job waits"] == f"1 job waits: {LIMIT}"
    assert notes["Waiting"] == "Waiting: ServiceUnavailable: the controller is away"
    again = next(note for note in shown.notes if "tried again" in note)
    assert again.startswith("1 job to be tried again (it had to give way to other jobs), such as work-")
    assert again.endswith("-g1-00000-1: Preempted: others took its node.")


def test_a_run_whose_jobs_wait_is_running(project: JobProject) -> None:
    """Nobody watches, and no job has begun; without its jobs a run cannot be told from an interrupted one."""
    project.write_groups("wait")
    engine = sk.Local(client=Moody(project.engine_root, max_instances=1))
    run = project.run_jobs(engine=engine, wait=False)
    assert (run.summary().status, run.summary(jobs=run.jobs()).status) == ("interrupted", "interrupted")
    jobs = [job | {"status": "Launched"} for job in run.jobs(refresh=False)]
    summary = run.summary(jobs=jobs)
    assert summary.status == "running"
    assert "The engine has 4 jobs of it; nobody is watching. Watch: sk.open_run(" in str(summary)
