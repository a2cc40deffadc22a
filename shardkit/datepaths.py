"""Dates in the keys of objects: patterns such as ``logs/{Y}/{m}/{d}``."""

from __future__ import annotations

import re

# The parts of a date: what their digits look like between other digits, and where nothing else can be meant.
DATE_PARTS = {
    "{Y}": ("[0-9]{4}", "[0-9]{4}"),
    "{m}": ("0[1-9]|1[0-2]", "1[0-2]|0?[1-9]"),
    "{d}": ("0[1-9]|[12][0-9]|3[01]", "[12][0-9]|3[01]|0?[1-9]"),
    "{H}": ("[01][0-9]|2[0-3]", "1[0-9]|2[0-3]|0?[0-9]"),
}
WILD = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


def date_expression(path: str) -> tuple[str, str]:
    """A pattern such as ``logs/{Y}/{m}/{d}`` as an RE2 expression over whole keys, and the rewrite that gives the date.

    The pattern may be found anywhere in a key, and the first place counts, but never amid other digits.

    Raises:
        ValueError: it has no ``{Y}``, a part without the next larger one, or one that is unknown.
    """
    items = re.findall(r"\{[^{}/]*\}|\*\*|.", path, re.DOTALL)
    _check_parts(items)
    expression, seen = "", []
    for i, item in enumerate(items):
        if item in DATE_PARTS:
            # Next to another digit, or to what may be one, only its full width tells where a number ends.
            beside = items[i - 1 : i] + items[i + 1 : i + 2] if i else items[1:2]
            digits = DATE_PARTS[item][not any(b in DATE_PARTS or b in WILD or b.isdigit() for b in beside)]
            expression += f"(?:{digits})" if item in seen else f"({digits})"
            seen.append(item)
        else:
            expression += WILD.get(item) or re.escape(item)
    before = "(?:.*?[^0-9])??" if items[0] in DATE_PARTS else ".*?"
    after = "(?:[^0-9].*)?" if items[-1] in DATE_PARTS else ".*"
    captured = list(dict.fromkeys(seen))
    rewrite = "-".join(f"\\{captured.index(part) + 1}" for part in DATE_PARTS if part in seen)
    return f"(?s)^{before}{expression}{after}$", rewrite


def _check_parts(items: list[str]) -> None:
    unknown = next((item for item in items if item[0] == "{" and item not in DATE_PARTS), None)
    if unknown is not None:
        raise ValueError(
            f"{unknown} is no part of a date; {{Y}} is the year, {{m}} the month, {{d}} the day and {{H}} the hour"
            f"{', each with its closing brace' if unknown == '{' else ''}."
        )
    present = [part in items for part in DATE_PARTS]
    if not present[0] or present != sorted(present, reverse=True):
        raise ValueError("expected a pattern with {Y}, or {Y} and {m}, or these and {d}, such as logs/{Y}/{m}/{d}.")
