"""The files of a local Processing job, which are all that its engine and its supervisor share.

    <root>/lock                       held while a job is made, and while one is declared dead
    <root>/live/<job>                 there until the job ends; holds its number of instances
    <root>/jobs/<job>/request.json    what was asked for, and what the engine adds; written once
                      state.json      status, times, messages, process ids; replaced as a whole
                      alive           locked by the supervisor as long as it lives; holds its process id
                      stop            StopProcessingJob was called
                      logs/algo-1.log what instance algo-1 wrote to stdout and stderr
                      algo-1/         the instance's volume; gone when the job has ended

The supervisor imports this module before anything else: standard library only, and little of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDED = ("Completed", "Failed", "Stopped")
MESSAGE_LIMIT = 1024  # characters of an ExitMessage and of a FailureReason


class JobFiles:
    """One job's files under an engine's root folder."""

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.folder = os.path.join(root, "jobs", name)
        self.alive = os.path.join(self.folder, "alive")
        self.stop_asked = os.path.join(self.folder, "stop")
        self.logs = os.path.join(self.folder, "logs")
        self.live_mark = os.path.join(root, "live", name)
        self._request = os.path.join(self.folder, "request.json")
        self._state = os.path.join(self.folder, "state.json")

    def volume(self, host: str) -> str:
        """The folder of one instance's own files."""
        return os.path.join(self.folder, host)

    def log(self, host: str) -> str:
        """The file with what one instance wrote to stdout and stderr."""
        return os.path.join(self.logs, f"{host}.log")

    def create(self, request: dict[str, Any], instances: int) -> None:
        """Write down a new job. The caller holds the root's lock."""
        os.makedirs(os.path.dirname(self.folder), mode=0o700, exist_ok=True)  # requests and logs are their owner's
        os.makedirs(self.logs, exist_ok=True)
        os.makedirs(os.path.dirname(self.live_mark), exist_ok=True)
        replace(self.live_mark, str(instances))
        replace(self._request, json.dumps(request))

    def request(self) -> dict[str, Any] | None:
        """The request of the job; None if there is no such job."""
        return read(self._request)

    def state(self) -> dict[str, Any]:
        """How far the job is."""
        return read(self._state) or {"ProcessingJobStatus": "InProgress"}

    def write_state(self, state: dict[str, Any]) -> None:
        """Say how far the job is; once it has ended, it counts as an instance in use no more."""
        replace(self._state, json.dumps(state))
        if state["ProcessingJobStatus"] in ENDED:
            self.forget()

    def forget(self) -> None:
        """Count the job as one that uses instances no more."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.live_mark)

    def ask_to_stop(self) -> None:
        """Record a request to stop the job; a signal wakes the supervisor."""
        replace(self.stop_asked, str(time.time()))

    def supervised(self) -> bool:
        """Whether the job's supervisor is alive."""
        try:
            descriptor = os.open(self.alive, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def supervisor(self) -> int | None:
        """The process id of the job's supervisor; None where it is not alive."""
        if not self.supervised():
            return None
        with open(self.alive, encoding="ascii") as file:
            text = file.read()
        return int(text) if text.strip() else None

    def remove_volumes(self) -> None:
        """Free what the instances took on the disk; the logs stay."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            volumes = [entry.path for entry in entries if entry.name.startswith("algo-") and entry.is_dir()]
            for volume in volumes:
                shutil.rmtree(volume, ignore_errors=True)


@contextlib.contextmanager
def root_lock(root: str) -> Iterator[None]:
    """Keep every other process from making jobs under ``root``, and from declaring one dead."""
    os.makedirs(root, mode=0o700, exist_ok=True)
    descriptor = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: str) -> dict[str, Any] | None:
    """A JSON object; None where the file is not there or a crash of the machine spoiled it."""
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content


def replace(path: str, text: str) -> None:
    """Write a small file so that nobody ever reads half of it."""
    temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
