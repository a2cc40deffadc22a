"""Jobs of the local engine that the test's own process does, for tests of what the jobs of a run make.

A job is a chain of processes, each of them a copy of a large one; what the pass within it does is a tenth of that. Here
the call that makes the job does the pass, and leaves the job's files as its supervisor would. So jobs run one after
another, and nothing can kill them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shardkit.engines.local import LocalEngine
from shardkit.runs.container import job as program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.engines.jobfiles import JobFiles


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process's local engines do their jobs here."""
    monkeypatch.setattr(LocalEngine, "_supervise", lambda _, files: do(files))


@contextlib.contextmanager
def as_a_guest(root: Path, **environment: str) -> Iterator[None]:
    """Leave as it is what the program of a job changes for good, as it has a process of its own.

    ``root`` is the job's folder, in place of ``/opt/ml``.
    """
    own = {"SHARDKIT_OPT_ML": str(root), "SHARDKIT_CACHE": str(root / "cache")}
    with pytest.MonkeyPatch.context() as patched:
        for name in ("ARROW_DEFAULT_MEMORY_POOL", "OPENBLAS_NUM_THREADS"):
            patched.setenv(name, os.environ.get(name, ""))
        patched.setattr(program, "spare_what_is_loaded", lambda: None)
        for name, value in {**environment, **own}.items():
            patched.setenv(name, value)
        yield


def do(files: JobFiles) -> None:
    """Do a job, and say how it has ended."""
    job = files.request()
    assert job is not None
    (host,) = job["hosts"]
    root = Path(files.volume(host)) / "ml"
    (root / "config").mkdir(parents=True)
    about = {"ProcessingJobName": files.name, "StoppingCondition": job["request"].get("StoppingCondition")}
    (root / "config" / "processingjobconfig.json").write_text(json.dumps(about))
    started = time.time()
    environment = job["request"].get("Environment", {})
    with (
        as_a_guest(root, **environment),
        open(files.log(host), "w", encoding="utf-8") as log,
        contextlib.redirect_stderr(log),
    ):
        code = program.main(job["request"]["AppSpecification"]["ContainerArguments"])
    end: dict[str, Any] = {"ProcessingJobStatus": "Failed" if code else "Completed"}
    message = root / "output" / "message"
    if message.exists():
        end["ExitMessage"] = message.read_text()
    if code:
        end["FailureReason"] = f"AlgorithmError: {end.get('ExitMessage', '')}, exit code: {code}"
    files.remove_volumes()
    ended = time.time()
    files.write_state(end | {"ProcessingStartTime": started, "ProcessingEndTime": ended, "LastModifiedTime": ended})
