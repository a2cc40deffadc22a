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
import heapq
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from shardkit.engines import isolation, pyenv, validation
from shardkit.engines.jobfiles import ENDED, JobFiles, root_lock
from shardkit.engines.local_answers import answer, matches, sort_key, summary_of, without_start
from shardkit.engines.validation import refuse
from shardkit.errors import PipelineError, StorageError
from shardkit.user_state import state_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROBE = (
    f"import sys; sys.path.insert(0, {PACKAGES!r}); from shardkit.engines import isolation; print(isolation.probe())"
)
START = f"import sys; sys.path.insert(0, {PACKAGES!r}); from shardkit.engines.supervisor import main; main()"
DIED = "InternalServerError: The process that ran the job was killed, or the machine was restarted."


def default_root() -> str:
    """Where jobs live unless another root is given: in the user's state folder."""
    return state_path("engine")


@functools.cache
def available_isolation() -> str:
    """The kind of isolation that this machine allows (see ``shardkit.engines.isolation``); probed once per process."""
    command = [sys.executable, "-S", "-E", "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this very interpreter
    return done.stdout.strip() if done.returncode == 0 else isolation.NONE


class ToldJob(NamedTuple):
    """A job, and the log files of its instances."""

    name: str
    arn: str
    created: float
    logs: dict[str, str]
    ended: bool


class LocalEngine:
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
        self.root = os.path.abspath(os.path.expanduser(root)) if root is not None else default_root()
        self.max_instances = max_instances or max(4, os.cpu_count() or 1)
        self.endpoint_url = endpoint_url
        self.stop_grace = stop_grace
        self.isolation = "none" if isolation == "none" else available_isolation()
        if isolation == "namespace" and self.isolation == "none":
            raise PipelineError(
                "This machine does not let instances have an /opt/ml of their own.",
                hint="Allow user namespaces, or use isolation='auto': then shardkit's own jobs run by path mapping.",
            )
        # Jobs that have ended do not change: neither their state nor their entry in a list.
        self._ended: dict[str, dict[str, Any]] = {}
        self._listed: dict[str, dict[str, Any]] = {}

    # ---- the four calls --------------------------------------------------------------------------------------

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
        name = request["ProcessingJobName"]
        files = JobFiles(self.root, name)
        kind, count = validation.instances(request)
        account = request["RoleArn"].split(":")[4]
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        arn = f"arn:aws:sagemaker:{region}:{account}:processing-job/{name}"
        fields = {key: value for key, value in request.items() if key != "ProcessingJobName"}
        content = {
            "request": fields,
            "arn": arn,
            "created": time.time(),
            "hosts": [f"algo-{i + 1}" for i in range(count)],
            "instance_type": kind,
            "isolation": self.isolation,
            "stop_grace": self.stop_grace,
            "path": f"{os.path.dirname(sys.executable)}:{PATH}",
            "sys_path": [path for path in sys.path if path],
            "python": pyenv.described(),
        }
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
        return answer({"ProcessingJobArn": arn})

    def describe_processing_job(self, **request: Any) -> dict[str, Any]:
        """Return a job's request and how far the job is.

        Raises:
            botocore.exceptions.ClientError: ValidationException, there is no such job.
        """
        validation.check("DescribeProcessingJob", request)
        files, job = self._find("DescribeProcessingJob", request["ProcessingJobName"])
        about = summary_of(files, job, self._state(files))
        fields = dict(job["request"])
        fields.pop("Tags", None)
        if preferences := fields["ProcessingResources"]["ClusterConfig"].get("InstancePreferences"):
            cluster = fields["ProcessingResources"]["ClusterConfig"] | {
                "InstancePreferences": preferences,
                "SelectedInstanceType": job["instance_type"],
                "SelectedInstanceCount": len(job["hosts"]),
            }
            fields["ProcessingResources"] = {"ClusterConfig": cluster}
        return answer(fields | about)

    def list_processing_jobs(self, **request: Any) -> dict[str, Any]:
        """List jobs, newest first unless asked otherwise; at most ``MaxResults`` (default 10), then a NextToken.

        Raises:
            botocore.exceptions.ClientError: ValidationException, a filter or the token cannot be used.
        """
        validation.check("ListProcessingJobs", request)
        size = request.get("MaxResults", 10)
        descending = request.get("SortOrder", "Descending") == "Descending"
        key = sort_key(request.get("SortBy", "CreationTime"))
        after = validation.read_token(request)
        jobs = [about for about in self._summaries(request.get("NameContains", "")) if matches(about, request)]
        if after is not None:
            jobs = [about for about in jobs if (key(about) < after if descending else key(about) > after)]
        pick: Callable[..., list[dict[str, Any]]] = heapq.nlargest if descending else heapq.nsmallest
        page = pick(size + 1, jobs, key=key)
        content: dict[str, Any] = {"ProcessingJobSummaries": [without_start(about) for about in page[:size]]}
        if len(page) > size:
            content["NextToken"] = validation.make_token(request, key(page[size - 1]))
        return answer(content)

    def stop_processing_job(self, **request: Any) -> dict[str, Any]:
        """Stop a job: SIGTERM to its instances, SIGKILL ``stop_grace`` seconds later.

        Raises:
            botocore.exceptions.ClientError: ValidationException, there is no such job, or it has ended.
        """
        operation = "StopProcessingJob"
        validation.check(operation, request)
        files, _ = self._find(operation, request["ProcessingJobName"])
        status = self._state(files)["ProcessingJobStatus"]
        if status in ENDED:
            refuse(
                operation, "ValidationException", f"The request was rejected because the processing job is {status}."
            )
        files.ask_to_stop()
        _signal(files.supervisor(), signal.SIGTERM)
        return answer({})

    # ---- beyond the service ------------------------------------------------------------------------------------

    def logs_folder(self, job_name: str) -> str:
        """The folder with what every instance of a job wrote to stdout and stderr: ``algo-1.log`` and so on."""
        return self._find("DescribeProcessingJob", job_name)[0].logs

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that a job's instances have written so far; with several instances, each line names its own.

        Raises:
            botocore.exceptions.ClientError: ValidationException, there is no such job.
        """
        files, job = self._find("DescribeProcessingJob", job_name)
        return _lines(files, job["hosts"])

    def told_jobs(self, part: str, *, exact: bool) -> Iterator[ToldJob]:
        """The jobs whose names begin with ``part``, or the one of that name, with the paths of their logs."""
        folder = os.path.join(self.root, "jobs")
        names = [part] if exact else sorted(os.listdir(folder) if os.path.isdir(folder) else [])
        for name in names:
            files = JobFiles(self.root, name)
            job = files.request() if name.startswith(part) else None
            if job is not None:
                logs = {host: files.log(host) for host in job["hosts"]}
                ended = self._state(files)["ProcessingJobStatus"] in ENDED
                yield ToldJob(name, job["arn"], job["created"], logs, ended)

    def tags(self, job_name: str) -> list[dict[str, str]]:
        """The tags that a job was made with."""
        tags: list[dict[str, str]] = self._find("ListTags", job_name)[1]["request"].get("Tags") or []
        return tags

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
                [sys.executable, "-S", "-E", "-c", START, self.root, files.name],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,  # a job that got no supervisor counts as one whose supervisor died
            )

    def _find(self, operation: str, name: str) -> tuple[JobFiles, dict[str, Any]]:
        files = JobFiles(self.root, name)
        job = files.request()
        if job is None:
            refuse(operation, "ValidationException", f"Could not find requested job with name: {name}")
        return files, job

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

    def _summaries(self, part: str) -> Iterator[dict[str, Any]]:
        """The entry in a list of every job whose name contains ``part``."""
        folder = os.path.join(self.root, "jobs")
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if part not in name:
                continue
            if name in self._listed:
                yield self._listed[name]
                continue
            files = JobFiles(self.root, name)
            if job := files.request():
                about = summary_of(files, job, self._state(files))
                if about["ProcessingJobStatus"] in ENDED:
                    self._listed[name] = about
                yield about


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


def _lines(files: JobFiles, hosts: list[str]) -> Iterator[str]:
    for host in hosts:
        try:
            with open(files.log(host), encoding="utf-8", errors="replace") as file:
                for line in file:
                    text = line.rstrip("\n")
                    yield text if len(hosts) == 1 else f"{host}: {text}"
        except FileNotFoundError:
            continue
