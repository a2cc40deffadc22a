"""A user's function that does to its worker whatever a record's file says, for the records of many tests."""

from __future__ import annotations

import ctypes
import datetime
import decimal
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit import Record

RECORD_BYTES = 40  # all files have one size, so that the chunks do not depend on which records are bad
HOARD_MIB = 200  # of the one that takes too much memory: more than a worker is by itself
Rows = list[dict[str, Any]]


def content(what: str = "good") -> str:
    """The content of a record's file."""
    return what.ljust(RECORD_BYTES)


def rows(record: Record) -> Rows:
    """The rows of a good record: up to three."""
    number = int("".join(filter(str.isdigit, record.key)) or 0)
    return [{"key": record.key, "row": i, "value": number * 1.5 + i} for i in range(number % 4)]


def features(record: Record) -> Any:
    """Do what the record's file says."""
    what = Path(record).read_text().strip()
    return rows(record) if what == "good" else globals()[what](record)


# Ends by an exception.


def raises(record: Record) -> Rows:
    return _deep_inside(record)


def _deep_inside(record: Record) -> Rows:
    raise ValueError(f"cannot make sense of {record.key}")


def exits(_: Record) -> Rows:
    sys.exit("the function wanted to leave")


def recurses(record: Record) -> Rows:
    return recurses(record)


def interrupts(_: Record) -> Rows:
    raise KeyboardInterrupt


def raises_unprintable(_: Record) -> Rows:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    raise Unprintable


def raises_bytes(_: Record) -> Rows:
    raise ValueError(b"caf\xe9".decode("utf-8", "surrogateescape"))


def returns_unusable(_: Record) -> Any:
    return 42


def returns_unstorable(record: Record) -> Rows:
    return [*rows(record), {"key": record.key, "row": 3, "value": object()}]


class _NamelessZone(datetime.tzinfo):
    def utcoffset(self, _: Any) -> datetime.timedelta:
        return datetime.timedelta(hours=1)


def raises_when_converted(record: Record) -> Rows:
    return [{"key": record.key, "row": 0, "value": 0.5, "time": datetime.datetime(2020, 1, 1, tzinfo=_NamelessZone())}]


def yields_then_raises(record: Record) -> Iterator[dict[str, Any]]:
    yield {"key": record.key, "row": 0, "value": -1.0}
    yield {"key": record.key, "row": 1, "value": -1.0}
    raise RuntimeError("the second half is damaged")


def runs_out_of_memory(_: Record) -> Rows:
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20), before[1]))
    hoard: list[Any] = []
    try:
        while True:
            hoard.append([len(hoard)] * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def returns_too_much(record: Record) -> Rows:
    """Its rows fit in memory, but storing them needs more than is left."""
    text = os.urandom(1 << 20).hex() * 50
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (220 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return [{"key": record.key, "row": 0, "text": text}]


# Ends the process.


def leaves(_: Record) -> Rows:
    os._exit(9)


def segfaults(_: Record) -> Rows:
    print("just before the segfault")  # noqa: T201
    ctypes.string_at(0)
    return []


def is_killed(_: Record) -> Rows:
    """Is killed as the system kills a process that takes too much memory."""
    hoard = bytearray(os.urandom(1 << 20)) * HOARD_MIB
    os.kill(os.getpid(), signal.SIGKILL)
    return [{"key": len(hoard)}]


def forks_and_dies(record: Record) -> Rows:
    """Leaves a child that lives as long as a file exists, and keeps open what the worker had open."""
    note = Path(record).parent.parent / f"child-of-{record.key}-{os.getpid()}"
    note.touch()
    if os.fork() == 0:
        while note.exists():
            time.sleep(0.05)
        os._exit(0)
    os.abort()


class _DeadlyDecimal(decimal.Decimal):
    def __str__(self) -> str:
        os._exit(7)

    def as_tuple(self) -> Any:
        os._exit(7)


def dies_when_converted(record: Record) -> Rows:
    """Ends the process only when its rows are converted to columns."""
    return [{"key": record.key, "row": 0, "value": 0.5, "price": _DeadlyDecimal("1.5")}]


# Does not end.


def sleeps(_: Record) -> Rows:
    while True:
        time.sleep(60)


def hangs_in_c(_: Record) -> Rows:
    """Hangs in native code that holds the interpreter's lock."""
    ctypes.PyDLL(None).pause()
    return []


# Ends well, but is rude.


def prints(record: Record) -> Rows:
    print("from the user's function, to stdout", "x" * 100_000)  # noqa: T201
    os.write(1, b"and from native code\n")
    return rows(record)


def closes_stdout(record: Record) -> Rows:
    print("the last words")  # noqa: T201
    sys.stdout.close()
    return rows(record)


def forks_and_returns_twice(record: Record) -> Rows:
    os.fork()
    return rows(record)


def forks_and_leaves(record: Record) -> Rows:
    if os.fork() == 0:
        sys.exit()
    return rows(record)


def closes_descriptor(record: Record) -> Rows:
    os.close(1)
    return rows(record)
