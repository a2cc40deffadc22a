"""Runs files of tests side by side, in forks of one process that has collected all tests: ``pytest --forks 7``.

To collect thousands of tests, and to import what they test, takes seconds of CPU time, and much longer where nothing is
compiled yet. Forks share that. A fork runs one file after another, so that a file's tests share what they have made, and
sends the reports to the process that it is a fork of, which shows them. Where a fork dies, its test has failed, and
another one goes on with the file. Variables and folders are named as by pytest-xdist, which other plugins know.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from multiprocessing import Pipe
from multiprocessing.connection import wait
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import warm

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOOK_S = 1.0  # how often a fork is looked for whose end of the pipe something else holds open
END_S = 10.0  # how long forks may take to end that are told to


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forks", type=int, default=0, help="run so many files of tests side by side")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run all in forks, where that is asked for."""
    count: int = session.config.option.forks
    if not count or session.testsfailed or session.config.option.collectonly:
        return None
    Forks(session).run(count)
    return True


class Fork:
    """A fork as the process has it that has begun it: its tests, the one that it was given last, and whether it has done all."""

    def __init__(self, number: int, todo: list[int]) -> None:
        self.number, self.todo = number, todo
        self.connection, self.theirs = Pipe()
        self.pid = self.given = 0
        self.is_done = False


class Forks:
    """The forks, and the files that none of them has begun."""

    def __init__(self, session: pytest.Session) -> None:
        self._session, self._config = session, session.config
        files = itertools.groupby(range(len(session.items)), lambda index: session.items[index].path)
        self._files = deque(list(indices) for _, indices in files)
        self._forks: list[Fork] = []

    def run(self, count: int) -> None:
        """Run all tests in so many forks."""
        os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(count)
        self._config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # the folder of all forks' own
        try:
            for number in range(min(count, len(self._files))):
                self._begin(number, [])
            while self._forks:
                self._receive()
        finally:
            self._end()
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)

    def _begin(self, number: int, todo: list[int]) -> None:
        fork = Fork(number, todo)
        sys.stdout.flush()
        sys.stderr.flush()
        fork.pid = os.fork()
        if not fork.pid:
            for each in (fork, *self._forks):
                each.connection.close()
            Work(self._session, fork).run_to_the_end()
        fork.theirs.close()
        self._forks.append(fork)

    def _receive(self) -> None:
        ready = wait([fork.connection for fork in self._forks], LOOK_S)
        for fork in list(self._forks):
            if fork.connection in ready:
                try:
                    kind, content = fork.connection.recv()
                except (EOFError, ConnectionError):
                    self._bury(fork, os.waitpid(fork.pid, 0)[1])
                else:
                    getattr(self, f"_on_{kind}")(fork, content)
            elif not ready:
                pid, status = os.waitpid(fork.pid, os.WNOHANG)
                if pid:
                    self._bury(fork, status)

    def _is_to_stop(self) -> bool:
        return bool(self._session.shouldfail or self._session.shouldstop)

    def _on_next(self, fork: Fork, _: None) -> None:
        """Give it a test, and the one after that in the same file."""
        if self._is_to_stop():
            fork.todo = []
        elif not fork.todo and self._files:
            fork.todo = self._files.popleft()
        fork.is_done = not fork.todo
        if fork.todo:
            fork.given = fork.todo.pop(0)
        fork.connection.send(None if fork.is_done else (fork.given, *fork.todo[:1]))

    def _on_report(self, fork: Fork, data: dict[str, Any]) -> None:
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        self._config.hook.pytest_runtest_logreport(report=report)

    def _on_warning(self, _: Fork, about: dict[str, Any]) -> None:
        kind = type(about["category"], (Warning,), {})
        message = warnings.WarningMessage(kind(about["message"]), kind, about["filename"], about["lineno"])
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "when": "runtest", "nodeid": about["nodeid"], "location": None}
        )

    def _bury(self, fork: Fork, status: int) -> None:
        """Forget a fork that has ended. If it was not to, the test that it was given last has failed."""
        self._forks.remove(fork)
        fork.connection.close()
        if fork.is_done and not status:
            return
        item, code = self._session.items[fork.given], os.waitstatus_to_exitcode(status)
        how = f"The process that ran it ended with {code}."
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", how, "call")
        hook = self._config.hook
        self._on_report(fork, hook.pytest_report_to_serializable(config=self._config, report=report))
        if not fork.is_done and not self._is_to_stop():
            self._begin(fork.number, fork.todo)

    def _end(self) -> None:
        """End those that still run, as after Ctrl-C."""
        end = time.monotonic() + END_S
        for fork in self._forks:
            os.kill(fork.pid, signal.SIGINT)
        for fork in self._forks:
            while not os.waitpid(fork.pid, os.WNOHANG)[0]:
                if time.monotonic() > end:
                    os.kill(fork.pid, signal.SIGKILL)
                time.sleep(0.02)


class Work:
    """What a fork does: it runs tests as they are given to it, and sends their reports."""

    def __init__(self, session: pytest.Session, fork: Fork) -> None:
        self._session, self._config, self._name = session, session.config, f"gw{fork.number}"
        self._process: Connection = fork.theirs

    def run_to_the_end(self) -> NoReturn:
        """Run them, and end this process."""
        try:
            self._be_alone()
            self._run()
            warm.run_to_the_end(lambda: self._session._setupstate.teardown_exact(None))
        except KeyboardInterrupt:
            os._exit(pytest.ExitCode.INTERRUPTED)
        except BaseException:  # it must not be taken for the process that it is a fork of
            traceback.print_exc()
        os._exit(pytest.ExitCode.INTERNAL_ERROR)

    def _be_alone(self) -> None:
        """Have a folder and files for what tests print of its own, and report to the other process alone."""
        os.environ["PYTEST_XDIST_WORKER"] = self._name
        plugins, folders = self._config.pluginmanager, self._config._tmp_path_factory  # type: ignore[attr-defined]
        folders._basetemp = folders.getbasetemp() / self._name
        folders._basetemp.mkdir(exist_ok=True)
        capture = plugins.getplugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
        terminal = plugins.unregister(name="terminalreporter")
        plugins.register(SimpleNamespace(_tw=terminal._tw), "terminalreporter")  # others ask for its colours
        plugins.register(self)

    def _run(self) -> None:
        items, run = self._session.items, self._config.hook.pytest_runtest_protocol
        self._send("next", None)
        while given := self._process.recv():
            index, *following = given
            # What is of the session stays until the end.
            run(item=items[index], nextitem=items[following[0]] if following else self._session)
            self._send("next", None)

    def _send(self, kind: str, content: Any) -> None:
        self._process.send((kind, content))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        self._send("report", hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, nodeid: str) -> None:
        about: dict[str, Any] = {"category": warning_message.category.__name__, "message": str(warning_message.message)}
        about |= {"filename": warning_message.filename, "lineno": warning_message.lineno, "nodeid": nodeid}
        self._send("warning", about)
