"""The state of a run, in numbers and in a word: a pure function of its folder."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import asdict, dataclass, field
from shlex import quote
from typing import TYPE_CHECKING, Any

from shardkit.dataset.checks import replaced_by
from shardkit.dataset.current import current_result
from shardkit.errors import Damaged, ShardkitError, WrittenByNewer
from shardkit.hints import Hint, as_command, is_command, joined
from shardkit.runfolder.attempt import resume_hint
from shardkit.runfolder.display import Quiet
from shardkit.runfolder.heartbeats import UNKNOWN
from shardkit.runfolder.ledger import Ledger
from shardkit.runfolder.names import ALL_SHARDS, STOP
from shardkit.runfolder.steps import advice
from shardkit.runs.checked import outcome, outcome_text
from shardkit.runs.quarantine import elsewhere
from shardkit.storage.requests import count_of, repeats_text
from shardkit.storage.side_by_side import together
from shardkit.units import counted, first_line, human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.document_types import Heartbeat, LoggedLine, Result
    from shardkit.runfolder.folder import RunFolder

COUNTS_SHOWN, LINES_SHOWN = 10, 5
JOB_SILENCE_S = 30.0  # a job notes every few seconds that it is at work
CLOCKS_APART_S = 900.0  # a job's clock is ahead by so much at most, or was wrong


@dataclass(frozen=True)
class Summary:
    """A run in numbers.

    ``status`` is ``running``, ``interrupted`` (can be resumed), ``failed`` or ``done``; ``records`` counts listed,
    done, quarantined and skipped. ``seconds`` is the wall time of all attempts together. ``repeated`` counts the
    requests to object stores that were made again, by the reason. ``quarantined_elsewhere`` counts quarantined records
    in those days of the dataset that other runs have made. ``stolen`` counts the records of slow jobs that others have
    done, by the shard and by the shard of the job that has done them. ``counts`` are the sums of what the function has
    counted with `Record.count` in the records that this run has done. Of what it has logged with `Record.log`, ``log``
    has the first lines, each with the ``key`` of its record, and ``logged`` says how many lines there were. ``reason``
    says why a run failed, ``checks`` how the checks of its new files ended (``passed``, ``failed``, ``accepted``, and
    whether they are ``held`` aside), ``replaced_by`` names the run whose dataset has replaced this one's, and
    ``set_aside`` is about records that a finished run has left out.
    """

    run_id: str
    status: str
    records: dict[str, int]
    rows: int
    files: int
    bytes_in: int
    bytes_out: int
    seconds: float
    output: str
    run_folder: str
    repeated: dict[str, int] = field(default_factory=dict)
    quarantined_elsewhere: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    log: list[LoggedLine] = field(default_factory=list)
    logged: int = 0
    stolen: dict[str, dict[str, int]] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    message: str | None = None
    reason: str | None = None
    replaced_by: str | None = None
    set_aside: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As ``run --json`` prints it: the last four only where there is one."""
        content = asdict(self)
        empty = [name for name in ("stolen", "checks", "reason", "replaced_by") if not content[name]]
        for name in ("message", "set_aside", *empty):
            del content[name]
        return content

    def __str__(self) -> str:
        return self._text(str)

    @property
    def command_text(self) -> str:
        """The same as the command line prints it."""
        return self._text(as_command)

    def _text(self, face: Callable[[str], str]) -> str:
        facts = (f"  {name:<8} {text}" for name, text in self.facts(face))
        return "\n".join([f"Run {self.run_id}: {self.status}.", *facts, *(f"  {text}" for text in self.messages(face))])

    def facts(self, face: Callable[[str], str] = str) -> list[tuple[str, str]]:
        """The numbers as texts, each with its name; ``face`` chooses the language of advice."""
        facts = [
            ("records", self._records_text()),
            self._output_fact(),
            ("input", f"{human_bytes(self.bytes_in)} in {human_seconds(self.seconds)}"),
        ]
        if self.quarantined_elsewhere:
            records = counted(self.quarantined_elsewhere, "record")
            verb = "is" if self.quarantined_elsewhere == 1 else "are"
            see = Hint(f"sk.open_run({self.output!r}).failures()", f"shardkit failures {quote(self.output)}")
            facts.append(("others", f"{records} of other days {verb} in quarantine: {face(see)}"))
        if self.checks:
            facts.append(("checks", outcome_text(self.checks)))
        if self.stolen:
            facts.append(("stolen", self._stolen_text()))
        if repeats := repeats_text(self.repeated):
            facts.append(("requests", repeats))
        return [*facts, *self._note_facts()]

    def messages(self, face: Callable[[str], str] = str) -> list[str]:
        """What there is to say about the run beside its numbers."""
        return [face(text) for text in (self.message, self.set_aside) if text]

    def _repr_pretty_(self, printer: Any, _: bool) -> None:  # noqa: FBT001  IPython passes it so
        printer.text(str(self))

    def _repr_html_(self) -> str:
        from shardkit.runs.views import summary_view

        return summary_view(self)

    def _records_text(self) -> str:
        n, rest = self.records, self._open()
        text = f"{n['listed']:,} listed = {n['done']:,} done + {n['quarantined']:,} quarantined"
        return f"{text} + {n['skipped']:,} skipped" + (f" + {rest:,} open" if rest else "")

    def _output_fact(self) -> tuple[str, str]:
        rows, size = counted(self.rows, "row"), human_bytes(self.bytes_out)
        if self.status != "done":
            return "so far", f"{rows}, {size}"
        if self.replaced_by:
            return "dataset", f"replaced by run {self.replaced_by}; it had {rows}"
        return "dataset", f"{rows} in {counted(self.files, 'file')}, {size}, in {self.output}"

    def _note_facts(self) -> Iterator[tuple[str, str]]:
        """What the function has counted and logged."""
        names = list(self.counts)
        for name in names[:COUNTS_SHOWN]:
            amount = self.counts[name]
            yield "counted", f"{name}: {amount:,}" if isinstance(amount, int) else f"{name}: {amount:,.6g}"
        if len(names) > COUNTS_SHOWN:
            yield "counted", f"... and {counted(len(names) - COUNTS_SHOWN, 'more name')}"
        for line in self.log[:LINES_SHOWN]:
            yield "logged", f"{line['key']}: {line['text']}"
        if self.logged > len(self.log[:LINES_SHOWN]):
            yield "logged", f"... and {counted(self.logged - min(len(self.log), LINES_SHOWN), 'more line')}"

    def _stolen_text(self) -> str:
        records = sum(sum(by.values()) for by in self.stolen.values())
        shards = f"of {counted(len(self.stolen), 'slow shard')}"
        jobs = counted(len({job for by in self.stolen.values() for job in by}), "other job")
        return f"{counted(records, 'record')} {shards}, done by {jobs}"

    def _open(self) -> int:
        n = self.records
        return n["listed"] - n["done"] - n["quarantined"] - n["skipped"]


