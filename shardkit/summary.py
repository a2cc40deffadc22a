"""How a run is, in numbers and in a word: a function of its folder."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from shardkit.attempt import resume_hint
from shardkit.ledger import Ledger
from shardkit.progress import counted, human_bytes, human_seconds
from shardkit.runfolder import ALL_SHARDS

if TYPE_CHECKING:
    from shardkit.runfolder import RunFolder

JOB_SILENCE_S = 30.0  # a job notes every few seconds that it is at work


@dataclass(frozen=True)
class Summary:
    """A run in numbers.

    ``status`` is ``running``, ``interrupted`` (can be resumed), ``failed`` or ``done``; ``records`` counts listed,
    done, quarantined and skipped; ``seconds`` is the wall time of the attempts together.
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
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As ``run --json`` prints it."""
        content = asdict(self)
        del content["message"]
        return content

    def __str__(self) -> str:
        n = self.records
        lines = [
            f"Run {self.run_id}: {self.status}.",
            f"  records  {n['listed']:,} listed = {n['done']:,} done + {n['quarantined']:,} quarantined "
            f"+ {n['skipped']:,} skipped" + (f" + {rest:,} open" if (rest := self._open()) else ""),
            self._output_line(),
            f"  input    {human_bytes(self.bytes_in)} in {human_seconds(self.seconds)}",
        ]
        if self.message:
            lines.append(f"  {self.message}")
        return "\n".join(lines)

    def _output_line(self) -> str:
        rows, size = counted(self.rows, "row"), human_bytes(self.bytes_out)
        if self.status != "done":
            return f"  so far   {rows}, {size}"
        return f"  dataset  {rows} in {counted(self.files, 'file')}, {size}, in {self.output}"

    def _open(self) -> int:
        n = self.records
        return n["listed"] - n["done"] - n["quarantined"] - n["skipped"]


def summarize(folder: RunFolder) -> Summary:
    """A run in numbers."""
    result, ledger, beats = folder.result(), Ledger(folder), folder.heartbeats()
    status, message = _status(folder, result, beats)
    finished = result if status == "done" else None
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
        message=message,
    )


def _seconds(beats: list[dict[str, Any]]) -> float:
    """Wall time: of attempts at the whole run together; of jobs, which run side by side, from first to last."""
    alone = sum(beat.get("seconds", 0.0) for beat in beats if beat["shard"] == ALL_SHARDS)
    times = [beat for beat in beats if beat["shard"] != ALL_SHARDS]
    if not times:
        return float(round(alone, 3))
    first = min(datetime.datetime.fromisoformat(beat["started"]) for beat in beats)
    last = max(datetime.datetime.fromisoformat(beat["at"]) for beat in beats)
    return round(float((last - first).total_seconds()), 3)


def _status(folder: RunFolder, result: dict[str, Any] | None, beats: list[dict[str, Any]]) -> tuple[str, str | None]:
    if folder.is_locked():
        return "running", f"An attempt is under way since {beats[-1]['started']}." if beats else None
    if folder.plan().get("pipeline", {}).get("engine"):
        return _job_status(folder, result, beats)
    last = beats[-1] if beats else {"state": "interrupted", "message": None}
    if result is not None and last["state"] != "failed":
        return "done", None
    if last["state"] == "failed":
        return "failed", last["message"]
    return "interrupted", resume_hint(folder)


def _job_status(
    folder: RunFolder, result: dict[str, Any] | None, beats: list[dict[str, Any]]
) -> tuple[str, str | None]:
    """How a run is whose jobs nobody watches now."""
    recent = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=JOB_SILENCE_S)
    latest = {str(beat["shard"]): beat for beat in beats}
    live = [
        beat
        for beat in latest.values()
        if beat["state"] == "running" and datetime.datetime.fromisoformat(beat["at"]) > recent
    ]
    if live:
        return "running", f"{len(live)} jobs are at work; nobody is watching. Watch: shardkit resume {folder.arguments}"
    failed = [beat for beat in latest.values() if beat["state"] == "failed"]
    merge = latest.get(ALL_SHARDS)
    if result is not None and (merge is None or merge["state"] == "done") and not failed:
        return "done", None
    if failed:
        return "failed", failed[0]["message"]
    return "interrupted", resume_hint(folder)


def is_complete(folder: RunFolder) -> bool:
    """Whether the dataset was made of all that the markers hold, so that to make it anew would change nothing."""
    result, beats = folder.result(), folder.heartbeats()
    if result is None or not beats or beats[-1]["state"] == "failed":
        return False
    # A combine function may have been changed since.
    return result["records"] == Ledger(folder).counts() and folder.plan()["pipeline"]["combine"] is None
