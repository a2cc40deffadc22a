"""A worker's replies, as plain data: the user's function may have changed anything else in its process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypedDict

import shardkit.storage.refusals  # noqa: F401  defines errors that replies may name
from shardkit.errors import RunFailed, ShardkitError

if TYPE_CHECKING:
    from shardkit.runfolder.document_types import Marker

# Why a worker has cut a chunk: the record at the cut ran out of memory or descriptors, which it may have elsewhere; it
# was asked to make room for another; the worker itself has nearly no descriptors left; the record is not to be run.
MEMORY, DESCRIPTORS, OTHERS, WORN, LEFT = "memory", "descriptors", "others", "worn", "left"
PLAIN = (str, int, float, bool, type(None))


def plain_error(error: ShardkitError) -> dict[str, Any]:
    """One of our own errors as plain data."""
    attributes = {name: value for name, value in vars(error).items() if isinstance(value, PLAIN)}
    return {"type": type(error).__name__, "attributes": attributes}


def error_from(plain: dict[str, Any]) -> ShardkitError:
    """The error that plain data describe, of its original class, so that it is handled by its kind."""
    kind = _kinds(ShardkitError).get(plain["type"], RunFailed)
    attributes = plain["attributes"]
    error = kind.__new__(kind)
    ShardkitError.__init__(error, attributes["message"], hint=attributes["hint"])
    vars(error).update(attributes)
    return error


def _kinds(base: type[ShardkitError]) -> dict[str, type[ShardkitError]]:
    kinds = {base.__name__: base}
    for kind in base.__subclasses__():
        kinds |= _kinds(kind)
    return kinds


class Reply(TypedDict):
    """The outcome of a chunk: its marker, and why it was cut before its end, if it was."""

    marker: Marker
    cut: str


def reply_of(data: bytes) -> Reply:
    """A worker's reply.

    Raises:
        ShardkitError: the worker cannot go on: the function does not load, the disk is full.
    """
    content = json.loads(data)
    if "error" in content:
        raise error_from(content["error"])
    reply: Reply = content
    return reply
