"""The steps of a run as jobs of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardkit.engines.job_folders import interpreter_words
from shardkit.engines.local_settings import Local
from shardkit.errors import PipelineError
from shardkit.workflows.containers import container_words
from shardkit.workflows.here import step_engine
from shardkit.workflows.resolve import secret_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.jobs import Store, Submission
    from shardkit.jobs.calls import Engine
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.resolve import Resolved
    from shardkit.workflows.run_files import RunFiles

LAUNCH = "from shardkit.workflows.launch import main; main()"
MOST_AT_ONCE = 64


class Here:
    """This machine, for the steps of one run; with ``containers``, the runtime for those that have an image."""

    title = "this machine"
    served = False
    stops_with_driver = True

    def __init__(self, files: RunFiles, workflow: Workflow, *, containers: str | None) -> None:
        self.files, self.workflow, self.containers = files, workflow, containers
        self.outputs = str(files.outputs)
        self._at_once = min(workflow.parallelism or len(workflow.steps), MOST_AT_ONCE)
        self._hidden = secret_variables(workflow)

    def store(self) -> Store:
        """The run's own queue."""
        from shardkit.jobs import SQLiteStore

        return SQLiteStore(self.files.queue)

    def job_id(self, step: str, generation: int) -> str:
        """The id of a step's job; the capital letter is in no step's name."""
        return step if generation == 1 else f"{step}-G{generation}"

    def client(self) -> Engine:
        """The engine that runs the jobs."""
        return step_engine(str(self.files.path), at_once=self._at_once)

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that an attempt of a job has written."""
        with contextlib.suppress(FileNotFoundError), self.files.log(job_name).open(errors="replace") as lines:
            for line in lines:
                yield line.rstrip("\n")

    def drive(self, store: Store, on_round: Callable[[str], bool | None]) -> None:
        """Launch and watch the jobs until all have ended, or ``on_round`` says False."""
        from shardkit.jobs import Policy, drive

        policy = Policy.local(max_instances=self._at_once)
        drive(store, self.client(), policy=policy, on_round=lambda _, report: on_round(report.trouble))

    def check(self, resolved: Resolved) -> None:
        """See that a step can run here.

        Raises:
            PipelineError: it cannot.
        """
        step = resolved.step
        if resolved.pipeline is None and not resolved.words and self.containers is None:
            raise PipelineError(
                f"{step.name} has an image and no command, so that nothing says what to run on this machine.",
                hint="Give it a command, or run its image: --containers docker",
            )
        missing = [place for place in step.secrets.values() if place not in os.environ]
        if missing:
            raise PipelineError(
                f"{step.name} needs a secret from the variable {missing[0]}, which is not set here.",
                hint="Set that variable.",
            )

    def submissions(self, resolved: Resolved, job: Submission, beginning: int) -> list[Submission]:
        """The job of a step; what it runs goes to the run's folder."""
        step = resolved.step
        self.files.write_step(job.job_id, self.about(job.job_id, resolved, beginning))
        limit = {"max_runtime": max(1, round(step.timeout))} if step.timeout is not None else {}
        engine = Local(root=str(self.files.path), **limit)
        words = [str(self.files.path), job.job_id]
        return [replace(job, request=engine.request(entrypoint=interpreter_words(LAUNCH), arguments=words))]

    def about(self, job_id: str, resolved: Resolved, beginning: int) -> dict[str, Any]:
        """What a job runs, as `shardkit.workflows.launch` reads it."""
        step, folder = resolved.step, str(self.workflow.folder)
        words = self.words(resolved, beginning)
        remove: list[str] = []
        if self.containers is not None and resolved.pipeline is None and resolved.image:
            name = f"{self.files.run_id}-{job_id}"
            variables = (*resolved.env, *step.secrets)
            words = container_words(self.containers, resolved, name=name, folder=folder, variables=variables)
            remove = [self.containers, "rm", "--force", name]
        path = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}"
        local = resolved.output if resolved.pipeline is None and "://" not in resolved.output else ""
        return {
            "words": words,
            "folder": folder,
            "env": {"PATH": path} | dict(resolved.env),
            "secrets": step.secrets,
            "hidden": sorted(self._hidden),
            "output": local,
            "container": remove,
        }

    def words(self, resolved: Resolved, beginning: int) -> list[str]:
        """The command of a step.

        The id of a pipeline's run is that of the workflow's run with the step's name, so that the step, tried again or
        resumed, goes on where the markers end. If the step begins again, it is another.
        """
        if resolved.pipeline is None:
            return list(resolved.words)
        run_id = f"{self.files.run_id}-{resolved.step.name}{f'-{beginning}' if beginning > 1 else ''}"
        words = [sys.executable, "-m", "shardkit", "run", self.workflow.path(str(resolved.step.pipeline))]
        words += ["--run-id", run_id, "--go-on"]
        for name, value in resolved.settings.items():
            words += ["--set", f"{name}={json.dumps(value, ensure_ascii=False)}"]
        return words
