"""The steps of a run as jobs of an engine: requests for its queue, each needing those of the steps before it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.runs.bundle import upload_code
from shardkit.runs.driver_job import LONGEST_RUN_S, driver_job
from shardkit.runs.requests import CODE_FOLDER, ENTRYPOINT, check_engine, prefix_input
from shardkit.storage.base import STATE_DIR, is_remote
from shardkit.workflows.values import quantity_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.engines.settings import Settings
    from shardkit.jobs import Store, Submission
    from shardkit.jobs.calls import Engine
    from shardkit.spec.spec import Spec
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.resolve import Resolved
    from shardkit.workflows.run_files import RunFiles

GIB = 1 << 30
STEP_CHARACTERS = 24  # of a step's name in its job's id
LEFT_OUT = {"engine", "queue", "parallel", "schedule", "source_dir"}  # of a pipeline in its job
STEPS = f"{STATE_DIR}/steps"  # in a pipeline's output: what its jobs in workflows read


class OnEngine:
    """An engine, for the steps of one run.

    Its queue is a file in the run's folder, which the process drives that watches the run; or the workflow's ``queue``,
    which others serve.
    """

    stops_with_driver = False

    def __init__(self, files: RunFiles, workflow: Workflow, engine: Settings) -> None:
        self.files, self.workflow, self.engine = files, workflow, engine
        self.title = engine.title
        self.served = workflow.queue is not None
        self.outputs = str(files.outputs) if engine.sees_local_paths else ""
        self._numbers = {step.name: number for number, step in enumerate(workflow.steps)}

    def store(self) -> Store:
        """The queue of the jobs."""
        from shardkit.jobs import SQLiteStore, open_store

        if self.workflow.queue is not None:
            return open_store(self.workflow.queue.place, session=self.engine.session())
        return SQLiteStore(self.files.queue)

    def job_id(self, step: str, generation: int) -> str:
        """The id of a step's job: it begins with the run's, because it names a job of an account."""
        name = f"{self.files.run_id}-{self._numbers[step]:03d}-{step[:STEP_CHARACTERS].rstrip('-')}"
        return name if generation == 1 else f"{name}-G{generation}"

    def client(self) -> Engine:
        """The engine that runs the jobs."""
        return self.engine.client()

    def drive(self, store: Store, on_round: Callable[[str], bool | None]) -> None:
        """Launch and watch the jobs, or only watch, until all have ended, or ``on_round`` says False."""
        from shardkit.jobs import drive

        if self.workflow.queue is None:
            policy = self.engine.policy()
            drive(store, self.client(), policy=policy, on_round=lambda _, report: on_round(report.trouble))
            return
        self._watch(store, self.workflow.queue.place, on_round)

    def _watch(self, store: Store, place: str, on_round: Callable[[str], bool | None]) -> None:
        from shardkit.jobs.service import trouble_of

        run = f"{self.workflow.name}-{self.files.run_id}"
        while True:
            counts = store.counts(run=run)
            left = counts["New"] + counts["Launched"] + counts["InProgress"]
            trouble = trouble_of(store, time.time(), place=place, engine=self.engine.kind) if left else ""
            if on_round(trouble) is False or not left:
                return
            time.sleep(self.engine.look_every_s)

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that an attempt of a job has written."""
        return self.engine.log_lines(job_name)

    def check(self, resolved: Resolved) -> None:
        """See that a step can be a job of the engine.

        Raises:
            PipelineError: it cannot.
        """
        step = resolved.step
        if step.secrets:
            raise PipelineError(
                f"{step.name}: {next(iter(step.secrets))} is a secret, and all who may describe a job could read it.",
                hint="Let the step read it from Secrets Manager, by the role of its job, and name its ARN in env.",
            )
        if resolved.pipeline is not None:
            check_engine(self._pipeline(resolved))
            return
        if not resolved.image:
            raise PipelineError(
                f"{step.name}: a job on {self.title} needs an image.", hint="Give the step one: image: ..."
            )
        if not resolved.words:
            raise PipelineError(
                f"{step.name}: a job on {self.title} needs a command.", hint="Give the one that its image has."
            )
        if resolved.output and not (is_remote(resolved.output) or self.engine.sees_local_paths):
            raise PipelineError(
                f"{step.name}: {resolved.output} is a folder of this machine, which jobs on {self.title} do not see.",
                hint="Give an output in a bucket: output: s3://bucket/prefix/",
            )
        self._command_request(resolved)

    def submissions(self, resolved: Resolved, job: Submission, beginning: int) -> list[Submission]:
        """The job of a step."""
        owner = self.workflow.queue.owner or "" if self.workflow.queue is not None else ""
        if resolved.pipeline is None:
            request = self._command_request(resolved)
        else:
            request = self._pipeline_request(resolved, beginning)
        return [replace(job, request=request, owner=owner)]

    def _command_request(self, resolved: Resolved) -> dict[str, Any]:
        return self._settings(resolved).request(entrypoint=resolved.words, environment=resolved.env)

    def _settings(self, resolved: Resolved) -> Settings:
        """The engine's settings for the job of one step."""
        step, known = resolved.step, type(self.engine).model_fields
        given: dict[str, Any] = {}
        if resolved.image:
            given["image"] = resolved.image
        if step.machines.instance_type is not None:
            prefix = "" if step.machines.instance_type.startswith("ml.") else "ml."
            given["instance_type"] = f"{prefix}{step.machines.instance_type}"
        if step.machines.volume is not None:
            given["volume_gb"] = max(1, math.ceil(quantity_bytes(step.machines.volume) / GIB))
        if step.timeout is not None:
            given["max_runtime"] = max(1, round(step.timeout))
        return self.engine.replace(**{name: value for name, value in given.items() if name in known})

    def _pipeline(self, resolved: Resolved) -> Spec:
        """The pipeline of a step, with the engine of its jobs."""
        if resolved.pipeline is None:
            raise PipelineError(f"{resolved.step.name} has no pipeline.")
        return resolved.pipeline.replace(engine=self._settings(resolved), parallel=None, queue=None)

    def _pipeline_request(self, resolved: Resolved, beginning: int) -> dict[str, Any]:
        """The request of a pipeline's job; what it reads goes to the pipeline's output.

        A pipeline with shards takes many jobs: the step's own is then the driver that plans them, makes them and
        watches them. Any other runs in the step's job itself, on all CPUs of its instance.
        """
        pipeline = self._pipeline(resolved)
        engine = self._settings(resolved)
        run_id = f"{self.files.run_id}-{resolved.step.name}{f'-{beginning}' if beginning > 1 else ''}"
        if pipeline.shards is not None and not engine.sees_local_paths:
            driver = driver_job(pipeline, run_id=run_id, max_runtime=engine.max_runtime or LONGEST_RUN_S)
            return driver.with_id(driver.run_id)
        output = pipeline.output_folder()
        ref = pipeline.function_ref()
        code = upload_code(output, pipeline, ref)
        content = pipeline.to_dict()
        if engine.local and pipeline.workers == "auto":
            content["workers"] = engine.vcpus  # its instances share one machine
        data = json.dumps({name: value for name, value in content.items() if name not in LEFT_OUT}).encode()
        name = f"{STEPS}/{run_id}-{hashlib.sha256(data).hexdigest()[:8]}.json"
        output.write(name, data)
        words = ["whole", "--pipeline", f"{output.uri}/{name}", "--run-id", run_id]
        inputs = [prefix_input("code", code, CODE_FOLDER)]
        environment = dict(resolved.env) | engine.job_environment()
        return engine.request(entrypoint=ENTRYPOINT, arguments=words, inputs=inputs, environment=environment)