def summarize(folder: RunFolder, read: Ledger | None = None, *, live: int = 0) -> Summary:
    """A run in numbers.

    ``read`` is its ledger, if that has been read already; ``live`` is how many of its jobs the engine has, as far as
    the caller knows.
    """
    folder.plan()  # which is kept for the ledger, and without which nothing can be said
    asked = [
        lambda: _result(folder),
        lambda: read or Ledger(folder),
        folder.heartbeats,
        folder.is_locked,
        lambda: _current(folder),
    ]
    (result, wrong), ledger, beats, is_locked, current = together(asked)
    folder.check_records()
    status, message, reason = _status(folder, result, beats, is_locked=is_locked, live=live)
    other = replaced_by(folder, result, current) if status == "done" else None
    if other is not None:
        message = advice(folder, lambda step: f"Make it the current one again: {step('resume', make_current=True)}")
    message = joined(message or "", wrong, _damage(ledger), by="\n  ") or None
    finished = result if status == "done" else None
    notes = ledger.notes()
    return Summary(
        run_id=folder.run_id,
        status=status,
        records=finished["records"] if finished else ledger.counts(),
        rows=finished["rows"] if finished else ledger.rows,
        files=len(finished["files"]) if finished else 0,
        bytes_in=finished["bytes_in"] if finished else ledger.total_bytes,
        bytes_out=finished["bytes_out"] if finished else sum(m["bytes_out"] for m in ledger.markers),
        seconds=_seconds(beats),
        output=folder.output.uri,
        run_folder=folder.uri,
        repeated=_repeated(ledger, beats),
        quarantined_elsewhere=sum(count for _, count in elsewhere(folder, current)),
        counts=notes["sums"],
        log=notes["lines"],
        logged=notes["logged"],
        stolen=ledger.stolen(),
        checks=outcome(folder, result),
        message=message,
        reason=reason,
        replaced_by=other,
        set_aside=_set_aside(ledger) if finished and other is None else "",
    )


