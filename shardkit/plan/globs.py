"""Which keys match globs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import PipelineError
from shardkit.tables.arrays import arrow

if TYPE_CHECKING:
    from collections.abc import Sequence


def glob_to_re2(pattern: str) -> str:
    """A glob as an RE2 expression over whole keys.

    ``*`` and ``?`` stop at a ``/``, ``**`` does not; a pattern without a ``/`` is matched against the file's name.
    """
    deep = "/" in pattern
    anywhere = "" if deep else "(?:.*/)?"
    return f"(?s)^{anywhere}{''.join(_token_to_re2(token, deep=deep) for token in GLOB.findall(pattern))}$"


# The last but one is [...], which as in a shell holds no slash, and a bracket only as its first character.
GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[(?:[!^]|(?![!^]))(?:\][^]/]*|[^]/]+)\]|.", re.DOTALL)


def _token_to_re2(token: str, *, deep: bool) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*" if deep else "[^/]*", "*": "[^/]*", "?": "[^/]"}
    if token in wild:
        return wild[token]
    if len(token) == 1:
        return re.escape(token)
    excluded = token[1] in "!^"
    inside = re.sub(r"[\\\[\]]", r"\\\g<0>", token[1 + excluded : -1])
    return f"[^/{inside}]" if excluded else f"[{inside}]"


def matches(keys: pa.Array, patterns: Sequence[str]) -> pa.Array:
    """Which of ``keys`` match any of the globs, as a boolean array."""
    matching = arrow(np.zeros(len(keys), bool))
    for pattern in patterns:
        if pattern in {"*", "**"}:
            return arrow(np.ones(len(keys), bool))
        try:
            matching = pc.or_(matching, pc.match_substring_regex(keys, glob_to_re2(pattern)))
        except pa.ArrowInvalid as error:
            raise PipelineError(f"{pattern!r} is no pattern for files: {error}.") from error
    return matching
