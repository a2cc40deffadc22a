"""The kinds of values that a workflow's fields have."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from shardkit.engines.values import NoTruth
from shardkit.times import interval
from shardkit.workflows.expressions import has_expression, parse

NAME_CHARACTERS = 40  # a cluster's names have room for 63, and more is put behind it
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)")
_POWERS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
LONGEST_S = 30 * 86_400.0


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or len(value) > NAME_CHARACTERS:
        raise ValueError(
            f"expected a name of small letters, digits and hyphens, such as make-features, of at most "
            f"{NAME_CHARACTERS} characters."
        )
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("expected a name of letters, digits and _, no digit first.")
    return value


def _plain(value: Any) -> Any:
    """A scalar of YAML as text: a number, a date."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return value.isoformat() if isinstance(value, datetime.date) else value


def _no_expression(value: str) -> str:
    if has_expression(value):
        raise ValueError("expressions are not looked for here; write the text itself.")
    return value


def _template(value: str) -> str:
    parse(value)
    return value


def _seconds(value: Any) -> Any:
    """``90``, or ``30m`` and ``3h``, as seconds."""
    if not isinstance(value, str):
        return value
    length = interval(value)
    if not length:
        raise ValueError(f"expected seconds, or a time such as 30m, 3h or 1d, not {value!r}.")
    return length.total_seconds()


def _quantity(value: str) -> str:
    if not _QUANTITY.fullmatch(value) or not quantity_bytes(value):
        raise ValueError(f"expected a size such as 500Mi or 16Gi, not {value!r}.")
    return value


def quantity_bytes(text: str) -> int:
    """A size such as ``16Gi`` in bytes."""
    match = _QUANTITY.fullmatch(text)
    return int(float(match[1]) * _POWERS[match[2]]) if match else 0


def secret_name(value: str) -> str | None:
    """The name of the variable that holds a secret, if a text is ``env:NAME``."""
    match = _SECRET.fullmatch(value)
    return match[1] if match else None


def _secret(value: Any) -> Any:
    if not isinstance(value, str) or not secret_name(value):  # which is never shown: it may be the secret
        raise ValueError("expected env:NAME, the variable that holds the secret; what is in this file can be read.")
    return value


Name = Annotated[str, AfterValidator(_name)]
VariableName = Annotated[str, AfterValidator(_variable)]
Text = Annotated[str, BeforeValidator(_plain), AfterValidator(_no_expression)]
TemplateText = Annotated[str, BeforeValidator(_plain), AfterValidator(_template)]
Seconds = Annotated[float, NoTruth, BeforeValidator(_seconds), Field(gt=0, le=LONGEST_S, allow_inf_nan=False)]
Quantity = Annotated[str, AfterValidator(_quantity)]
SecretPlace = Annotated[str, BeforeValidator(_secret)]
