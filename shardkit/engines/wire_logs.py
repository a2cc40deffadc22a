"""CloudWatch Logs for the jobs of a local engine: the calls with which SDKs follow a job's log.

A stream is the log of one instance, ``JOB/algo-1-SECONDS``; its events are the lines, in order. The engine does not
record when a line was written, so each has the time at which its job was made.
"""

from __future__ import annotations

import collections
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from shardkit.engines.logs import GROUP, TRAINING_GROUP
from shardkit.engines.validation import refuse
from shardkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GROUPS = (GROUP, TRAINING_GROUP)
MOST_EVENTS = 10_000
MOST_STREAMS = 50
LARGEST_ANSWER = 1 << 20  # bytes of messages
_TOKEN = re.compile(r"(?P<way>[fb])/(?P<offset>\d{1,18})\Z")


class Stream(NamedTuple):
    """The log of one instance."""

    name: str
    path: str
    time_ms: int
    arn: str
    ended: bool


class _Line(NamedTuple):
    begin: int
    end: int
    text: str


class Logs:
    """The calls, over the jobs of one engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def describe_log_groups(self, **request: Any) -> dict[str, Any]:
        """List the log groups: one for each kind of job."""
        prefix, pattern = request.get("logGroupNamePrefix", ""), request.get("logGroupNamePattern", "")
        groups = [name for name in GROUPS if name.startswith(prefix) and pattern.lower() in name.lower()]
        return {"logGroups": [{"logGroupName": name, "storedBytes": 0} for name in groups]}

    def describe_log_streams(self, **request: Any) -> dict[str, Any]:
        """List the streams of all instances that have written something."""
        operation = "DescribeLogStreams"
        group = _group_of(operation, request)
        streams = sorted(self._streams(group, request.get("logStreamNamePrefix", "")), key=lambda stream: stream.name)
        if request.get("orderBy") == "LastEventTime":
            if request.get("logStreamNamePrefix"):
                refuse(
                    operation, "InvalidParameterException", "Cannot order by LastEventTime with a logStreamNamePrefix."
                )
            streams.sort(key=lambda stream: stream.time_ms)
        if request.get("descending"):
            streams.reverse()
        begin = _offset(operation, request, "f")[1] if request.get("nextToken") else 0
        end = begin + request.get("limit", MOST_STREAMS)
        answer: dict[str, Any] = {"logStreams": [_described(stream, group) for stream in streams[begin:end]]}
        return answer | ({"nextToken": f"f/{end}"} if end < len(streams) else {})

    def get_log_events(self, **request: Any) -> dict[str, Any]:
        """Some lines of an instance: after a token, or the first, or the last."""
        operation = "GetLogEvents"
        group = _group_of(operation, request)
        name = request.get("logStreamName", "")
        stream = next((stream for stream in self._streams(group, name) if stream.name == name), None)
        if stream is None:
            refuse(operation, "ResourceNotFoundException", "The specified log stream does not exist.")
        way, offset = "f" if request.get("startFromHead") else "b", None
        if request.get("nextToken"):
            way, offset = _offset(operation, request, "fb")
        limit = request.get("limit", MOST_EVENTS)
        if not _within(request, stream):
            lines, edge = [], offset or 0
        else:
            lines = _after(stream, offset or 0, limit) if way == "f" else _before(stream, offset, limit)
            edge = offset or 0
        first, last = (lines[0].begin, lines[-1].end) if lines else (edge, edge)
        return {
            "events": [_event(stream, line) for line in lines],
            "nextForwardToken": f"f/{last}",
            "nextBackwardToken": f"b/{first}",
        }

    def filter_log_events(self, **request: Any) -> dict[str, Any]:
        """The lines of several instances that hold all words of a pattern."""
        operation = "FilterLogEvents"
        group = _group_of(operation, request)
        words = _words(operation, request.get("filterPattern", ""))
        named, prefix = request.get("logStreamNames"), request.get("logStreamNamePrefix", "")
        streams = [stream for stream in self._streams(group, prefix) if named is None or stream.name in named]
        chosen = [stream for stream in sorted(streams, key=lambda stream: stream.name) if _within(request, stream)]
        skip = _offset(operation, request, "f")[1] if request.get("nextToken") else 0
        limit = request.get("limit", MOST_EVENTS)
        events: list[dict[str, Any]] = []
        seen = 0
        for stream in chosen:
            for line in _lines(stream, 0):
                seen += 1
                if seen <= skip or not all(word in line.text for word in words):
                    continue
                if len(events) == limit:
                    return {"events": events, "nextToken": f"f/{seen - 1}"}
                about = {"logStreamName": stream.name, "eventId": f"{seen:056d}"}
                events.append(_event(stream, line) | about)
        return {"events": events}

    def _streams(self, group: str, prefix: str) -> Iterator[Stream]:
        """The streams of a group whose names begin with ``prefix``."""
        name = prefix.partition("/")[0]
        jobs = self._engine.training if group == TRAINING_GROUP else self._engine
        for job in jobs.told_jobs(name, exact="/" in prefix):
            for host, path in job.logs.items():
                stream = f"{job.name}/{host}-{int(job.created)}"
                if stream.startswith(prefix) and os.path.exists(path) and os.path.getsize(path):
                    yield Stream(stream, path, int(job.created * 1000), job.arn, job.ended)


def _group_of(operation: str, request: dict[str, Any]) -> str:
    """The log group that a request names."""
    named = request.get("logGroupName") or str(request.get("logGroupIdentifier", "")).partition("log-group:")[2]
    group = named.rstrip(":*") or str(request.get("logGroupIdentifier"))
    if group not in GROUPS:
        refuse(operation, "ResourceNotFoundException", "The specified log group does not exist.")
    return group


def _offset(operation: str, request: dict[str, Any], ways: str) -> tuple[str, int]:
    """The content of a token: which way to go on, and from where."""
    token = _TOKEN.match(request["nextToken"])
    if token is None or token["way"] not in ways:
        refuse(operation, "InvalidParameterException", "The specified nextToken is invalid.")
    return token["way"], int(token["offset"])


def _within(request: dict[str, Any], stream: Stream) -> bool:
    """Whether the lines of a stream are from the requested time."""
    begin: float = request.get("startTime", 0)
    end: float = request.get("endTime", float("inf"))
    return begin <= stream.time_ms < end


def _words(operation: str, pattern: str) -> list[str]:
    if pattern.lstrip()[:1] in {"{", "[", "?", "-", "%"}:
        refuse(operation, "InvalidParameterException", "The local engine knows patterns of words only.")
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', pattern)]


def _lines(stream: Stream, offset: int) -> Iterator[_Line]:
    """The lines from an offset on; a line without an end only once the job has ended."""
    with open(stream.path, "rb") as file:
        file.seek(offset)
        for data in file:
            if not data.endswith(b"\n") and not stream.ended:
                return
            end = offset + len(data)
            yield _Line(offset, end, data.decode("utf-8", errors="replace").rstrip("\r\n"))
            offset = end


def _after(stream: Stream, offset: int, limit: int) -> list[_Line]:
    lines: list[_Line] = []
    for line in _lines(stream, offset):
        lines.append(line)
        if len(lines) == limit or line.end - offset > LARGEST_ANSWER:
            break
    return lines


def _before(stream: Stream, offset: int | None, limit: int) -> list[_Line]:
    until = offset if offset is not None else float("inf")
    lines: Iterable[_Line] = (line for line in _lines(stream, 0) if line.end <= until)
    return list(collections.deque(lines, maxlen=limit))


def _event(stream: Stream, line: _Line) -> dict[str, Any]:
    return {"timestamp": stream.time_ms, "message": masked(line.text), "ingestionTime": stream.time_ms}


def _described(stream: Stream, group: str) -> dict[str, Any]:
    account = ":".join(stream.arn.replace(":sagemaker:", ":logs:").split(":")[:5])
    arn = f"{account}:log-group:{group}"
    changed = int(os.path.getmtime(stream.path) * 1000)
    return {
        "logStreamName": stream.name,
        "creationTime": stream.time_ms,
        "firstEventTimestamp": stream.time_ms,
        "lastEventTimestamp": stream.time_ms,
        "lastIngestionTime": changed,
        "uploadSequenceToken": "0",
        "arn": f"{arn}:log-stream:{stream.name}",
        "storedBytes": 0,
    }
