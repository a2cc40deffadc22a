"""A job's environment: whoever may describe a job can read it, so it holds no secrets."""

from __future__ import annotations

import re
from typing import Any

MOST_VARIABLES = 100  # the service's limits
LONGEST = 256
CURE = (
    "everybody who may describe the job can read it. Keep it in Secrets Manager and pass its ARN, "
    "or let the job's role give the access."
)
NAMES = re.compile(
    r"(?:^|_)ACCESS_KEY_ID$"
    r"|(?:PASSWORD|PASSWD|PASSPHRASE|APIKEY|(?:API|AUTH|ACCESS|BEARER)TOKEN"
    r"|(?:^|_)(?:PWD|TOKEN|SECRETS?|CREDENTIALS?|(?:API|ACCESS|PRIVATE|AUTH|SAS)_KEY))"
    # ... unless the name is of a place or of a number
    r"(?!\w*_(?:ARN|COUNT|FILE|ID|LENGTH|LIMIT|NAME|PATH|TTL|TYPE|URI|URL)$)(?=\d*(?:_|$))",
    re.IGNORECASE,
)
VALUES = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # an AWS access key
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}|\bglpat-[\w-]{20,}"
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{30,}|\bsk-(?=[\w-]*[0-9])(?=[\w-]*[A-Z])[\w-]{24,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\."  # a JSON web token
    r"|\w://[^\s/:@]+:[^\s/@]+@"  # a password in a URL
)


def as_text(value: Any) -> Any:
    """Numbers as text, as YAML reads ``OMP_NUM_THREADS: 1``; anything else stays as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def is_secret(name: str, value: str) -> bool:
    """Whether a variable looks like a secret itself, and not like the name of one."""
    if not value or value.startswith("arn:"):
        return False
    return bool(VALUES.search(value) or (NAMES.search(name) and name.upper() != "PWD"))


def checked(variables: dict[str, str]) -> dict[str, str]:
    """The variables, if the service takes them and none looks like a secret.

    Raises:
        ValueError: it says which variable will not do, and never what its value is.
    """
    for name, value in variables.items():
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of a variable: letters, digits and _ only, no digit first.")
        if max(len(name), len(value)) > LONGEST:
            raise ValueError(
                f"{name[:40]} is too long: SageMaker takes at most {LONGEST} characters. Put it in a file, and pass "
                "the file's URI."
            )
        if is_secret(name, value):
            raise ValueError(f"{name} looks like a secret: {CURE}")
    if len(variables) > MOST_VARIABLES:
        raise ValueError(f"{len(variables)} variables are too many: SageMaker takes at most {MOST_VARIABLES}.")
    return variables
