"""What an engine says of itself by its settings, and what becomes of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from job_runs import JobProject

import shardkit as sk
from shardkit.engines.kinds import engine_kind
from shardkit.jobs import SQLiteStore
from shardkit.jobs.job import parse_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path)
    made.write_groups("text", groups="a")
    yield made
    made.end()


class Narrow(sk.Local):
    """Its names are short and small."""

    longest_name: ClassVar[int] = 40
    lower_case_names: ClassVar[bool] = True


class Closed(sk.Local):
    """It takes no jobs."""

    def check_site(self) -> None:
        raise sk.PipelineError("engine: there is no such place.", hint="Give another.")


def test_jobs_have_names_that_the_engine_allows(project: JobProject) -> None:
    engine = Narrow(root=project.engine_root)
    run = project.run_jobs(engine=engine, wait=False, name="Hearts Of Gold", run_id="Run-20261129-Of-The-Night")
    names = [f"{job.job_id}-9999" for job in SQLiteStore(run.path / "jobs.sqlite").jobs()]
    assert names
    for name in names:
        assert len(name) <= 40
        assert name == name.lower()
        assert parse_name(name) is not None
    assert names[0].startswith("hear-run-2026")


def test_what_is_not_possible_is_told_before_there_is_a_run(project: JobProject) -> None:
    with pytest.raises(sk.PipelineError, match="there is no such place"):
        project.run_jobs(engine=Closed(root=project.engine_root))
    assert not project.out.exists()


def test_a_run_is_looked_at_as_often_as_the_queue() -> None:
    assert sk.Slurm(poll_s=30).look_every_s == sk.Slurm(poll_s=30).policy().poll_s == 30


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_an_engine_serves_a_queue_under_any_root(kind: str, tmp_path: Path) -> None:
    engine, policy = engine_kind(kind).serving(3, str(tmp_path / "jobs"))
    assert (engine.root, policy.max_instances) == (str(tmp_path / "jobs"), 3)
    assert (policy.batch > 1) == hasattr(engine, "create_processing_jobs") == hasattr(engine, "stop_processing_jobs")


def test_sagemaker_has_no_root() -> None:
    with pytest.raises(sk.PipelineError, match="SageMaker keeps its jobs itself"):
        engine_kind("sagemaker").serving(None, "jobs")
