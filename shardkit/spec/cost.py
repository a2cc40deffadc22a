"""What a run may cost: a field of a pipeline."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from shardkit.engines.values import NoTruth
from shardkit.spec.section import Section, path_text
from shardkit.traits import Expected, IsPath

SHIPPED, FROM_AWS = "shipped", "aws"


class MaxCost(Section):
    """The most that the instances of a run may cost, in US dollars, by which prices, and what is known beforehand.

    ``prices`` are US dollars an hour by instance type: a JSON file, ``aws``, ``shipped``, or a mapping. ``sample`` says
    how many records are run before a run starts, to forecast what it will cost; 0 starts it without a forecast.
    """

    usd: Annotated[float, NoTruth, Expected("US dollars above 0, such as 50")] = Field(gt=0, allow_inf_nan=False)
    prices: Annotated[
        str | dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]],
        IsPath(words=(SHIPPED, FROM_AWS)),
        BeforeValidator(path_text),
        Expected("a JSON file, aws, shipped, or a mapping of instance types to US dollars an hour"),
    ] = SHIPPED
    sample: Annotated[int, NoTruth, Expected("a number of records, or 0")] = Field(20, ge=0)

    @field_validator("usd", mode="before")
    @classmethod
    def _dollars(cls, value: object) -> object:
        """A dollar sign before the number does no harm."""
        return value.strip().removeprefix("$") if isinstance(value, str) else value
