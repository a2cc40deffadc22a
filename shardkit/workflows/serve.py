"""`shardkit workflow serve`: begins runs of a workflow when its calendar or its webhook says so.

Each run that is due, or was asked for, is written down before anything else is done. A server that dies may be started
again: it goes on with the runs that have not ended, before it begins others.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import signal
import threading
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError, RunInterrupted, ShardkitError
from shardkit.runs.scheduler import Timetable, WallClock
from shardkit.runs.signals import ended_by
from shardkit.storage.local_folder import LocalFolder
from shardkit.times import now
from shardkit.workflows.document import CALENDAR, WEBHOOK
from shardkit.workflows.run_files import runs_in, state_of
from shardkit.workflows.start import BY_CALENDAR, BY_HAND, BY_WEBHOOK, begin, carry_out, opened
from shardkit.workflows.telling import RunStopped
from shardkit.workflows.webhook import Busy, Full, listening, token_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shardkit.runs.scheduler import Clock
    from shardkit.storage.locks import Held
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.running import WorkflowRun

MOST_WAITING = 100
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Server:
    """Serves one workflow in one environment.

    Args:
        workflow: The workflow, as it is in its environment.
        state: The folder of its runs.
        containers: The container runtime for the steps that have an image.
        say: Gets a line about whatever happens.
        clock: Gives the time.

    Raises:
        PipelineError: the workflow runs at once, so that there is nothing to serve.
    """

    def __init__(
        self,
        workflow: Workflow,
        *,
        state: str | None = None,
        containers: str | None = None,
        say: Callable[[str], object],
        clock: Clock | None = None,
    ) -> None:
        if workflow.mode not in (CALENDAR, WEBHOOK):
            raise PipelineError(
                f"{workflow.name} has mode: {workflow.mode}, so that nothing but you begins its runs.",
                hint="Run it: shardkit workflow run; or set mode: calendar or webhook.",
            )
        self.workflow, self._state, self._containers, self._say = workflow, state, containers, say
        self._clock = clock or WallClock()
        self._home = LocalFolder(state_of(workflow, state))
        self._waiting: collections.deque[WorkflowRun] = collections.deque()
        self._running: WorkflowRun | None = None
        self._changed = threading.Condition()

    def serve(self) -> None:
        """Begin runs and carry them out, one after the other, until Ctrl-C or SIGTERM.

        Raises:
            RunBusy: another process serves the same workflow.
            RunInterrupted: by Ctrl-C or SIGTERM; the steps of a run in progress go on.
        """
        self._home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        serve = self._by_calendar if self.workflow.mode == CALENDAR else self._by_webhook
        with ended_by(signal.SIGTERM, signal.SIGINT):
            serve()

    def _by_calendar(self) -> None:
        calendar = self.workflow.calendar
        if calendar is None:
            raise PipelineError(f"{self.workflow.name} has no calendar.")
        times = Timetable(calendar.when(), self._home, self._clock)
        with times.held() as held:
            self._take_up()
            times.note_at_least(self._last_begun())
            while True:
                self._carry_out_all(held)
                if (due := times.due()) > self._clock.now():
                    self._say(f"{self.workflow.name}: next at {due:%Y-%m-%d %H:%M %Z}.")
                    times.await_due(due, held)
                held.check()
                begun = self._clock.now()
                with self._reported("a run could not begin"):
                    self._waiting.append(self._begun({}, BY_CALENDAR))
                times.note(begun)

    def _by_webhook(self) -> None:
        webhook = self.workflow.webhook
        if webhook is None:
            raise PipelineError(f"{self.workflow.name} has no webhook.")
        token = token_of(webhook)
        busy = f"Another process answers the webhook of {self.workflow.name}."
        with self._home.lock("webhook.lock", busy) as held:
            self._take_up()
            with listening(webhook, token, self._called, say=self._say) as address:
                self._say(f"{self.workflow.name}: POST to http://{address}{webhook.path} begins a run.")
                if webhook.host not in LOOPBACK:
                    self._say("Other machines may reach it, and it speaks plain HTTP: put a server with TLS before it.")
                while True:
                    self._carry_out_all(held)
                    with self._changed:
                        try:
                            self._changed.wait_for(lambda: self._waiting)
                        except KeyboardInterrupt:
                            raise RunInterrupted("The webhook is closed; no run was in progress.") from None

    def _called(self, params: Mapping[str, str]) -> str:
        """Begin a run because the webhook was called; returns its id. Each call comes in a thread of its own.

        Raises:
            Busy: there is a run, and the webhook takes one at a time.
            Full: too many runs wait.
            PipelineError: a parameter will not do.
        """
        with self._changed:
            webhook = self.workflow.webhook
            if webhook is not None and webhook.runs == "one" and (self._running or self._waiting):
                raise Busy((self._running or self._waiting[0]).files.run_id)
            if len(self._waiting) >= MOST_WAITING:
                raise Full(len(self._waiting))
            run = self._begun(params, BY_WEBHOOK)
            self._waiting.append(run)
            self._changed.notify_all()
        self._say(f"{now()[:16]} run {run.files.run_id} was asked for.")
        return run.files.run_id

    def _begun(self, params: Mapping[str, str], by: str) -> WorkflowRun:
        return begin(
            self.workflow,
            params,
            state=self._state,
            by=by,
            begun=self._clock.now().isoformat(timespec="milliseconds"),
            containers=self._containers,
            say=self._say,
        )

    def _take_up(self) -> None:
        """Take up the runs that an earlier server has begun, and that have not ended."""
        found = [files for files in runs_in(self._home.root) if files.ended() is None]
        runs = [opened(self.workflow, files, say=self._say) for files in found if files.about()["by"] != BY_HAND]
        left = [run for run in runs if run.is_open()]
        self._waiting.extend(sorted(left, key=lambda run: str(run.files.about()["begun"])))
        if left:
            self._say(f"Going on with {', '.join(run.files.run_id for run in self._waiting)}.")

    def _last_begun(self) -> datetime.datetime | None:
        """When the calendar's last run was written down, which is before that is noted."""
        runs = [files.about() for files in runs_in(self._home.root)]
        begun = [about["begun"] for about in runs if about["by"] == BY_CALENDAR]
        return datetime.datetime.fromisoformat(max(begun)) if begun else None

    def _carry_out_all(self, held: Held) -> None:
        """Carry out the runs that wait."""
        while True:
            with self._changed:
                self._running = self._waiting.popleft() if self._waiting else None
            if self._running is None:
                return
            held.check()
            run = self._running
            self._say(f"{now()[:16]} run {run.files.run_id} begins.")
            with self._reported(f"run {run.files.run_id} failed"):
                carry_out(run, leave=True)
                self._say(f"{now()[:16]} run {run.files.run_id}: done.")

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Say what goes wrong, and go on; only an interruption of this process ends it."""
        try:
            yield
        except RunStopped as error:
            self._say(f"{now()[:16]} {error.command_text}")
        except RunInterrupted:
            raise
        except ShardkitError as error:
            self._say(f"{now()[:16]} {what}: {error.command_text}")
        except Exception as error:  # noqa: BLE001  whatever it was, the next run may succeed
            self._say(f"{now()[:16]} {what}: {type(error).__name__}: {error}")
