"""The time limit of tests."""

from __future__ import annotations

import pytest
from seconds import too_long


@pytest.mark.parametrize(
    ("cpu_s", "clock_s", "programs", "told"),
    [
        (1.0, 9.0, 0.5, ""),
        (5.1, 5.1, 0.5, "It took 5.1 s of CPU"),
        (7.9, 89.0, 9.0, ""),
        (8.1, 89.0, 9.0, "mark it with @pytest.mark.slow"),
        (0.1, 11.0, 0.5, "and 11.0 s by the clock"),
        (0.1, 11.0, 3.5, ""),
        (0.1, 36.0, 3.5, "and 36.0 s by the clock"),
    ],
)
def test_who_works_or_waits_too_long_is_told_so(cpu_s: float, clock_s: float, programs: float, told: str) -> None:
    said = too_long(cpu_s, clock_s, programs=programs)
    assert bool(said) == bool(told) and told in said
