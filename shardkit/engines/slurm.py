"""Processing jobs on a Slurm cluster: the same four calls, the same requests, the same answers.

    engine = SlurmEngine("/shared/home/me/shardkit")
    engine.create_processing_job(ProcessingJobName="one", ..., Resources={"cpus": 4, "memory_gb": 16})

A job is one Slurm job, whose script is the local engine's supervisor; jobs that are created together and need the same
become an array. How far a job is, its own files say (see ``shardkit.engines.slurm_files``); that it waits, or that
Slurm has ended it, says Slurm's queue, which is asked once a look.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from shardkit.engines import pyenv, slurm_commands, validation
from shardkit.engines.environment import LONGEST
from shardkit.engines.job_folders import JobFolders, interpreter_words
from shardkit.engines.jobfiles import ENDED
from shardkit.engines.local_answers import answer
from shardkit.engines.slurm_answers import explained
from shardkit.engines.slurm_commands import RUNNING, WAITING, Seen
from shardkit.engines.slurm_ends import end_of
from shardkit.engines.slurm_files import Batch, SlurmFiles
from shardkit.engines.slurm_words import sbatch_words
from shardkit.engines.validation import refuse
from shardkit.errors import PipelineError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardkit.engines.jobfiles import JobFiles

NODE = "from shardkit.engines.slurm_node import main; main()"
FRESH_S = 0.5  # the queue is not asked more often
NOBODY = "arn:aws:iam::000000000000:role/none"


class SlurmEngine(JobFolders):
    """Runs Processing jobs on a Slurm cluster, with the methods of ``boto3.client("sagemaker")``.

    Args:
        root: the folder in which the jobs live, on a filesystem that this machine and all nodes share.
        isolation: ``auto`` gives every instance its own ``/opt/ml`` where its node allows it; ``none`` runs shardkit's
            own jobs only, which find their files by path mapping.
        stop_grace: seconds between SIGTERM and SIGKILL when a job is stopped.
        lag_s: how long the end of a job may take to show up in its files, once Slurm says that the job is over.
        gone_s: how long Slurm must not know a job before it counts as lost.

    Raises:
        PipelineError: an argument cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        isolation: str = "auto",
        stop_grace: float = 20.0,
        lag_s: float = 10.0,
        gone_s: float = 60.0,
    ) -> None:
        if isolation not in ("auto", "none"):
            raise PipelineError(f"isolation is {isolation!r}; it is auto or none.")
        super().__init__(os.path.abspath(os.path.expanduser(root)), isolation=isolation, stop_grace=stop_grace)
        self._lag_s, self._gone_s = lag_s, gone_s
        self._seen: tuple[float, slurm_commands.Look] = (0.0, slurm_commands.Look({}, {}))
        self._listing: tuple[str, list[dict[str, Any]]] | None = None  # what the pages of a list are cut from
        self._known: dict[str, SlurmFiles] = {}  # of the jobs that have not ended
        self._slurm_ids: dict[str, str] = {}  # of the jobs that Slurm has
        self._waited: dict[str, tuple[str, float]] = {}  # jobs that wait, for what, and since when that is known
        self._accounts: dict[str, Seen | None] = {}  # what they say of jobs that are not in the queue
        self._over_since: dict[str, float] = {}  # of jobs that Slurm has ended, and whose files do not say how

    # ---- creating ----------------------------------------------------------------------------------------------

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        """Submit a job; the arguments are those of the service's CreateProcessingJob, and ``Resources``.

        Raises:
            botocore.exceptions.ParamValidationError: a field is missing or of another type.
            botocore.exceptions.ClientError: ValidationException, ResourceInUse (the name is taken),
                ResourceLimitExceeded (the site takes no more jobs) or ServiceUnavailable (Slurm does not answer).
            StorageError: ``root`` cannot be written to.
        """
        (error,) = self.create_processing_jobs([request])
        if error is not None:
            raise error
        return answer({"ProcessingJobArn": self._described(_as_service_knows_it(_filled(request)), {})["arn"]})

    def create_processing_jobs(self, requests: Sequence[dict[str, Any]]) -> list[Exception | None]:
        """Submit jobs, with as few calls of Slurm as possible: for each None, or the error that it would raise alone.

        Raises:
            StorageError: ``root`` cannot be written to.
        """
        errors: dict[int, Exception] = {}
        alike: dict[tuple[str, ...], list[tuple[int, SlurmFiles, dict[str, Any]]]] = {}
        python = pyenv.described()
        for place, request in enumerate(requests):
            try:
                words, files, content = self._prepared(request, python)
            except (BotoCoreError, ClientError) as error:  # of this request alone
                errors[place] = error
            else:
                alike.setdefault(words, []).append((place, files, content))
        for words, jobs in alike.items():
            largest = slurm_commands.largest_batch()
            for i in range(0, len(jobs), largest):
                errors |= self._submit(words, jobs[i : i + largest])
        return [errors.get(place) for place in range(len(requests))]

    def create_failed_job(self, reason: str, **request: Any) -> dict[str, Any]:
        """Take a request as `create_processing_job` does, but let the job fail at once, with ``reason``."""
        _, files, content = self._prepared(request, pyenv.described())
        now = time.time()
        files.create(content, 1)
        files.write_state(
            {
                "ProcessingJobStatus": "Failed",
                "FailureReason": reason,
                "ProcessingEndTime": now,
                "LastModifiedTime": now,
            }
        )
        return answer({"ProcessingJobArn": content["arn"]})

    def _prepared(
        self, request: dict[str, Any], python: dict[str, Any]
    ) -> tuple[tuple[str, ...], SlurmFiles, dict[str, Any]]:
        """The options of sbatch for a request, the files of its job, and what they will hold."""
        request = _filled(request)
        whole = _as_service_knows_it(request)
        validation.check("CreateProcessingJob", whole)
        validation.check_rules(whole, isolated=self.isolation != "none")
        files = self._files(request["ProcessingJobName"])
        if self._exists(files):
            refuse(
                "CreateProcessingJob",
                "ResourceInUse",
                f"Job name must be unique under {self.root}, and a job with this name already exists ({files.name})",
            )
        content = self._described(whole, python)
        content["request"] = {key: value for key, value in request.items() if key != "ProcessingJobName"}
        content["instance_type"] = validation.instances(request)[0]
        return tuple(sbatch_words(request.get("Resources") or {}, len(content["hosts"]))), files, content

    def _exists(self, files: SlurmFiles) -> bool:
        """Whether there is such a job: one that Slurm has, or had."""
        job = files.request()
        return job is not None and (self._slurm_id(files.name, job) != "" or files.end() is not None)

    def _submit(
        self, words: tuple[str, ...], jobs: list[tuple[int, SlurmFiles, dict[str, Any]]]
    ) -> dict[int, Exception]:
        """Submit jobs that need the same, or as many of them as the site takes; returns the errors of the others."""
        first = jobs[0][1].name
        batch = Batch(self.root, f"{first}.{uuid.uuid4().hex[:6]}")
        try:
            batch.create([files.name for _, files, _ in jobs])
            for task, (_, files, content) in enumerate(jobs):
                files.create(content | {"batch": batch.name, "task": task if len(jobs) > 1 else None}, 1)
        except OSError as error:
            raise StorageError(
                f"The Slurm engine cannot make a job under {self.root}: {error.strerror or error}.",
                hint="Give it another root, with free space, on a filesystem that all nodes share.",
            ) from error
        try:
            batch.submitted(slurm_commands.submit(self._options(words, batch, len(jobs)), self._script(batch)))
        except ClientError as error:
            if error.response["Error"]["Code"] == "ServiceUnavailable":  # perhaps submitted: the queue will tell
                return {place: error for place, _, _ in jobs}
            self._forget(batch, jobs)
            if error.response["Error"]["Code"] == "ResourceLimitExceeded" and len(jobs) > 1:
                return self._submit_fewer(words, jobs)
            return {place: error for place, _, _ in jobs}
        self._seen = (0.0, self._seen[1])
        return {}

    def _submit_fewer(
        self, words: tuple[str, ...], jobs: list[tuple[int, SlurmFiles, dict[str, Any]]]
    ) -> dict[int, Exception]:
        """Submit as many as the site takes, where it does not take all, in a few calls however many there are."""
        first, rest = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
        errors = self._submit(words, first)
        if not errors:
            return self._submit(words, rest)
        return errors | dict.fromkeys((place for place, _, _ in rest), next(iter(errors.values())))

    def _options(self, words: tuple[str, ...], batch: Batch, count: int) -> list[str]:
        log = batch.log.replace("%", "%%")
        array = [f"--array=0-{count - 1}"] if count > 1 else []
        return [
            *(f"--job-name={batch.name}", f"--output={log}", "--open-mode=append", "--chdir=/"),
            *(*words, *array),
        ]

    def _script(self, batch: Batch) -> str:
        return f"#!/bin/sh\nexec {shlex.join([*interpreter_words(NODE), self.root, batch.name])}\n"

    def _forget(self, batch: Batch, jobs: list[tuple[int, SlurmFiles, dict[str, Any]]]) -> None:
        """Remove what was written for a submission that was refused: the names of its jobs are free."""
        for _, files, _ in jobs:
            shutil.rmtree(files.folder, ignore_errors=True)
        shutil.rmtree(batch.folder, ignore_errors=True)

    # ---- looking -----------------------------------------------------------------------------------------------

    def _files(self, name: str) -> SlurmFiles:
        return self._known.get(name) or SlurmFiles(self.root, name)

    def _look(self) -> slurm_commands.Look:
        """What Slurm says of the user's jobs, as of just now."""
        if not time.monotonic() - self._seen[0] < FRESH_S:
            look = slurm_commands.look()
            self._accounts = {}
            self._seen = (time.monotonic(), look)
        return self._seen[1]

    def list_processing_jobs(self, **request: Any) -> dict[str, Any]:
        """List jobs as the service does; all pages of a list are of one look at the queue."""
        if "NextToken" not in request:
            self._listing = None
        return super().list_processing_jobs(**request)

    def _summaries(self, part: str) -> Iterator[dict[str, Any]]:
        if self._listing is None or self._listing[0] != part:
            look, looked_at = self._look(), self._seen[0]
            self._seen = (float("inf"), look)  # one look for all of them, however long they take
            try:
                all_of_them = [about for about in super()._summaries(part) if about.pop("submitted", True)]
            finally:
                self._seen = (looked_at, look)
            self._listing = (part, all_of_them)
        return iter(self._listing[1])

    def _slurm_id(self, name: str, job: dict[str, Any]) -> str:
        """The Slurm job of a job; empty where Slurm does not have it, because its submission did not get through."""
        if name in self._slurm_ids:
            return self._slurm_ids[name]
        if "batch" not in job:
            return ""
        batch = Batch(self.root, job["batch"])
        slurm_id = batch.slurm_id()
        if not slurm_id and (slurm_id := self._look().ids.get(batch.name, "")):
            batch.submitted(slurm_id)
        if slurm_id:
            slurm_id = slurm_id if job["task"] is None else f"{slurm_id}_{job['task']}"
            self._slurm_ids[name] = slurm_id
            self._known[name] = SlurmFiles(self.root, name, job)
        return slurm_id

    def _find(self, operation: str, name: str) -> tuple[JobFiles, dict[str, Any]]:
        files, job = super()._find(operation, name)
        if not self._exists(self._files(name)):
            refuse(operation, "ValidationException", f"Could not find requested job with name: {name}")
        return files, job

    def _state(self, files: JobFiles) -> dict[str, Any]:
        """How far a job is; one that Slurm has ended, and that has not said how it ended, ended as Slurm says."""
        if files.name in self._ended:
            return self._ended[files.name]
        mine = self._files(files.name)
        if files.name in self._waited and (waiting := self._waiting_for(mine.name, self._slurm_ids[mine.name])):
            return waiting  # no file need be looked at, which are on a filesystem that many share
        state = mine.end() or self._unended(mine)
        if state["ProcessingJobStatus"] in ENDED:
            self._ended[files.name] = state
            self._known.pop(files.name, None)
        elif os.path.exists(files.stop_asked):
            state["ProcessingJobStatus"] = "Stopping"
        return state

    def _unended(self, files: SlurmFiles) -> dict[str, Any]:
        """How far a job is whose files do not say that it has ended."""
        job = files.request() or {}
        slurm_id = self._slurm_id(files.name, job)
        if not slurm_id:
            return {"ProcessingJobStatus": "InProgress", "submitted": False}
        if waiting := self._waiting_for(files.name, slurm_id):
            return waiting
        seen = self._look().jobs.get(slurm_id)
        if seen is not None and seen.state in RUNNING:
            self._over_since.pop(files.name, None)
            return files.state()
        return self._over(files, slurm_id, seen)

    def _waiting_for(self, name: str, slurm_id: str) -> dict[str, Any] | None:
        """How far a job is that Slurm has not begun; None if it has."""
        seen = self._look().jobs.get(slurm_id)
        if seen is None or seen.state not in WAITING:
            self._waited.pop(name, None)
            return None
        reason = explained(seen.reason or seen.state.capitalize())
        if self._waited.get(name, ("",))[0] != reason:
            self._waited[name] = reason, time.time()
        since = self._waited[name][1]
        return {"ProcessingJobStatus": "InProgress", "WaitingReason": reason, "LastModifiedTime": since}

    def _over(self, files: SlurmFiles, slurm_id: str, seen: Seen | None) -> dict[str, Any]:
        """A job that Slurm does not run any more."""
        claimant = files.claimant()
        if claimant not in ("", slurm_id):  # an earlier submission had got through after all
            self._slurm_ids[files.name] = claimant
            return self._unended(files)
        since = self._over_since.setdefault(files.name, time.monotonic())
        state = files.state()
        if state["ProcessingJobStatus"] in ENDED:
            return state
        batch = Batch(self.root, str((files.request() or {}).get("batch")))
        if seen is None and not claimant and batch.name in self._look().ids:
            seen = Seen("CANCELLED")  # of an array, tasks that were cancelled before they began are in no list
        if seen is None and time.monotonic() - since >= self._lag_s:
            seen = self._remembered(slurm_id)
        patience_s = self._gone_s if seen is None else self._lag_s
        begun, stopped = bool(claimant), os.path.exists(files.stop_asked)
        end, sure = end_of(seen, slurm_id, begun=begun, stopped=stopped, batch=batch)
        if not sure and time.monotonic() - since < patience_s:
            return state
        now = time.time()
        state.pop("terminated", None)
        files.write_state(state | end | {"ProcessingEndTime": now, "LastModifiedTime": now})
        return files.state()

    def _remembered(self, slurm_id: str) -> Seen | None:
        """What the accounts say of a job; one question is about all jobs that Slurm's queue has lost."""
        if slurm_id not in self._accounts:
            lost = [self._slurm_ids[name] for name in self._over_since if name in self._slurm_ids]
            self._accounts = dict.fromkeys(lost) | slurm_commands.remembered(lost)
        return self._accounts[slurm_id]

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that a job's instances have written so far; of one that did not begin, what Slurm has written."""
        files = self._find("DescribeProcessingJob", job_name)[0]
        job = files.request() or {}
        if any(os.path.exists(files.log(host)) for host in job["hosts"]):
            return super().log_lines(job_name)
        return Batch(self.root, job["batch"]).log_lines()

    # ---- stopping ----------------------------------------------------------------------------------------------

    def stop_processing_jobs(self, requests: Sequence[dict[str, Any]]) -> list[Exception | None]:
        """Stop jobs, with as few calls of Slurm as possible: for each None, or the error that it would raise alone."""
        errors: list[Exception | None] = []
        together: list[JobFiles] = []
        for request in requests:
            try:
                together.append(self._asked_to_stop(**request))
            except (BotoCoreError, ClientError) as error:
                errors.append(error)
            else:
                errors.append(None)
        self._cancel(together)
        return errors

    def _stop(self, files: JobFiles) -> None:
        self._cancel([files])

    def _cancel(self, jobs: Sequence[JobFiles]) -> None:
        ids = [self._slurm_id(files.name, files.request() or {}) for files in jobs]
        look = self._look().jobs
        waiting = {each for each in ids if each not in look or look[each].state in WAITING}
        slurm_commands.cancel([each for each in ids if each and each in waiting], runs=False)
        slurm_commands.cancel([each for each in ids if each and each not in waiting], runs=True)
        self._seen = (0.0, self._seen[1])


