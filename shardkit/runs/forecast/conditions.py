"""What a forecast takes for granted about the service: quotas, times to start, how often there is no instance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardkit.engines.service_settings import ServiceSettings
from shardkit.errors import PipelineError
from shardkit.units import human_seconds, percent

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from shardkit.engines.settings import Settings

STARTUP_S = 240.0  # from CreateProcessingJob to the function's first call, on a new instance of the service
WARM_STARTUP_S = 20.0
LOCAL_STARTUP_S = 1.0
ANY = ""  # the key of the quota for all types that have none of their own


@dataclass(frozen=True)
class Conditions:
    """How the service is thought to behave.

    Args:
        quotas: How many instances of a type the account may have at once; under ``""`` that of all other types. A type
            that is in neither has no limit.
        startup_s: Seconds from a job's creation to its work, on a new instance; for each job it is between three
            quarters and one and a half times this.
        capacity_errors: The share of attempts for which there is no instance.
        no_capacity_s: Seconds until an attempt without an instance fails; None if that takes as long as to start.
        warm_startup_s: Seconds from a job's creation to its work, on an instance that was kept.
        keep_alive_s: How long an instance is kept after a job; 0 if it is not.
    """

    quotas: Mapping[str, int] = field(default_factory=dict)
    startup_s: float = STARTUP_S
    capacity_errors: float = 0.0
    no_capacity_s: float | None = None
    warm_startup_s: float = WARM_STARTUP_S
    keep_alive_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.capacity_errors < 1:
            raise PipelineError(f"capacity_errors: expected a share such as 5%, not {self.capacity_errors}.")
        if self.startup_s < 0:
            raise PipelineError(f"startup_s: expected seconds of 0 or more, not {self.startup_s}.")
        wrong = next((number for number in self.quotas.values() if number < 1), None)
        if wrong is not None:
            raise PipelineError(f"quotas: expected a number of instances, not {wrong}.")

    @classmethod
    def of(
        cls,
        engine: Settings,
        *,
        quotas: Mapping[str, int] | None = None,
        startup_s: float | None = None,
        capacity_errors: float = 0.0,
    ) -> Conditions:
        """The conditions on an engine, as far as nobody says otherwise."""
        usual_s = LOCAL_STARTUP_S if engine.local else STARTUP_S
        known = cls(dict(quotas or {}), usual_s if startup_s is None else startup_s, capacity_errors)
        if engine.local:
            known = replace(known, no_capacity_s=0.0)
        if isinstance(engine, ServiceSettings) and engine.keep_alive and not engine.spot and not engine.local:
            known = replace(known, keep_alive_s=float(engine.keep_alive))
        return known

    def quota(self, instance_type: str) -> int | None:
        """How many instances of that type there may be at once; None if nothing limits them."""
        return self.quotas.get(instance_type, self.quotas.get(ANY))

    def draw_startup_s(self, dice: random.Random) -> float:
        """How long one job takes to begin."""
        return self.startup_s * dice.triangular(0.75, 1.5, 0.9)

    def draw_no_capacity_s(self, dice: random.Random) -> float:
        """How long one attempt takes to fail for want of an instance."""
        return self.draw_startup_s(dice) if self.no_capacity_s is None else self.no_capacity_s

    def lines(self) -> list[str]:
        """The same in words."""
        named = [f"{number} of {kind}" for kind, number in self.quotas.items() if kind]
        rest = f"{self.quotas[ANY]} of any {'other ' if named else ''}type" if ANY in self.quotas else ""
        quota = ", ".join(filter(None, [*named, rest])) or "none known"
        lines = [
            f"quotas of instances: {quota}",
            f"a job begins its work about {human_seconds(self.startup_s)} after its creation",
        ]
        if self.keep_alive_s:
            lines.append(f"on an instance that was kept, {human_seconds(self.warm_startup_s)} after it")
        if self.capacity_errors:
            lines.append(f"for {percent(self.capacity_errors)} of attempts there is no instance")
        return lines
