"""What a test may take."""

from __future__ import annotations

BUDGET_S = 5.0


def too_long(cpu_s: float, clock_s: float, *, programs: float) -> str:
    """What to tell of a test that took so many seconds, where so many programs ran on each CPU; nothing of most.

    Seconds of CPU count, those of its processes with them: they are the same on a busy machine. Who only waits takes
    none of them, so those of the clock count too: twice as many, and as many times more as programs share a CPU.
    """
    # Of processes that an earlier test has left, the end falls into this one: it is blamed for no more than its time.
    if min(cpu_s, clock_s) <= BUDGET_S and clock_s <= 2 * BUDGET_S * max(programs, 1.0):
        return ""
    return (
        f"It took {cpu_s:.1f} s of CPU and {clock_s:.1f} s by the clock, and may take {BUDGET_S:g} s: make it faster, or "
        "mark it with @pytest.mark.slow"
    )
