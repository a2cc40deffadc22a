"""What the sections of a pipeline have in common, and the values that several of them hold."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from shardkit.storage.base import scheme_of
from shardkit.storage.schemes import is_in_process


class Section(BaseModel):
    """Fields that belong together; unknown fields are refused."""

    # A traceback in a notebook must not print the values of the environment.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, arbitrary_types_allowed=True, hide_input_in_errors=True
    )


def path_text(value: Any) -> Any:
    """A path as text; anything else stays as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _shared(value: str) -> str:
    """See that worker processes can reach the place, too."""
    if is_in_process(scheme_of(value)):
        raise ValueError(
            f"{scheme_of(value)}:// is the memory of one process, and a pipeline's workers are others; use a folder."
        )
    return value


Uri = Annotated[str, BeforeValidator(path_text), Field(min_length=1), AfterValidator(_shared)]
