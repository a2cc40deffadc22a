"""An engine whose jobs are folders under one root: what does not depend on who runs their processes.

Any process that uses the same root sees the same jobs. A subclass says how a job is started, how far it is, and how it
is stopped; this module answers the four calls as the service does.
"""

from __future__ import annotations

import heapq
import os
import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from shardkit.engines import validation
from shardkit.engines.jobfiles import ENDED, JobFiles
from shardkit.engines.local_answers import answer, matches, sort_key, summary_of, without_start
from shardkit.engines.validation import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class ToldJob(NamedTuple):
    """A job, and the log files of its instances."""

    name: str
    arn: str
    created: float
    logs: dict[str, str]
    ended: bool


def interpreter_words(code: str) -> list[str]:
    """The command that runs a line of this package with this very interpreter, and with little of it loaded."""
    return [sys.executable, "-S", "-E", "-c", f"import sys; sys.path.insert(0, {PACKAGES!r}); {code}"]


class JobFolders(ABC):
    """Answers the calls of ``boto3.client("sagemaker")`` from the folders of jobs under ``root``.

    Args:
        root: the folder.
        isolation: what the instances of new jobs get (see ``shardkit.engines.isolation``).
        stop_grace: seconds between SIGTERM and SIGKILL when a job is stopped.
    """

    def __init__(self, root: str, *, isolation: str, stop_grace: float) -> None:
        self.root = root
        self.isolation = isolation
        self.stop_grace = stop_grace
        # Jobs that have ended do not change: neither their state nor their entry in a list.
        self._ended: dict[str, dict[str, Any]] = {}
        self._listed: dict[str, dict[str, Any]] = {}

    # ---- what a subclass says ----------------------------------------------------------------------------------

    @abstractmethod
    def _state(self, files: JobFiles) -> dict[str, Any]:
        """How far a job is, according to its files and to the process that runs it."""

    @abstractmethod
    def _stop(self, files: JobFiles) -> None:
        """Let a job know that it has been asked to stop."""

    def _files(self, name: str) -> JobFiles:
        return JobFiles(self.root, name)

    # ---- the calls ---------------------------------------------------------------------------------------------

    def _described(self, request: dict[str, Any], python: dict[str, Any]) -> dict[str, Any]:
        """What the file of a new job holds: the request, and what its process needs to know beside it."""
        name = request["ProcessingJobName"]
        kind, count = validation.instances(request)
        account = request["RoleArn"].split(":")[4]
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {
            "request": {key: value for key, value in request.items() if key != "ProcessingJobName"},
            "arn": f"arn:aws:sagemaker:{region}:{account}:processing-job/{name}",
            "created": time.time(),
            "hosts": [f"algo-{i + 1}" for i in range(count)],
            "instance_type": kind,
            "isolation": self.isolation,
            "stop_grace": self.stop_grace,
            "path": f"{os.path.dirname(sys.executable)}:{PATH}",
            "sys_path": [path for path in sys.path if path],
            "python": python,
        }

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
        self._stop(self._asked_to_stop(**request))
        return answer({})

    def _asked_to_stop(self, **request: Any) -> JobFiles:
        """The job of a request to stop it, after its files say that it was asked to."""
        operation = "StopProcessingJob"
        validation.check(operation, request)
        files, _ = self._find(operation, request["ProcessingJobName"])
        status = self._state(files)["ProcessingJobStatus"]
        if status in ENDED:
            refuse(
                operation, "ValidationException", f"The request was rejected because the processing job is {status}."
            )
        files.ask_to_stop()
        return files

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
            files = self._files(name)
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

    def _find(self, operation: str, name: str) -> tuple[JobFiles, dict[str, Any]]:
        files = self._files(name)
        job = files.request()
        if job is None:
            refuse(operation, "ValidationException", f"Could not find requested job with name: {name}")
        return files, job

    def _summaries(self, part: str) -> Iterator[dict[str, Any]]:
        """The entry in a list of every job whose name contains ``part``."""
        folder = os.path.join(self.root, "jobs")
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if part not in name:
                continue
            if name in self._listed:
                yield self._listed[name]
                continue
            files = self._files(name)
            if job := files.request():
                about = summary_of(files, job, self._state(files))
                if about["ProcessingJobStatus"] in ENDED:
                    self._listed[name] = about
                yield about


def _lines(files: JobFiles, hosts: list[str]) -> Iterator[str]:
    for host in hosts:
        try:
            with open(files.log(host), encoding="utf-8", errors="replace") as file:
                for line in file:
                    text = line.rstrip("\n")
                    yield text if len(hosts) == 1 else f"{host}: {text}"
        except FileNotFoundError:
            continue
