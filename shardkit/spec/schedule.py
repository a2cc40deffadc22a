"""A schedule: when a pipeline is due."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from shardkit.errors import PipelineError
from shardkit.times import interval, zone_of

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def _is_time(value: str) -> str:
    if not interval(value):
        raise ValueError(f"expected a time such as 30m, 3h, 1d or 2w, not {value!r}.")
    return value


def _is_cron(value: str) -> str:
    from cronsim import CronSim, CronSimError

    try:
        next(CronSim(value, EPOCH))
    except CronSimError as error:
        raise ValueError(f"{value!r} is no cron expression, or one that is never due ({error}).") from None
    except StopIteration:
        raise ValueError(f"{value!r} is never due: there is no such date.") from None
    return value


def _is_zone(value: str) -> str:
    try:
        zone_of(value)
    except PipelineError:
        raise ValueError(f"there is no time zone {value!r}; write a name such as Europe/Paris, or UTC.") from None
    return value


Time = Annotated[str, Field(min_length=1), AfterValidator(_is_time)]
Cron = Annotated[str, Field(min_length=1), AfterValidator(_is_cron)]
Zone = Annotated[str, Field(min_length=1), AfterValidator(_is_zone)]


class Schedule(BaseModel):
    """When a pipeline is due: ``every`` so long, or by a ``cron`` expression; ``since`` says which days are looked at.

    With ``clean``, such as ``7d``, run folders are removed that are older than that and no longer needed.

    In a pipeline ``schedule: 3h`` is short for ``{every: 3h}``, and ``schedule: "0 5 * * *"`` for ``{cron: ...}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    every: Time | None = None
    cron: Cron | None = None
    since: Time | None = None
    clean: Time | None = None
    zone: Zone | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"cron" if " " in given.strip() or given.startswith("@") else "every": given}
        return given

    @model_validator(mode="after")
    def _one_of_both(self) -> Schedule:
        if (self.every is None) == (self.cron is None):
            raise ValueError("expected either every (such as 3h) or cron (such as '0 5 * * *').")
        return self

    def next(self, after: datetime.datetime) -> datetime.datetime:
        """The first due time after another time, in the schedule's zone.

        Intervals are counted from midnight, UTC, of 1970-01-01, so that it does not matter when the loop was started.
        """
        from cronsim import CronSim

        here = after.astimezone(zone_of(self.zone))
        if self.cron is not None:
            due: datetime.datetime = next(CronSim(self.cron, here))
            return due
        step = cast("datetime.timedelta", interval(str(self.every)))
        return (EPOCH + ((after - EPOCH) // step + 1) * step).astimezone(here.tzinfo)
