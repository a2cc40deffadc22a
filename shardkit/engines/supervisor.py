"""The process that runs one local Processing job from beginning to end, apart from the process that asked for it.

    python -c "from shardkit.engines.supervisor import main; main()" ROOT JOB

It brings the input, starts every instance, waits, passes on requests to stop, watches the time, uploads the output, and
writes down how the job ended. While it lives it holds a lock, so that its death is noticed whatever the cause. It
imports only the standard library, unless it has to reach S3, so that a job starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import sys
import time
import zlib
from typing import Any

from shardkit.engines import isolation, kernel, pyenv
from shardkit.engines.jobfiles import MESSAGE_LIMIT, JobFiles
from shardkit.engines.porter import Porter
from shardkit.engines.transfer import OPT_ML, InputMissing, Outputs
from shardkit.masking import masked
from shardkit.printable import printable

TERMINATED = "InternalServerError: The job's supervisor was terminated."
UPLOAD_EVERY = 1.0  # seconds between two looks at continuous outputs
# The part of the engine's environment that a job gets: its AWS access, which stands for the role, the way
# to the network, and where the interpreter finds its packages.
HANDED_ON = re.compile(
    r"AWS_\w+|PIP_\w+|PYTHONPATH|HOME|USER|LOGNAME|TZ|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|\w+_(proxy|PROXY)"
)


class Terminated(BaseException):
    """Somebody has ended the supervisor, and not by StopProcessingJob."""


class _Stopped(BaseException):  # a request, not an error: no handler may take it for one
    """StopProcessingJob was called before the program ran."""


def main(kind: type[Supervisor] | None = None) -> None:
    """Become a process of its own, and run the job; the first process ends as soon as the second one is there.

    ``kind``: the supervisor's class.
    """
    root, name = sys.argv[1:]
    files = JobFiles(root, name)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the supervisor can handle it
    lock = os.open(files.alive, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    child = os.fork()
    if child:
        os.pwrite(lock, str(child).encode(), 0)
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    try:
        (kind or Supervisor)(files).run()
    finally:
        files.remove_volumes()


def mapped(text: str, volume: str) -> str:
    """Map an argument of an instance that does not see its own ``/opt/ml`` to the path outside."""
    ml = os.path.join(volume, "ml")
    return text if text != OPT_ML and not text.startswith(f"{OPT_ML}/") else ml + text[len(OPT_ML) :]


def _in_words(error: BaseException) -> str:
    """An error in words; a message from storage needs no class name."""
    return str(error) if isinstance(error, OSError) and error.errno is None and str(error) else repr(error)


class Supervisor:
    """Runs one job.

    Attributes:
        handed_on: The part of this process's environment that a job gets.
        longest_s: The time limit of a job whose request has none.
        look_every_s: How often it looks whether something has happened that causes no signal.
        message_file: What a program's last words are called, in ``/opt/ml/output``.
    """

    handed_on = HANDED_ON
    longest_s = 86400.0
    look_every_s = 3600.0
    message_file = "message"

    def __init__(self, files: JobFiles) -> None:
        self._files = files
        job = files.request()
        if job is None:
            raise SystemExit(f"{files.folder} holds no job.")
        self._request: dict[str, Any] = job["request"]
        self._job = job
        self._hosts: list[str] = job["hosts"]
        self._volumes = {host: files.volume(host) for host in self._hosts}
        self._porter = Porter(job["sys_path"])
        self._outputs = Outputs(self._request, self._volumes, self._porter)
        self._state = files.state()
        self._keepers: dict[int, str] = {}
        self._failed: tuple[str, int] | None = None  # the first instance that failed, and its exit code
        self._stop_reason: str | None = None  # None: not stopping; "": on request
        self._deadline = float("inf")  # the time limit or, later, the end of the grace period
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(self._signals, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._preparing = True
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        kernel.adopt_orphans()  # the children of a killed keeper

    def run(self) -> None:
        """Run the job, and write down how it ended, whatever happens."""
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            end = self._work()
        except _Stopped:
            end = {"ProcessingJobStatus": "Stopped"}
        except Terminated:
            end = self._terminated_end()
        except InputMissing as error:
            end = {"ProcessingJobStatus": "Failed", "FailureReason": f"ClientError: {error}"}
        except BaseException as error:  # noqa: BLE001  # the job must end
            import traceback

            traceback.print_exc()
            end = {"ProcessingJobStatus": "Failed", "FailureReason": f"InternalServerError: {_in_words(error)}"}
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._kill(list(self._keepers))
        self._porter.close()
        if not isolation.ends_whole(self._job["isolation"]):
            kernel.kill_descendants()
        if "FailureReason" in end:
            end["FailureReason"] = printable(masked(end["FailureReason"]))[:MESSAGE_LIMIT]
        self._say(**end, ProcessingEndTime=time.time())

    def _terminated_end(self) -> dict[str, Any]:
        """How a job ends whose supervisor was terminated."""
        return {"ProcessingJobStatus": "Failed", "FailureReason": TERMINATED}

    def _look(self) -> None:
        """Look whether something has happened that causes no signal."""

    def _say(self, **changes: Any) -> None:
        self._state |= changes | {"LastModifiedTime": time.time()}
        self._files.write_state(self._state)

    def _work(self) -> dict[str, Any]:
        self._check_stop()
        for host, volume in self._volumes.items():
            for name in ("work", "ml/output", "ml/tmp"):
                os.makedirs(os.path.join(volume, name), exist_ok=True)
            self._write_configuration(host, os.path.join(volume, "ml", "config"))
            self._write_hosts(os.path.join(volume, "hosts"))
        self._bring()
        self._outputs.make_folders()
        self._preparing = False
        self._check_stop()
        for host, volume in self._volumes.items():
            keeper = isolation.start(self._program(host, volume), self._job["isolation"])
            self._keepers[keeper] = host
        started = time.time()
        limit = (self._request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds", self.longest_s)
        self._deadline = time.monotonic() + limit
        self._say(ProcessingStartTime=started, keepers={host: keeper for keeper, host in self._keepers.items()})
        self._wait(limit)
        return self._finish()

    # ---- before ----------------------------------------------------------------------------------------------

    def _bring(self) -> None:
        """Bring the input."""
        if self._request.get("ProcessingInputs"):
            self._porter.bring(self._request, self._volumes)

    def _write_configuration(self, host: str, folder: str) -> None:
        """The files that the service puts into ``/opt/ml/config``."""
        os.makedirs(folder, exist_ok=True)
        fields = {key: value for key, value in self._request.items() if key != "Tags"}
        job = {"ProcessingJobArn": self._job["arn"], "ProcessingJobName": self._files.name} | fields
        kind = self._job["instance_type"]
        resources = {
            "current_host": host,
            "current_instance_type": kind,
            "current_group_name": "homogeneousCluster",
            "hosts": self._hosts,
            "instance_groups": [
                {"instance_group_name": "homogeneousCluster", "instance_type": kind, "hosts": self._hosts}
            ],
            "network_interface_name": "lo",
        }
        for name, content in (("processingjobconfig.json", job), ("resourceconfig.json", resources)):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                json.dump(content, file)

    def _write_hosts(self, path: str) -> None:
        """The machine's names, and those of the job's instances: each has a loopback address of its own."""
        lines = "127.0.0.1\tlocalhost\n"
        with contextlib.suppress(OSError), open(isolation.HOSTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().rstrip("\n") + "\n"
        # Two jobs at the same time may use the same ports: their instances have other addresses.
        job = zlib.crc32(self._files.folder.encode(errors="surrogateescape"))
        net = f"127.{1 + job % 254}.{job // 254 % 254}"
        names = "".join(f"{net}.{i + 1}\t{name}\n" for i, name in enumerate(self._hosts))
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{lines}{names}")

    def _program(self, host: str, volume: str) -> isolation.Program:
        """The program of one instance."""
        application = self._request["AppSpecification"]
        command = [*application["ContainerEntrypoint"], *(application.get("ContainerArguments") or [])]
        environment = {key: value for key, value in os.environ.items() if self.handed_on.fullmatch(key)}
        scratch = f"{OPT_ML}/tmp"  # noqa: S108  # its own, and short: the paths of sockets are limited
        if self._job["isolation"] == isolation.NONE:
            command = [mapped(part, volume) for part in command]
            scratch = mapped(scratch, volume)
            environment["SHARDKIT_OPT_ML"] = os.path.join(volume, "ml")
        environment |= {"LANG": "C.UTF-8", "PATH": self._job["path"], "TMPDIR": scratch, "PYTHONUNBUFFERED": "1"}
        if about := self._job.get("python"):
            folder = os.path.join(volume, "env")
            pyenv.make(folder, about)
            environment = pyenv.variables(folder, about, self._files.root, environment)
        environment |= self._request.get("Environment") or {}
        network = not (self._request.get("NetworkConfig") or {}).get("EnableNetworkIsolation", False)
        hosts = os.path.join(volume, "hosts")
        return isolation.Program(command, environment, volume, self._files.log(host), network, hosts)

    # ---- while it runs -----------------------------------------------------------------------------------------

    def _terminated(self, *_: object) -> None:
        if self._preparing:
            self._preparing = False  # once is enough
            self._check_stop(unasked=True)

    def _check_stop(self, *, unasked: bool = False) -> None:
        if os.path.exists(self._files.stop_asked):
            raise _Stopped
        if unasked:
            raise Terminated

    def _wait(self, limit: float) -> None:
        """Wait until every instance has ended."""
        continuous = self._outputs.continuous
        next_upload = time.monotonic() + UPLOAD_EVERY
        while self._reap():
            now = time.monotonic()
            if self._failed:  # the others have lost a sibling
                self._kill(list(self._keepers))
                continue
            if now >= self._deadline:
                self._out_of_time(limit)
            self._look()
            until = min(self._deadline, next_upload if continuous else float("inf")) - now
            self._sleep(max(0.0, min(until, self.look_every_s)))
            if continuous and time.monotonic() >= next_upload:
                with contextlib.suppress(OSError):  # tried again later; the last try reports it
                    self._outputs.upload_settled()
                next_upload = time.monotonic() + UPLOAD_EVERY

    def _sleep(self, seconds: float) -> None:
        """Sleep until a signal comes, and begin to stop if asked to."""
        if select.select([self._signals], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                if signal.SIGTERM in os.read(self._signals, 1024) and self._stop_reason is None:
                    asked = os.path.exists(self._files.stop_asked)
                    self._begin_to_stop("" if asked else TERMINATED)

    def _begin_to_stop(self, reason: str) -> None:
        """Send SIGTERM now; SIGKILL follows after the grace period."""
        self._stop_reason = reason
        self._deadline = time.monotonic() + self._job["stop_grace"]
        self._note_stopping()
        for keeper in self._keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGTERM)

    def _note_stopping(self) -> None:
        """Say that the job is about to stop."""
        self._say(ProcessingJobStatus="Stopping")

    def _out_of_time(self, limit: float) -> None:
        if self._stop_reason is None:
            self._begin_to_stop(f"MaxRuntimeExceeded: the job ran longer than MaxRuntimeInSeconds, {limit} s.")
        else:
            self._kill(list(self._keepers))

    def _reap(self) -> bool:
        """Note which instances have ended, and which failed first; return whether one is still running."""
        with contextlib.suppress(ChildProcessError):
            while self._keepers:
                keeper, status = os.waitpid(-1, os.WNOHANG)
                if keeper == 0:
                    break
                host, code = self._keepers.pop(keeper, None), kernel.exit_code(status)
                if host and code and not self._failed:
                    self._failed = (host, code)
        return bool(self._keepers)

    def _kill(self, keepers: list[int]) -> None:
        """Kill instances with everything that they have started, and wait until they are gone."""
        for number, patience in ((signal.SIGUSR1, 10.0), (signal.SIGKILL, 10.0)):
            for keeper in keepers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(keeper, number)
            end = time.monotonic() + patience
            while any(keeper in self._keepers for keeper in keepers) and time.monotonic() < end:
                self._reap()
                if self._keepers:
                    select.select([self._signals], [], [], 0.05)
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._signals, 1024)

    # ---- after -------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        """Upload the output; return how the job ended."""
        failed = self._failed
        completed = failed is None and self._stop_reason is None
        message = self._message(failed[0] if failed else None)
        end: dict[str, Any] = {"ExitMessage": message} if message else {}
        try:
            self._outputs.upload_rest(completed=completed)
        except Exception as error:  # noqa: BLE001  # whatever storage says
            return end | {
                "ProcessingJobStatus": "Failed",
                "FailureReason": f"ClientError: The output cannot be uploaded: {error}",
            }
        if self._stop_reason is not None:
            if self._stop_reason == TERMINATED:
                return end | self._terminated_end()
            return (
                end
                | {"ProcessingJobStatus": "Stopped"}
                | ({"FailureReason": self._stop_reason} if self._stop_reason else {})
            )
        if failed:
            tail = f", exit code: {failed[1]}"
            reason = f"AlgorithmError: {message}"[: MESSAGE_LIMIT - len(tail)] + tail
            return end | {"ProcessingJobStatus": "Failed", "FailureReason": reason}
        return end | {"ProcessingJobStatus": "Completed"}

    def _message(self, first: str | None) -> str:
        """The content of the message file: of the instance that failed, or the first one with a message."""
        for host in [first] if first else self._hosts:
            path = os.path.join(self._volumes[host], "ml", "output", self.message_file)
            with contextlib.suppress(OSError), open(path, "rb") as file:
                text = file.read(4 * MESSAGE_LIMIT).decode("utf-8", errors="replace")
                text = masked(text)[:MESSAGE_LIMIT]
                if text:
                    return text
        return ""
