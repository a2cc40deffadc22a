"""Text features of job ads: one row an ad.

``ad_features`` is the function that the pipeline calls on every JSON Lines file. It is plain Python on purpose: one
pass over the file, a few compiled expressions, no data frame a row.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from hashlib import md5
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import shardkit

LEAD_LENGTH = 200
"""Characters of the description that are kept."""

_DAY = re.compile(r"(?<!\d)(\d{4})[/-](\d{2})[/-](\d{2})(?!\d)")
_WORD = re.compile(r"\w+")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def ad_features(record: shardkit.Record) -> Iterator[dict[str, Any]]:
    """The features of every ad in a JSON Lines file (UTF-8, one object a line, blank lines allowed).

    Yields:
        One dict an ad: ``id`` (str); ``title_length``, ``description_length`` (characters, int); ``n_tokens``,
        ``n_unique_tokens`` (words of the description in lower case, int); ``country`` (str); ``salary_mid``
        (float); ``title_hash`` (32 bits of an MD5 of the title in lower case, int); ``n_tags`` (int); ``remote``
        (whether the description has the word, bool); ``hour_posted`` (0 to 23, int); ``lead`` (the description's
        first 200 characters in lower case, str); ``day`` (``2020-01-31``, from the file's path, str).
        What an ad leaves out, or has as null, is None.

    Raises:
        ValueError: a line is not a JSON object, lacks ``id``, ``title`` or ``description``, or has a field of the
            wrong type. The message names the line and the cause.
    """
    day = day_of(record.key)
    with open(record, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if text.isspace():
                continue
            try:
                row = _features(_parse(text.decode()), day)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise ValueError(f"line {number}: {_cause(error)}") from error
            yield row


def day_of(key: str) -> str | None:
    """The day that a file's path names, as ``2020-01-31``; None if it names none.

    >>> day_of("ads/2020/01/31/part-00000.jsonl")
    '2020-01-31'
    >>> day_of("ads/2020-01-31.jsonl")
    '2020-01-31'
    >>> day_of("ads/2020/13/45/part-00000.jsonl") is None
    True
    """
    match = _DAY.search(key)
    if match is None:
        return None
    try:
        return dt.date(int(match[1]), int(match[2]), int(match[3])).isoformat()
    except ValueError:  # a thirteenth month is no day
        return None


def _features(ad: Any, day: str | None) -> dict[str, Any]:
    if type(ad) is not dict:
        raise TypeError(f"an ad must be an object, not {_kind(ad)}")
    title = _required(ad, "title", str)
    description = _required(ad, "description", str).lower()
    words = _WORD.findall(description)
    tags = _optional(ad, "tags", list)
    row = {
        "id": str(_required(ad, "id", str, int)),
        "title_length": len(title),
        "description_length": len(ad["description"]),
        "n_tokens": len(words),
        "n_unique_tokens": len(set(words)),
        "country": _optional(_optional(ad, "location", dict) or {}, "country", str),
        "salary_mid": _salary_mid(_optional(ad, "salary", dict, int, float)),
        "title_hash": int.from_bytes(md5(title.lower().encode(), usedforsecurity=False).digest()[:4], "big"),
        "n_tags": None if tags is None else len(tags),
        "remote": "remote" in description,
        "hour_posted": _hour(_optional(ad, "posted_at", str)),
        "lead": description[:LEAD_LENGTH],
        "day": day,
    }
    f"{row['id']}{row['country']}{row['lead']}".encode()  # half a surrogate pair is valid JSON, but is not text
    return row


def _required(ad: dict[str, Any], field: str, *types: type) -> Any:
    value = _optional(ad, field, *types)
    if value is None:
        raise ValueError(f"the required field {field!r} is missing")
    return value


def _optional(ad: dict[str, Any], field: str, *types: type) -> Any:
    value = ad.get(field)
    if value is not None and type(value) not in types:
        raise TypeError(
            f"the field {field!r} must be {' or '.join(map(_KINDS.__getitem__, types))}, not {_kind(value)}"
        )
    return value


def _salary_mid(salary: dict[str, Any] | float | None) -> float | None:
    """The middle of the range, or its one end; always a float, because 50000 and 50000.5 belong in one column."""
    if salary is None:
        return None
    if not isinstance(salary, dict):
        return float(salary)
    ends = [end for end in (_optional(salary, name, int, float) for name in ("min", "max")) if end is not None]
    return float(sum(ends)) / len(ends) if ends else None


def _hour(posted: str | None) -> int | None:
    """The hour of a time such as ``2020-01-31T13:45:00Z``; None for a day alone."""
    if posted is None or len(posted) <= len("2020-01-31"):
        return None
    hour = posted[11:13]
    if not ("00" <= hour <= "23" and hour.isdecimal()):
        raise ValueError(f"the field 'posted_at' is {posted!r}, which is no time such as 2020-01-31T13:45:00Z")
    return int(hour)


# ---- errors ----------------------------------------------------------------------------------------------------

_KINDS = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _cause(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} (column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: {error.reason} (byte {error.start})"
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    return str(error)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"not valid JSON: {constant} is no number")


_parse = json.JSONDecoder(parse_constant=_refuse).decode
