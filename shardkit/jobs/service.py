"""Serving a queue: rounds of monitor() and launch() by the policy that the store has, for as long as they are wanted.

    serve(SQLiteStore("jobs.sqlite"), boto3.client("sagemaker"))

On one machine this is a loop; in the cloud, functions on a schedule make the same rounds (``shardkit.jobs.handlers``).
"""

from __future__ import annotations

import dataclasses
import shlex
import threading
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import Clock, RealClock
from shardkit.jobs.launching import launch
from shardkit.jobs.monitoring import monitor
from shardkit.jobs.notices import send_notices
from shardkit.jobs.policy import Policy
from shardkit.jobs.rounds import change_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.notices import NoticeReport
    from shardkit.jobs.rounds import Report
    from shardkit.jobs.store import Store

POLICY, SERVED = "policy", "served"  # the keys of the shared state
SERVED_EVERY_S = 30.0
SILENT_S = 300.0


def policy_of(store: Store, default: Policy | None = None) -> Policy:
    """The policy that a store's queue is served by: the fields set there, and else the default's."""
    kept, _ = store.state(POLICY)
    base = {each.name: getattr(default or Policy(), each.name) for each in dataclasses.fields(Policy)}
    return Policy.from_dict(base | kept) if kept else (default or Policy())


def set_policy(store: Store, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change the policy that a store's queue is served by; a value of None resets a field to its default.

    Returns:
        What is set now.

    Raises:
        JobError: A field is unknown, or its value is not valid.
    """
    kept: dict[str, Any] = {}

    def change(value: dict[str, Any]) -> None:
        merged = {**value, **changes}
        value.clear()
        value.update({name: setting for name, setting in merged.items() if setting is not None})
        Policy.from_dict(value)
        kept.clear()
        kept.update(value)

    change_state(store, POLICY, change)
    return kept


def mark_served(store: Store, now: float, trouble: str) -> None:
    """Note for those who watch that somebody serves the queue, and any trouble with it; now and then is enough."""
    value, version = store.state(SERVED)
    if not 0 <= now - value.get("at", 0.0) < SERVED_EVERY_S or trouble != value.get("trouble"):
        store.put_state(SERVED, {"at": now, "trouble": trouble}, version)


def trouble_of(store: Store, now: float, *, place: str = "", engine: str = "") -> str:
    """What keeps a queue from going on, according to the notes of those who serve it; empty if nothing does.

    Given its ``place``, and the ``engine`` of its jobs, it names the command that would serve it.
    """
    command = f": shardkit jobs serve --store {shlex.quote(place)}" if place else ""
    command += f" --engine {engine}" if command and engine else ""
    value, _ = store.state(SERVED)
    if not value:
        return f"nobody serves this queue yet{command}"
    silent_s = now - value["at"]
    if silent_s > SILENT_S:
        return f"nobody has served this queue for {silent_s / 60:.0f} min{command}"
    return str(value["trouble"])


def serve(
    store: Store,
    engine: Engine,
    *,
    policy: Policy | None = None,
    clock: Clock | None = None,
    session: Any = None,
    place: str = "",
    region: str | None = None,
    on_round: Callable[[Report, Report, NoticeReport], None] | None = None,
    stop: threading.Event | None = None,
    until_ended: bool = False,
) -> None:
    """Serve a queue until asked to stop; jobs that are submitted meanwhile are launched too.

    Args:
        store: The jobs.
        engine: The service.
        policy: The policy for whatever the store's own policy leaves open.
        clock: Gives the time.
        session: The boto3 session for sending notices.
        place: Where the store is, to be named in notices.
        region: The service's region, for links to logs; by default the session's, and empty for an engine without logs
            in CloudWatch.
        on_round: Gets the reports of monitor(), launch() and send_notices() after every round.
        stop: Ends the loop once it is set.
        until_ended: Also end the loop once every job has ended; if the store's reads lag, two rounds must say so.

    Raises:
        EngineRefused: The service takes no calls from this client.
    """
    time, over = clock or RealClock(), stop or threading.Event()
    all_ended = False
    while not over.is_set():
        rules = policy_of(store, policy)
        seen = monitor(store, engine, policy=rules, clock=time)
        report = launch(store, engine, policy=rules, clock=time)
        sent = send_notices(store, session=session, clock=time, place=place, region=region)
        mark_served(store, time.time(), report.trouble or seen.trouble or "; ".join(sent.trouble))
        if on_round is not None:
            on_round(seen, report, sent)
        before, all_ended = all_ended, until_ended and report.ended and not any(_open(store.counts()))
        if all_ended and (before or not store.lag_s):
            return
        idle_s = store.lag_s if all_ended else rules.poll_s
        over.wait(idle_s if report.ended else min(report.next_in_s, rules.poll_s))


def _open(counts: Mapping[str, int]) -> list[int]:
    return [counts["New"], counts["Launched"], counts["InProgress"]]
