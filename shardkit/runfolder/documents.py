"""The JSON documents that a run keeps: written with a checksum at their end, and looked at closely when they are read.

What is no JSON any more, lacks what it must have, or has another checksum than it was written with is `Damaged`. A
document of a later format is refused, for nobody knows here what it means. One that somebody has written anew, by hand
or with a tool, has no checksum: this module writes its own as no tool does.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from dataclasses import dataclass
from typing import Any

from shardkit.errors import Damaged, WrittenByNewer

FORMAT = 2  # of the documents with a field ``version``; what is written here is read by whoever knows that one
_CHECKSUM = re.compile(rb',\s?"crc32":"([0-9a-f]{8})"\s?\}\s*\Z')
_TAIL_BYTES = 64
_NUMBER = (int, float)


@dataclass(frozen=True)
class Each:
    """An object of JSON whose values are all of one shape, whatever their names."""

    shape: Any


# What documents must have. A name with a question mark may be left out; a tuple gives the types that a value may have.
_COUNTS = {"listed": int, "done": int, "quarantined": int}
PART = {"name": str, "rows": int, "bytes": int, "run?": str, "at?": str, "spans?": [[int]], "sums?": [[int]]}
MARKER = {
    "shard": int,
    "chunk": int,
    "attempt": int,
    "records": _COUNTS,
    "ids": ([int], None),
    "rows": int,
    "bytes_out": int,
    "parts": [PART],
    "quarantine": [{"record": int, "key": str}],
    "repeated?": Each(int),
}
TAKEN_OVER = {"markers": [MARKER | {"gone?": [int]}]}
RESULT = {
    "run_id": str,
    "name": str,
    "records": _COUNTS | {"skipped": int},
    "rows": int,
    "files": [{"path": str, "rows": int, "bytes": int, "partition?": str}],
    "partitions?": Each({"run": str}),
    "columns?": Each(str),
    "format": str,
    "partition_by": [str],
    "bytes_in": int,
    "bytes_out": int,
    "switched": int,
    "generation": int,
}
COMMIT = {"result": RESULT, "gone": [str]}
BEAT = {
    "shard": (int, str),
    "attempt": int,
    "state": str,
    "message": (str, None),
    "started": str,
    "at": str,
    "seconds?": _NUMBER,
    "records?": int,
    "quarantined?": int,
    "repeated?": Each(int),
    "repeated_by_workers?": Each(int),
}
MERGE_PLAN = {"created": str, "merge_of": [str]}
PLAN = {
    "created": str,
    "digest": str,
    "function_digest": str,
    "pipeline": dict,
    "totals": {"records": int, "chunks": int},
    "shards": [dict],
    "jobs": [{"job": int, "shards": [int]}],
    "pickles?": Each(str),
    "files?": Each({"bytes": int, "crc32": int}),
}


def dump(content: dict[str, Any], *, readable: bool = False) -> bytes:
    """A document, which is not empty, as the bytes of its file; ``readable`` by people, a field a line."""
    text = json.dumps(content, indent=1 if readable else None, ensure_ascii=not readable)
    head = text[:-1].rstrip().encode()
    line = b"\n" if readable else b""
    # No space after the colon: a tool that writes the document anew puts one there, or else leaves the comma's out.
    return b'%s,%s"crc32":"%08x"%s}\n' % (head, line or b" ", zlib.crc32(head), line)


def parse(data: bytes, shape: Any = dict) -> dict[str, Any]:
    """What `dump` was given, or what was written without a checksum.

    Raises:
        Damaged: it is neither, or not of that shape.
        WrittenByNewer: it is of a later format.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise Damaged(f"it is no JSON ({error})" if data.strip() else "it is empty") from None
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise Damaged(f"it holds {_kind(content)}, not an object")
    version = content.get("version", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise WrittenByNewer(f"it was written by a newer shardkit (format {version}; this one knows {FORMAT})")
    found = _CHECKSUM.search(data, max(0, len(data) - _TAIL_BYTES))
    if found is not None and zlib.crc32(memoryview(data)[: found.start()]) != int(found[1], 16):
        raise Damaged("its checksum is not that of what it holds")
    content.pop("crc32", None)
    if wrong := misfit(content, shape):
        raise Damaged(wrong)
    return content


def misfit(value: Any, shape: Any, name: str = "") -> str:
    """What keeps a value from having a shape, in words; nothing if nothing does."""
    if isinstance(shape, dict):
        return _misfit_of_fields(value, shape, name)
    if isinstance(shape, Each | list):
        return _misfit_of_items(value, shape, name)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    return "" if any(_is(value, kind) for kind in kinds) else _wrong(value, name)


def _is(value: Any, kind: Any) -> bool:
    if kind is None or not isinstance(kind, type):
        return value is None if kind is None else not misfit(value, kind)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _misfit_of_items(value: Any, shape: Each | list[Any], name: str) -> str:
    each, kind = (shape.shape, dict) if isinstance(shape, Each) else (shape[0], list)
    if not isinstance(value, kind):
        return _wrong(value, name)
    if each is int and kind is list:  # of which there may be many
        return "" if set(map(type, value)) <= {int} else f"{name} holds something else than numbers"
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return next((wrong for key, held in items if (wrong := misfit(held, each, f"{name}.{key}"))), "")


def _misfit_of_fields(value: Any, shape: dict[str, Any], name: str) -> str:
    if not isinstance(value, dict):
        return _wrong(value, name)
    for field, each in shape.items():
        key, where = field.removesuffix("?"), f"{name}.{field}".strip(".").removesuffix("?")
        if key not in value:
            if key == field:
                return f"it has no field {where!r}"
        elif found := misfit(value[key], each, where):
            return found
    return ""


def _wrong(value: Any, name: str) -> str:
    return f"its field {name!r} holds {_kind(value)}" if name else f"it holds {_kind(value)}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")


def say(text: str) -> None:
    """Tell people of what was found damaged and mended, wherever that was."""
    sys.stderr.write(f"{text}\n")
