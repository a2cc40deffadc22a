"""The JSON documents that a run keeps: written with a checksum at their end, and checked closely when they are read.

A document that is not JSON, lacks a required field or does not match its checksum is `Damaged`. A document of a later
format is refused, because this version does not know what it means. A document that somebody has rewritten, by hand or
with a tool, has no checksum: this module formats its own as no tool does.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shardkit.errors import Damaged, WrittenByNewer
from shardkit.hints import as_command, is_command
from shardkit.runfolder.earlier import FILLED_IN
from shardkit.runfolder.shapes import kind_of, misfit

if TYPE_CHECKING:
    from collections.abc import Mapping

D = TypeVar("D")

FORMAT = 2  # of the documents with a field ``version``; every reader that knows this number can read them
_CHECKSUM = re.compile(rb',\s?"crc32":"([0-9a-f]{8})"\s?\}\s*\Z')
_TAIL_BYTES = 64


def dump(content: Mapping[str, Any], *, readable: bool = False) -> bytes:
    """A document, with its version, as the bytes of its file; ``readable``: for people, one field per line."""
    text = json.dumps({"version": FORMAT} | dict(content), indent=1 if readable else None, ensure_ascii=not readable)
    head = text[:-1].rstrip().encode()
    line = b"\n" if readable else b""
    # No space after the colon: a tool that rewrites the document puts one there, or leaves out the comma's.
    return b'%s,%s"crc32":"%08x"%s}\n' % (head, line or b" ", zlib.crc32(head), line)


def parse(data: bytes, kind: type[D], name: str) -> D:
    """The content of a document, with or without a checksum; fields that an earlier version lacked are filled in.

    ``name`` names the file and its run.

    Raises:
        Damaged: the document is broken or not of that kind; the message is the reason, without the name.
        WrittenByNewer: it is of a later format.
    """
    content = _loaded(data)
    version = content.get("version", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise WrittenByNewer(
            f"{name}: it was written by a newer shardkit (format {version}; this one knows {FORMAT}).",
            hint="Use a version of shardkit that is at least as new as the one that wrote it.",
        )
    checksum = _CHECKSUM.search(data, max(0, len(data) - _TAIL_BYTES))
    if checksum is not None and zlib.crc32(memoryview(data)[: checksum.start()]) != int(checksum[1], 16):
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
    """Tell the user about something damaged that was mended; a `Hint` in the language in which they asked."""
    sys.stderr.write(f"{as_command(text) if is_command() else text}\n")
