"""A job's environment: anyone who may describe the job can read it, so it holds no secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.masking import is_secret, secret_places

if TYPE_CHECKING:
    from collections.abc import Mapping

HIDDEN = "Let the environment, a profile or the job's role give the access."
MOST_VARIABLES = 100  # the service's limits
LONGEST = 256
CURE = (
    "everybody who may describe the job can read it. Keep it in Secrets Manager and pass its ARN, "
    "or let the job's role give the access."
)


def refuse_secrets(fields: Mapping[str, Any], where: str = "") -> None:
    """Check that no text in plain fields looks like a secret, whatever the names of the fields are.

    Raises:
        PipelineError: one does; the message names its place, never its content.
    """
    place = next(secret_places(fields, where, by_name=False), None)
    if place is not None:
        raise PipelineError(f"{place} looks like it holds a secret: plans and requests would show it.", hint=HIDDEN)


def as_text(value: Any) -> Any:
    """Numbers as text, as YAML reads ``OMP_NUM_THREADS: 1``; anything else stays as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def checked(variables: dict[str, str], *, longest: int = LONGEST) -> dict[str, str]:
    """The variables, if the service takes them and none looks like a secret.

    Raises:
        ValueError: it says which variable will not do, and never what its value is.
    """
    for name, value in variables.items():
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of a variable: letters, digits and _ only, no digit first.")
        if max(len(name), len(value)) > longest:
            raise ValueError(
                f"{name[:40]} is too long: a job takes at most {longest} characters. Put it in a file, and pass the "
                "file's URI."
            )
        if is_secret(name, value):
            raise ValueError(f"{name} looks like a secret: {CURE}")
    if len(variables) > MOST_VARIABLES:
        raise ValueError(f"{len(variables)} variables are too many: SageMaker takes at most {MOST_VARIABLES}.")
    return variables
