"""What CreateProcessingJob takes, checked before anything is sent: fields by fields, with what to do instead."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.masking import is_secret, masked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROLE_ARN = re.compile(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
ROLE_NAME = re.compile(r"[\w+=,.@-]{1,64}")
MOST_WORDS = 100  # of the entrypoint, and of the arguments
LONGEST_WORD = 256
MOST_INPUTS = 10
MOST_TAGS = 50


def checked_role(role: str) -> str:
    """A role's ARN, or the name of one.

    Raises:
        ValueError: it is neither.
    """
    if not (ROLE_ARN.fullmatch(role) or ROLE_NAME.fullmatch(role)):
        raise ValueError("expected the ARN of an IAM role, such as arn:aws:iam::123456789012:role/NAME")
    return role


def checked_key(key: str) -> str:
    """The id, ARN or alias of a KMS key.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[a-zA-Z0-9:/_-]{1,2048}", key):
        raise ValueError("expected the id, ARN or alias of a KMS key")
    return key


def checked_name(name: str) -> str:
    """What the names of jobs begin with; it may be empty.

    Raises:
        ValueError: no job can have such a name.
    """
    if name and not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name):
        raise ValueError(
            "expected at most 63 letters and digits, with - between them, which is what SageMaker takes in names"
        )
    return name


def checked_tags(value: Any) -> Any:
    """Tags as a mapping, from one or from the service's list of Key and Value.

    Raises:
        ValueError: a tag is given twice, or the service would not take it.
    """
    if isinstance(value, list | tuple):
        if not all(isinstance(tag, dict) and set(tag) == {"Key", "Value"} for tag in value):
            raise ValueError("expected a mapping of names to texts.")
        if len({tag["Key"] for tag in value}) < len(value):
            raise ValueError("a key is given twice.")
        value = {tag["Key"]: tag["Value"] for tag in value}
    if not isinstance(value, dict):
        raise ValueError("expected a mapping of names to texts.")  # noqa: TRY004  pydantic wants a ValueError
    tags = {str(key): str(item) for key, item in value.items()}
    for key, item in tags.items():
        if not 1 <= len(key) <= 128 or len(item) > 256:
            raise ValueError(f"{key[:40]!r} is too long: a key has 1 to 128 characters, a value at most 256.")
        if is_secret(key, item):
            raise ValueError(
                f"{masked(key)[:40]!r} looks like a secret: everybody who may describe the job can read it."
            )
        if key.lower().startswith("aws:"):
            raise ValueError(f"{key!r} will not do: keys that begin with aws: are the service's own.")
        odd = next((sign for sign in key + item if not _in_a_tag(sign)), None)
        if odd is not None:
            raise ValueError(f"{key!r} holds {odd!r}: letters, digits, spaces and _ . : / = + - @ only.")
    if len(tags) > MOST_TAGS:
        raise ValueError(f"{len(tags)} tags are too many: SageMaker takes at most {MOST_TAGS}.")
    return tags


def _in_a_tag(sign: str) -> bool:
    return sign in "_.:/=+-@" or unicodedata.category(sign)[0] in "LZN"


def check_words(field: str, words: Iterable[str]) -> list[str]:
    """The words of an entrypoint or of arguments as a list.

    Raises:
        PipelineError: there are too many of them, or one is empty or too long.
    """
    listed = [str(word) for word in words]
    if len(listed) > MOST_WORDS:
        raise PipelineError(f"{field}: {len(listed)} are too many: SageMaker takes at most {MOST_WORDS}.")
    for i, word in enumerate(listed):
        if not 1 <= len(word) <= LONGEST_WORD:
            raise PipelineError(
                f"{field}[{i}]: {len(word)} characters: SageMaker takes 1 to {LONGEST_WORD}.",
                hint="What is longer belongs in a file in the run folder.",
            )
    return listed


def check_inputs(inputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """ProcessingInputs as a list.

    Raises:
        PipelineError: there are too many, or two of one name.
    """
    listed = [dict(entry) for entry in inputs]
    if len(listed) > MOST_INPUTS:
        raise PipelineError(
            f"inputs: {len(listed)} are too many: SageMaker takes at most {MOST_INPUTS}, the code is one."
        )
    names = [entry.get("InputName") for entry in listed]
    if len(set(names)) < len(names):
        raise PipelineError(f"inputs: two have the same InputName: {', '.join(map(str, names))}.")
    return listed