def _current(folder: RunFolder) -> Result | None:
    """The result that describes the present dataset; None if there is none, or it cannot be read."""
    try:
        return current_result(folder.output)
    except WrittenByNewer:
        raise
    except ShardkitError:
        return None


def _result(folder: RunFolder) -> tuple[Result | None, str]:
    """A run's result, and what is wrong with it."""
    try:
        return folder.result(), ""
    except Damaged as error:
        return None, Hint(str(error), error.command_text)


def _damage(ledger: Ledger) -> str:
    """What is wrong with the markers; empty if nothing is."""
    if not ledger.damaged:
        return ""
    first, more = ledger.damaged[0], len(ledger.damaged) - 1
    text = f"{first} is damaged" if not more else f"{first} and {more:,} more are damaged"
    text += ": what these chunks hold is not counted. Compute them again:"
    return advice(ledger.folder, lambda step: f"{text} {step('resume')}")


def _set_aside(ledger: Ledger) -> str:
    """A text about the records that a finished run has left out; empty if there are none."""
    count = ledger.quarantined
    if not count:
        return ""
    first = ledger.quarantine()[0]
    failed = "1 record failed and is" if count == 1 else f"{count:,} records failed and are"
    return advice(
        ledger.folder,
        lambda step: (
            f"{failed} not in the dataset, within max_failures. The first is {first['key']}: {first['error']}: "
            f"{first_line(first['message'])}\n  See them: {step('failures')}\n"
            f"  Mend the function, then: {step.retry()}"
        ),
    )


def tell_set_aside(folder: RunFolder, progress: Progress) -> None:
    """In Python, say what the command line says at its end if a run has left records out."""
    if is_command() or type(progress) is Quiet:
        return
    result = folder.result()
    if result is not None and result["records"]["quarantined"]:
        progress.note(f"Run {folder.run_id}: {_set_aside(Ledger(folder))}")


def status_of(folder: RunFolder) -> str:
    """``running``, ``interrupted``, ``failed`` or ``done``, without the numbers, which take longer."""
    (result, _), beats, is_locked = together([lambda: _result(folder), folder.heartbeats, folder.is_locked])
    return _status(folder, result, beats, is_locked=is_locked)[0]


def _repeated(ledger: Ledger, beats: list[Heartbeat]) -> dict[str, int]:
    """Requests that were made again: by the workers, as markers say, and by other processes, as heartbeats say."""
    markers = [marker for marker in ledger.markers if not marker.get("taken_over")]
    return dict(sum(map(count_of, [*markers, *beats]), Counter()))


def _seconds(beats: list[Heartbeat]) -> float:
    """Wall time: of attempts at the whole run together; of jobs, which run side by side, from first to last."""
    alone = sum(beat.get("seconds", 0.0) for beat in beats if beat["shard"] == ALL_SHARDS)
    times = [beat for beat in beats if beat["shard"] != ALL_SHARDS]
    if not times:
        return float(round(alone, 3))
    beats = [beat for beat in beats if beat["state"] != UNKNOWN]
    times = [beat for beat in times if beat["state"] != UNKNOWN]
    if not times:
        return 0.0
    first = min(datetime.datetime.fromisoformat(beat["started"]) for beat in beats)
    last = max(datetime.datetime.fromisoformat(beat["at"]) for beat in beats)
    return round(float((last - first).total_seconds()), 3)


