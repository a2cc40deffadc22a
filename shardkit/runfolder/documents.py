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
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shardkit.errors import Damaged, WrittenByNewer
from shardkit.runfolder.earlier import FILLED_IN
from shardkit.runfolder.shapes import kind_of, misfit

if TYPE_CHECKING:
    from collections.abc import Mapping

D = TypeVar("D")

FORMAT = 2  # of the documents with a field ``version``; what is written here is read by whoever knows that one
_CHECKSUM = re.compile(rb',\s?"crc32":"([0-9a-f]{8})"\s?\}\s*\Z')
_TAIL_BYTES = 64


def dump(content: Mapping[str, Any], *, readable: bool = False) -> bytes:
    """A document, with its version, as the bytes of its file; ``readable`` by people, a field a line."""
    text = json.dumps({"version": FORMAT} | dict(content), indent=1 if readable else None, ensure_ascii=not readable)
    head = text[:-1].rstrip().encode()
    line = b"\n" if readable else b""
    # No space after the colon: a tool that writes the document anew puts one there, or else leaves the comma's out.
    return b'%s,%s"crc32":"%08x"%s}\n' % (head, line or b" ", zlib.crc32(head), line)


def parse(data: bytes, kind: type[D], name: str) -> D:
    """What `dump` was given, or what was written without a checksum; with what an earlier version did not write.

    ``name`` says which file of which run it is.

    Raises:
        Damaged: it is neither, or not of that kind; why, without the name.
        WrittenByNewer: it is of a later format.
    """
    content = _loaded(data)
    version = content.get("version", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise WrittenByNewer(
            f"{name}: it was written by a newer shardkit (format {version}; this one knows {FORMAT}).",
            hint="Use a version of shardkit that is at least as new as the one that wrote it.",
        )
    found = _CHECKSUM.search(data, max(0, len(data) - _TAIL_BYTES))
    if found is not None and zlib.crc32(memoryview(data)[: found.start()]) != int(found[1], 16):
        raise Damaged("its checksum is not that of what it holds")
    content.pop("crc32", None)
    if (fill_in := FILLED_IN.get(kind)) is not None:
        fill_in(content)
    if wrong := misfit(content, kind):
        raise Damaged(str(wrong))
    return cast("D", content)


def _loaded(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise Damaged(f"it is no JSON ({error})" if data.strip() else "it is empty") from None
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise Damaged(f"it holds {kind_of(content)}, not an object")
    return content


def say(text: str) -> None:
    """Tell people of what was found damaged and mended, wherever that was."""
    sys.stderr.write(f"{text}\n")
