"""drive(): the loop around monitor() and launch(), on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.jobs.clock import Clock, RealClock
from shardkit.jobs.job import LIVE, NEW
from shardkit.jobs.launching import launch
from shardkit.jobs.monitoring import monitor
from shardkit.jobs.policy import Policy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.rounds import Report
    from shardkit.jobs.store import Store


def drive(
    store: Store,
    engine: Engine,
    *,
    policy: Policy | None = None,
    clock: Clock | None = None,
    on_round: Callable[[Report, Report], bool | None] | None = None,
    rng: random.Random | None = None,
) -> Report:
    """Monitor and launch until every job has ended; if the store's reads lag, until two rounds in a row say so.

    Interrupting it does the jobs no harm: they go on, and the next drive() carries on with them.

    Args:
        store: The jobs.
        engine: The service.
        policy: How fast and how often.
        clock: Gives the time.
        on_round: Gets the reports of monitor() and launch() after every round; ``False`` ends the loop.
        rng: The source of randomness for waits.

    Returns:
        The last report of launch().
    """
    rules, time = policy or Policy(), clock or RealClock()
    over = False
    while True:
        seen = monitor(store, engine, policy=rules, clock=time)
        report = launch(store, engine, policy=rules, clock=time, rng=rng)
        asked_to_end = on_round is not None and on_round(seen, report) is False
        before, over = over, report.ended and not store.jobs(status=(NEW, *LIVE), limit=1)  # another may be at work
        if asked_to_end or (over and (before or not store.lag_s)):
            return report
        time.sleep(max(report.next_in_s, store.lag_s) if report.ended else report.next_in_s)