def _filled(request: dict[str, Any]) -> dict[str, Any]:
    """A request by ``Resources`` with what it may leave open; any other as it is."""
    if "Resources" not in request:
        return request
    cluster = (request.get("ProcessingResources") or {}).get("ClusterConfig") or {}
    cluster = {"InstanceCount": 1, "InstanceType": request["Resources"].get("partition") or "slurm"} | cluster
    application = {"ImageUri": "none"} | request.get("AppSpecification", {})
    return request | {"AppSpecification": application, "ProcessingResources": {"ClusterConfig": cluster}}


def _as_service_knows_it(request: dict[str, Any]) -> dict[str, Any]:
    """A request with what SageMaker alone needs, so that the rest can be checked by its own rules."""
    if "Resources" not in request:
        return request
    cluster = request["ProcessingResources"]["ClusterConfig"]
    cluster = {"VolumeSizeInGB": 1} | cluster | {"InstanceType": "ml.m5.xlarge"}
    whole = {"RoleArn": NOBODY} | request | {"ProcessingResources": {"ClusterConfig": cluster}}
    if variables := whole.get("Environment"):  # whose values may be longer here
        whole["Environment"] = {name: value[:LONGEST] for name, value in variables.items()}
    return {name: value for name, value in whole.items() if name != "Resources"}
