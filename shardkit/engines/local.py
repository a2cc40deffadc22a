"""SageMaker Processing on this machine, without Docker: the same four calls, the same requests, the same answers.

    engine = LocalEngine()
    engine.create_processing_job(ProcessingJobName="one", ...)     # the arguments of boto3's create_processing_job
    engine.describe_processing_job(ProcessingJobName="one")["ProcessingJobStatus"]
    engine.stop_processing_job(ProcessingJobName="one")
    list(engine.log_lines("one"))

Every instance is a process tree of its own with its own ``/opt/ml``. Jobs live in files under ``root``: they go on when
the process that made them ends, and every process that uses the same root sees the same jobs. In place of S3 URIs, the
engine also takes local paths and ``file://`` URIs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, ClassVar

from shardkit.engines import isolation, pyenv, validation
from shardkit.engines.job_folders import JobFolders, interpreter_words
from shardkit.engines.jobfiles import ENDED, JobFiles, root_lock
from shardkit.engines.local_answers import answer
from shardkit.engines.validation import refuse
from shardkit.errors import PipelineError, StorageError
from shardkit.user_state import state_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIED = "InternalServerError: The process that ran the job was killed, or the machine was restarted."


def default_root() -> str:
    """Where jobs live unless another root is given: in the user's state folder."""
    return state_path("engine")


@functools.cache
def available_isolation() -> str:
    """The kind of isolation that this machine allows (see ``shardkit.engines.isolation``); probed once per process."""
    command = interpreter_words("from shardkit.engines import isolation; print(isolation.probe())")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this very interpreter
    return done.stdout.strip() if done.returncode == 0 else isolation.NONE


