"""A job as an item of the DynamoDB table, and back."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from shardkit.jobs.dynamodb_table import EXPIRES, KEY
from shardkit.jobs.errors import StoreError
from shardkit.jobs.job import COMPLETED, FAILED, NEW, STOPPED, Job

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Item = dict[str, Any]

# The lanes: a New job that waits for others is Blocked, and one that the service has or may have is Live.
BLOCKED, LIVE = "Blocked", "Live"
LANES = (NEW, BLOCKED, LIVE, COMPLETED, FAILED, STOPPED)

ITEM_BYTES = 400_000  # an item is no larger
COLD_BYTES = 280_000  # the part of it for what is written once; a larger request goes to S3
ATTEMPTS_BYTES = 90_000  # the part of it for the attempts
ATTEMPTS_KEPT = 100  # the latest ones, if there are more
DAY_S = 86_400

# Written once: ``about`` holds the long fields, compressed, and ``request`` the request.
_LONG = ("depends_on", "instance_types", "notify", "tags")
_ONCE = ("job_id", "kind", "owner", "run", "submitted_at")
_PLAIN = tuple(each.name for each in fields(Job) if each.name not in {*_LONG, "job_id", "attempts", "notified"})
_TEXTS = frozenset(name for name in _PLAIN if isinstance(getattr(Job(""), name), str))
_WHOLE = frozenset(name for name in _PLAIN if type(getattr(Job(""), name)) is int)
CHANGING = tuple(name for name in _PLAIN if name not in _ONCE)
READ = (KEY, *_PLAIN, "about", "attempts", "notified")  # all that a job is made of


def job_key(job_id: str) -> str:
    """The key of a job's item."""
    return f"job#{job_id}"


def id_of(item: Item) -> str:
    """The id of the job that an item, or a line of an index, is about."""
    return str(item[KEY]["S"]).removeprefix("job#")


def text_of(item: Item, name: str) -> str:
    """A text of an item; empty if it has none."""
    return str(item[name]["S"]) if name in item else ""


def number_of(item: Item, name: str) -> float:
    """A number of an item; 0 if it has none."""
    return float(item[name]["N"]) if name in item else 0.0


def attr(of: str | float) -> dict[str, str]:
    """A text or a number as an item holds it."""
    return {"S": of} if isinstance(of, str) else {"N": repr(of)}


def packed(data: Any) -> bytes:
    """Data as compressed JSON."""
    text = data if isinstance(data, str) else json.dumps(data, sort_keys=True, separators=(",", ":"))
    return zlib.compress(text.encode())


def unpacked(data: bytes) -> str:
    """The JSON of ``packed()``."""
    return zlib.decompress(data).decode()


def about(job: Job) -> bytes:
    """The fields that are long and never change, compressed.

    Raises:
        StoreError: They are too long for an item.
    """
    data = packed({name: getattr(job, name) for name in _LONG} | {"tags": dict(job.tags)})
    if len(data) > COLD_BYTES:
        raise StoreError(
            f"The list of jobs that {job.job_id} depends on ({len(job.depends_on):,}) and its tags are {len(data):,} "
            f"bytes, more than an item of DynamoDB takes.",
            hint="Let it depend on fewer jobs, and those on the rest.",
        )
    return data


def new_item(job: Job, *, order: str, waits_for: str) -> Item:
    """The item of a job that is submitted, without its request."""
    item = {KEY: attr(job_key(job.job_id)), "place": attr(order), "about": {"B": about(job)}}
    item |= {name: attr(getattr(job, name)) for name in _PLAIN if getattr(job, name) or name in _ALWAYS}
    turn = BLOCKED if waits_for else NEW
    item |= {"lane": attr(turn), "turn": attr(turn)}
    return item | ({"waits_for": attr(waits_for)} if waits_for else {})


_ALWAYS = ("status", "version", "changed_at")


def change_of(job: Job, *, expire_days: float | None) -> tuple[dict[str, Any], list[str]]:
    """The attributes to set in the item of a changed job, and those to remove; ``lane`` is not among them.

    A ``New`` job goes to the lane that it was in when it was ``New`` before: only the item knows it, as ``turn``.
    """
    sets: dict[str, Any] = {name: attr(getattr(job, name)) for name in CHANGING}
    sets["attempts"] = {"B": _attempts(job)}
    sets["notified"] = attr(json.dumps(job.notified))
    removed = []
    for name, mark, wanted in (("over", "ended", job.ended), ("due", "due", job.notice_at > 0)):
        if wanted:
            sets[name] = attr(mark)
        else:
            removed.append(name)
    if not job.ended:
        removed.append(EXPIRES)
    elif expire_days is not None:
        sets[EXPIRES] = attr(int(job.changed_at + expire_days * DAY_S))
    return sets, removed


def lane_of(job: Job) -> str:
    """The lane of a job that is not ``New``."""
    return LIVE if job.live else job.status


def _attempts(job: Job) -> bytes:
    """All attempts, or the latest that an item has room for."""
    data, kept = packed(job.attempts), ATTEMPTS_KEPT
    while len(data) > ATTEMPTS_BYTES and kept:
        data, kept = packed(job.attempts[-kept:]), kept // 2
    return data


def job_of(item: Item) -> Job:
    """The job that an item holds."""
    values: dict[str, Any] = {}
    for name in _PLAIN:
        if name in item:
            (value,) = item[name].values()
            values[name] = value if name in _TEXTS else int(value) if name in _WHOLE else float(value)
    long = json.loads(unpacked(_bytes(item["about"])))
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in long.items()}
    attempts = json.loads(unpacked(_bytes(item["attempts"]))) if "attempts" in item else ()
    notified = json.loads(text_of(item, "notified") or "[]")
    return Job(id_of(item), attempts=tuple(attempts), notified=tuple(notified), **values)


def request_text(item: Item) -> str:
    """The request of an item that holds it, as JSON."""
    return unpacked(_bytes(item["request"]))


def _bytes(attribute: Mapping[str, Any]) -> bytes:
    return bytes(attribute["B"])


def names(used: Iterable[str]) -> dict[str, str]:
    """Names for expressions: some attributes have names that DynamoDB reserves."""
    return {f"#{name}": name for name in used}
