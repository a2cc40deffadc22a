"""The time limit of a test."""

from __future__ import annotations

BUDGET_S = 5.0
BUSY = 1.6  # how much longer the CPU takes for the same where programs share its caches and wait for its memory


def too_long(cpu_s: float, clock_s: float, *, programs: float) -> str:
    """The complaint about a test that took so many seconds while so many programs ran on each CPU; empty for most.

    CPU seconds count, including those of its processes, because they are about the same on a busy machine. A test that
    only waits takes none, so the clock counts too; its limit is twice as high, times the number of programs for each CPU.
    """
    limit_s = BUDGET_S * (BUSY if programs > 1 else 1)
    # Processes that an earlier test has left may end during this one, which is blamed for no more than its own time.
    if min(cpu_s, clock_s) <= limit_s and clock_s <= 2 * BUDGET_S * max(programs, 1.0):
        return ""
    return (
        f"It took {cpu_s:.1f} s of CPU and {clock_s:.1f} s by the clock, and may take {BUDGET_S:g} s: make it faster, or "
        "mark it with @pytest.mark.slow"
    )