class LocalEngine(JobFolders):
    """Runs Processing jobs on this machine, with the methods of ``boto3.client("sagemaker")``.

    Args:
        root: the folder in which the jobs live; by default one in the user's state folder.
        max_instances: how many instances may run at once, over all jobs under ``root``; more are refused with
            ResourceLimitExceeded, as the service does. By default one per CPU, and at least 4.
        isolation: ``auto`` gives every instance its own ``/opt/ml`` where the system allows it; ``namespace`` insists
            on that; ``none`` runs shardkit's own jobs only, which find their files by path mapping.
        endpoint_url: the address of S3 for the jobs and their files; by default that of the AWS_* variables.
        stop_grace: seconds between SIGTERM and SIGKILL when a job is stopped.

    Raises:
        PipelineError: an argument cannot be used, or ``isolation="namespace"`` does not work here.
    """

    supervise: ClassVar[str] = "from shardkit.engines.supervisor import main; main()"  # what runs a job

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        max_instances: int | None = None,
        isolation: str = "auto",
        endpoint_url: str | None = None,
        stop_grace: float = 120.0,
    ) -> None:
        if isolation not in ("auto", "namespace", "none"):
            raise PipelineError(f"isolation is {isolation!r}; it is auto, namespace or none.")
        if max_instances is not None and max_instances < 1:
            raise PipelineError(f"max_instances is {max_instances}; it is at least 1.")
        kind = "none" if isolation == "none" else available_isolation()
        if isolation == "namespace" and kind == "none":
            raise PipelineError(
                "This machine does not let instances have an /opt/ml of their own.",
                hint="Allow user namespaces, or use isolation='auto': then shardkit's own jobs run by path mapping.",
            )
        whole = os.path.abspath(os.path.expanduser(root)) if root is not None else default_root()
        super().__init__(whole, isolation=kind, stop_grace=stop_grace)
        self.max_instances = max_instances or max(4, os.cpu_count() or 1)
        self.endpoint_url = endpoint_url

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        """Start a job; the arguments are those of the service's CreateProcessingJob.

        Raises:
            botocore.exceptions.ParamValidationError: a field is missing or of another type.
            botocore.exceptions.ClientError: ValidationException, ResourceInUse (the name is taken) or
                ResourceLimitExceeded (``max_instances`` are in use).
            StorageError: ``root`` cannot be written to.
        """
        return self._create(request)

    def create_failed_job(self, reason: str, **request: Any) -> dict[str, Any]:
        """Take a request as `create_processing_job` does, but let the job fail at once, with ``reason``."""
        return self._create(request, failed=reason)

    def _create(self, request: dict[str, Any], *, failed: str = "") -> dict[str, Any]:
        validation.check("CreateProcessingJob", request)
        validation.check_rules(request, isolated=self.isolation != "none")
        files = self._files(request["ProcessingJobName"])
        kind, count = validation.instances(request)
        content = self._described(request, pyenv.described())
        try:
            with root_lock(self.root):
                self._check_name(files)
                self._check_quota(kind, count)
                files.create(content, count)
                if failed:
                    now = time.time()
                    ended = {"FailureReason": failed, "ProcessingEndTime": now, "LastModifiedTime": now}
                    files.write_state({"ProcessingJobStatus": "Failed"} | ended)
                else:
                    self._supervise(files)
        except OSError as error:
            raise StorageError(
                f"The local engine cannot make a job under {self.root}: {error.strerror or error}.",
                hint="Give it another root, on a disk with free space and with the permission to write.",
            ) from error
        return answer({"ProcessingJobArn": content["arn"]})

    # ---- inside ------------------------------------------------------------------------------------------------

    def _check_name(self, files: JobFiles) -> None:
        """Refuse a name that another job has already. The root's lock is held."""
        if job := files.request():
            refuse(
                "CreateProcessingJob",
                "ResourceInUse",
                "Job name must be unique within an AWS account and region, and a job with this name already exists "
                f"({job['arn']})",
            )

    def _check_quota(self, kind: str, count: int) -> None:
        """Refuse more instances than may run. The root's lock is held."""
        live = os.path.join(self.root, "live")
        used = 0
        for name in os.listdir(live) if os.path.isdir(live) else []:
            files = JobFiles(self.root, name)
            job = files.request()
            if job is None:  # somebody has removed the job's folder
                files.forget()
            elif self._state(files, locked=True)["ProcessingJobStatus"] not in ENDED:
                used += len(job["hosts"])
            else:
                files.forget()
        if used + count > self.max_instances:
            refuse(
                "CreateProcessingJob",
                "ResourceLimitExceeded",
                f"The account-level service limit '{kind} for processing job usage' is {self.max_instances} Instances, "
                f"with current utilization of {used} Instances and a request delta of {count} Instances. (This is the "
                "local engine: wait until jobs end, or raise max_instances.)",
            )

    def _supervise(self, files: JobFiles) -> None:
        """Start the process that runs the job; return when it is on its own."""
        environment = dict(os.environ)
        if self.endpoint_url:
            environment |= {"AWS_ENDPOINT_URL_S3": self.endpoint_url}
        with open(os.path.join(files.logs, "supervisor.log"), "ab") as log:
            subprocess.run(  # noqa: S603  # this very interpreter
                [*interpreter_words(self.supervise), self.root, files.name],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,  # a job that got no supervisor counts as one whose supervisor died
            )

    def _state(self, files: JobFiles, *, locked: bool = False) -> dict[str, Any]:
        """How far a job is; one whose supervisor is dead has failed."""
        if files.name in self._ended:
            return self._ended[files.name]
        state = files.state()
        if state["ProcessingJobStatus"] not in ENDED and not files.supervised():
            if locked:
                state = self._bury(files)
            else:
                with root_lock(self.root):  # the job may be about to get its supervisor
                    state = self._bury(files)
        if state["ProcessingJobStatus"] in ENDED:
            self._ended[files.name] = state
            if os.path.exists(files.volume("algo-1")) and not files.supervised():
                files.remove_volumes()
        elif os.path.exists(files.stop_asked):
            state["ProcessingJobStatus"] = "Stopping"
        return state

    def _stop(self, files: JobFiles) -> None:
        _signal(files.supervisor(), signal.SIGTERM)

    def _bury(self, files: JobFiles) -> dict[str, Any]:
        """Record the failure of a job whose supervisor died, and end its processes. The root's lock is held."""
        state = files.state()
        if state["ProcessingJobStatus"] in ENDED or files.supervised():
            return state
        for process in _left_behind(files):
            _signal(process, signal.SIGKILL)
        now = time.time()
        state |= {"ProcessingJobStatus": "Failed", "FailureReason": DIED, "ProcessingEndTime": now}
        state |= {"LastModifiedTime": now}
        files.write_state(state)
        files.remove_volumes()
        return state


def _signal(process: int | None, number: signal.Signals) -> None:
    """Send a signal, if the process is still there."""
    if process:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _left_behind(files: JobFiles) -> Iterator[int]:
    """The processes that still write to a job's logs."""
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        for descriptor in ("1", "2"):
            with contextlib.suppress(OSError):  # not a process, no longer one, or not ours
                if os.readlink(f"/proc/{name}/fd/{descriptor}").startswith(os.path.join(files.logs, "algo-")):
                    yield int(name)
                    break
