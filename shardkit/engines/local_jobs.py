"""The jobs of the local engine: started, watched and buried as processes of this machine, whatever kind they are of."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, ClassVar

from shardkit.engines import isolation
from shardkit.engines.job_folders import JobFolders, interpreter_words
from shardkit.engines.jobfiles import ENDED, JobFiles, root_lock
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


class LocalJobs(JobFolders):
    """Jobs of one kind on this machine; the arguments are as for ``LocalEngine``.

    Attributes:
        supervise: The line of Python that runs a job.
        word: What the quotas of such jobs are for.
    """

    supervise: ClassVar[str] = "from shardkit.engines.supervisor import main; main()"
    word: ClassVar[str] = "processing"

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

    def _start(self, request: dict[str, Any], content: dict[str, Any], *, failed: str = "") -> None:
        """Start a job whose file has that content, or let it fail at once."""
        files = self._files(request["ProcessingJobName"])
        try:
            with root_lock(self.root):
                self._check_name(files)
                self._check_quota(content)
                files.create(content, len(content["hosts"]))
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

    # ---- inside ------------------------------------------------------------------------------------------------

    def _check_name(self, files: JobFiles) -> None:
        """Refuse a name that another job has already. The root's lock is held."""
        if job := files.request():
            refuse(
                f"Create{self.word.capitalize()}Job",
                "ResourceInUse",
                "Job name must be unique within an AWS account and region, and a job with this name already exists "
                f"({job['arn']})",
            )

    def _check_quota(self, content: dict[str, Any]) -> None:
        """Refuse more instances than may run. The root's lock is held."""
        kind, count, word = content["instance_type"], len(content["hosts"]), self.word
        if content.get("training", {}).get("EnableManagedSpotTraining"):
            word = f"spot {word}"
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
                f"Create{self.word.capitalize()}Job",
                "ResourceLimitExceeded",
                f"The account-level service limit '{kind} for {word} job usage' is {self.max_instances} Instances, "
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
        send_signal(files.supervisor(), signal.SIGTERM)

    def _bury(self, files: JobFiles) -> dict[str, Any]:
        """Record the failure of a job whose supervisor died, and end its processes. The root's lock is held."""
        state = files.state()
        if state["ProcessingJobStatus"] in ENDED or files.supervised():
            return state
        for process in _left_behind(files):
            send_signal(process, signal.SIGKILL)
        now = time.time()
        state |= {"ProcessingJobStatus": "Failed", "FailureReason": DIED, "ProcessingEndTime": now}
        state |= {"LastModifiedTime": now}
        files.write_state(state)
        files.remove_volumes()
        return state


def send_signal(process: int | None, number: signal.Signals) -> None:
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
