"""A job's porter: a process that brings input and takes output away, so that its supervisor need not.

S3 takes packages, threads and memory; the supervisor forks, so it keeps to one thread and the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from shardkit.engines.kernel import die_with
from shardkit.engines.transfer import InputMissing, bring, send

if TYPE_CHECKING:
    from collections.abc import Sequence


class Porter:
    """Starts when it is first needed; dies with its supervisor.

    Args:
        sys_path: where the engine's interpreter finds its packages; the supervisor's own finds none.
    """

    def __init__(self, sys_path: Sequence[str]) -> None:
        self._sys_path = sys_path
        self._process = 0
        self._pipes: tuple[Any, Any] | None = None

    def bring(self, request: dict[str, Any], volumes: dict[str, str]) -> None:
        """Copy a job's input to its instances.

        Raises:
            InputMissing: an object is not there, or two of them would have one path.
        """
        self._ask("bring", request, volumes)

    def send(self, files: list[tuple[str, str, str]], *, settled: bool) -> None:
        """Upload files, each given as path, key and URI of the output's folder.

        ``settled``: nobody will write to them any more.

        Raises:
            OSError: one of them could not be written; the message says which.
        """
        if files:
            self._ask("send", files, settled)

    def close(self) -> None:
        """End the porter, whatever it is doing."""
        if self._pipes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            for pipe in self._pipes:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._pipes = None

    def _ask(self, task: str, *arguments: Any) -> None:
        asks, answers = self._pipes or self._start()
        line = ""
        with contextlib.suppress(BrokenPipeError):
            asks.write(json.dumps([task, *arguments]) + "\n")
            asks.flush()
            line = answers.readline()
        if not line:
            self.close()
            raise OSError("the process that transfers the job's files died")
        kind, message = json.loads(line)
        if kind == InputMissing.__name__:
            raise InputMissing(message)
        if kind:
            raise OSError(message)

    def _start(self) -> tuple[Any, Any]:
        tasks, asks = os.pipe()
        answers, replies = os.pipe()
        parent = os.getpid()
        self._process = os.fork()
        if self._process == 0:
            os.close(asks)
            os.close(answers)
            _serve(parent, tasks, replies, self._sys_path)
        os.close(tasks)
        os.close(replies)
        self._pipes = os.fdopen(asks, "w", encoding="utf-8"), os.fdopen(answers, encoding="utf-8")
        return self._pipes


def _serve(parent: int, tasks: int, replies: int, sys_path: Sequence[str]) -> NoReturn:
    """Do all tasks, in this forked process, until no more can come."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.closerange(3, min(tasks, replies))
        die_with(parent, signal.SIGKILL)
        sys.path[:] = [*sys.path, *(path for path in sys_path if path not in sys.path)]
        with os.fdopen(tasks, encoding="utf-8") as lines, os.fdopen(replies, "w", encoding="utf-8") as answers:
            for line in lines:
                task, *arguments = json.loads(line)
                answers.write(json.dumps(_done(task, arguments)) + "\n")
                answers.flush()
    finally:
        os._exit(0)


def _done(task: str, arguments: list[Any]) -> tuple[str, str]:
    """Do one task; return the name and the message of its error, both empty if there is none."""
    try:
        if task == "bring":
            bring(*arguments)
        else:
            send(*arguments)
    except Exception as error:  # noqa: BLE001  # whatever it is, the job reports it
        return type(error).__name__, str(error) or type(error).__name__
    return "", ""
