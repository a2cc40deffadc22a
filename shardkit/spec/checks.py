"""The section ``checks``: what the new files of a dataset must fulfil before the dataset is switched to them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_serializer, model_validator

from shardkit.dataset.formats.kinds import format_of
from shardkit.engines.values import Names  # noqa: TC001  pydantic reads it
from shardkit.spec.section import Section
from shardkit.traits import Expected

SHARE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*%\s*")
A_SHARE = Expected("a share such as 20%")
COLUMNS = Expected("a column or a list of columns")
QUERIES = Expected("a mapping of names to queries")


def fits_output(value: Checks | None, info: ValidationInfo) -> Checks | None:
    """See that the checks can be made of the output's format; for the field of the pipeline."""
    output = info.data.get("output")
    asked = [name for name in ("no_new_nulls", "unique", "sql") if value is not None and getattr(value, name)]
    if output is not None and asked and not format_of(output.format).tabular:
        raise ValueError(f"{asked[0]} needs files that are read as a table; output.format is {output.format}.")
    return value


class Checks(Section):
    """Checks of the new files; without any there is nothing to check."""

    rows_within: Annotated[str | None, A_SHARE] = None
    no_new_nulls: Annotated[Names, COLUMNS] = ()
    unique: Annotated[Names, COLUMNS] = ()
    same_types: Annotated[bool, Expected("true or false"), Field(strict=True)] = False
    sql: Annotated[dict[str, Annotated[str, Field(min_length=1)]], QUERIES] = Field(default_factory=dict)

    @field_validator("rows_within")
    @classmethod
    def _share(cls, value: str | None) -> str | None:
        if value is not None and not SHARE.fullmatch(value):
            raise ValueError("expected a share such as 20%")
        return value

    @model_validator(mode="after")
    def _some(self) -> Checks:
        if not self.model_dump():
            raise ValueError("there is no check in it; known are rows_within, no_new_nulls, unique, same_types, sql.")
        return self

    @model_serializer(mode="wrap")
    def _given(self, serialize: Any) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items() if value}