def _status(
    folder: RunFolder, result: Result | None, beats: list[Heartbeat], *, is_locked: bool, live: int = 0
) -> tuple[str, str | None, str | None]:
    """The state of a run, a text about it, and why it failed."""
    if is_locked:
        return "running", f"An attempt is under way since {beats[-1]['started']}." if beats else None, None
    plan = folder.plan()
    if plan["pipeline"].get("engine") or plan.get("prepared"):
        return _job_status(folder, result, beats, live)
    last = beats[-1] if beats else None
    if last is not None and last["state"] == "failed":
        return _failed(last)
    if result is not None:
        return "done", None, None
    return "interrupted", resume_hint(folder), last.get("reason") if last is not None else None


def _failed(beat: Heartbeat) -> tuple[str, str | None, str | None]:
    message = beat["message"]
    text = Hint(beat.get("in_python") or message, message) if message else None
    return "failed", text, beat.get("reason") or message


def _job_status(
    folder: RunFolder, result: Result | None, beats: list[Heartbeat], with_the_engine: int
) -> tuple[str, str | None, str | None]:
    """The state of a run of several jobs that nobody watches now."""
    latest = {str(beat["shard"]): beat for beat in beats}
    if live := _live(list(latest.values())):
        return "running", _at_work(folder, live), None
    if with_the_engine:
        has = f"The engine has {counted(with_the_engine, 'job')} of it; nobody is watching. Watch:"
        return "running", advice(folder, lambda step: f"{has} {step('resume')}"), None
    failed = [beat for beat in latest.values() if beat["state"] == "failed"]
    merge = latest.get(ALL_SHARDS)
    if result is not None and (merge is None or merge["state"] in {"done", UNKNOWN}) and not failed:
        return "done", None, None
    if failed:
        return _failed(failed[0])
    plan = folder.plan()
    queue = plan["pipeline"].get("queue")
    if queue is not None and not folder.files.exists(STOP):
        serving = f"Its jobs are in the queue {queue['place']}, and go on while that is served. Watch:"
        return "running", advice(folder, lambda step: f"{serving} {step('resume')}"), None
    waiting = "No job is at work now. If what started the jobs will start no more of them, do the rest here:"
    is_prepared = plan.get("prepared")
    text = advice(folder, lambda step: f"{waiting} {step('resume')}") if is_prepared else resume_hint(folder)
    return "interrupted", text, None


def _live(beats: list[Heartbeat]) -> int:
    """How many of the attempts are at work now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    recent, ahead = (now + datetime.timedelta(seconds=seconds) for seconds in (-JOB_SILENCE_S, CLOCKS_APART_S))
    return sum(
        beat["state"] == "running" and recent < datetime.datetime.fromisoformat(beat["at"]) < ahead for beat in beats
    )


def _at_work(folder: RunFolder, live: int) -> str:
    working = f"{counted(live, 'job')} {'is' if live == 1 else 'are'} at work"
    if folder.plan().get("prepared"):
        return f"{working}."
    return advice(folder, lambda step: f"{working}; nobody is watching. Watch: {step('resume')}")


def is_complete(folder: RunFolder) -> bool:
    """Whether the dataset was made from all markers, so that making it again would change nothing."""
    beats = folder.heartbeats()
    return bool(beats) and beats[-1]["state"] != "failed" and is_made(folder)


def is_made(folder: RunFolder) -> bool:
    """The same, even if the run has failed after that: its table in a catalogue may not be up to date."""
    result = folder.result()
    # A combine function may have been changed since.
    made = result is not None and result["records"] == Ledger(folder).counts()
    return made and folder.plan()["pipeline"]["combine"] is None
