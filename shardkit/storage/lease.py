"""Leases: locks in an object store.

A lease is an object that its holder rewrites every few seconds. A process that wants the lease watches it: if it does
not change for as long as a lease lasts, by the watcher's own clock, the holder is gone or asleep, and a conditional
write takes the lease over. The time of day plays no part, because machines do not agree on it. When a sleeping holder
wakes up, its own next write fails.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from shardkit.errors import LockLost, RunBusy
from shardkit.storage.locks import BUSY_HINT, LOST_HINT, Held
from shardkit.storage.process import awake_or_not_s, identity, is_gone, is_here

if TYPE_CHECKING:
    from collections.abc import Callable

LEASE_S = 60.0
LEASE_RENEWAL_S = 10.0
SURE_SHARE = 0.75  # of a lease: until then nobody can have taken it after a renewal, whichever clock runs faster
LOOKS = 20  # how often a watcher reads a lease while it lasts
LONGEST_LOOK_S = 1.0
_SEEN: dict[str, tuple[dict[str, str], float]] = {}  # leases of others, by URI: their state, and since when
PLAUSIBLE_S = 3600.0  # an end of a lease further ahead than that was written by a wrong clock


class Lease(Held):
    """A lock that ends by itself when its holder does: conditional writes let one process win.

    ``store`` is obstore's, ``path`` is the object's in it, and ``uri`` identifies it; ``busy`` is the message for those
    who come too late. ``ask`` makes a request and repeats it where that helps; errors about its condition pass through
    unchanged.
    """

    def __init__(self, store: Any, path: str, uri: str, busy: str, ask: Callable[[Callable[[], Any]], Any]) -> None:
        self._uri = uri
        self._store = store
        self._ask = ask
        self._path = path
        self._busy = busy
        self._holder = uuid.uuid4().hex
        self._state: dict[str, str] = {}
        self._sure_until = 0.0
        self._lost: LockLost | None = None
        self._renewing = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="shardkit-lease", daemon=True)

    # ---- taking it ---------------------------------------------------------------------------------------------------

    def take(self, patience_s: float = 0.0) -> None:
        """Hold the lease from now on; wait up to ``patience_s`` for a living holder.

        Raises:
            RunBusy: another process holds it.
        """
        deadline = time.monotonic() + patience_s
        watch = _Watch(self._uri)
        while not self._write("create"):
            try:
                held, state = self._look()
            except FileNotFoundError:  # its holder has just let go of it
                continue
            if held.get("holder") == self._holder:  # the answer to an earlier request was lost
                self._state = state
                break
            if _is_free(held) or watch.is_still(state):
                if self._write(state):
                    break
                continue
            if (watch.changed or _is_fresh(held)) and time.monotonic() >= deadline:
                raise RunBusy(f"{self._busy[:-1]} on {held.get('host', 'another machine')}.", hint=BUSY_HINT)
            watch.report(f"{self._busy[:-1]} on {held.get('host', 'another machine')}")
            time.sleep(min(LONGEST_LOOK_S, LEASE_S / LOOKS))
        self._thread.start()

    def _write(self, mode: Any) -> bool:
        """Write the lease if it is still as ``mode`` says; return whether it was."""
        from obstore import exceptions

        try:
            self._put(mode)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError):
            return False
        return True

    def _put(self, mode: Any, **more: Any) -> None:
        begun = awake_or_not_s()
        lease = {
            "host": socket.gethostname(),
            "holder": self._holder,
            "until": time.time() + LEASE_S,  # for people, and for a quick look by `is_held`
            "at": begun,
            **identity(),
            **more,
        }
        self._state = state_of(self._ask(lambda: self._store.put(self._path, json.dumps(lease).encode(), mode=mode)))
        self._sure_until = begun + SURE_SHARE * LEASE_S

    def _look(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The content of the lease, and the state of its object."""

        def look() -> tuple[bytes, Any]:
            answer = self._store.get(self._path)
            return bytes(answer.bytes()), answer.meta

        data, meta = self._ask(look)
        return _parsed(data), state_of(meta)

    # ---- keeping it --------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while self._lost is None and not self._end.wait(LEASE_RENEWAL_S):
            with contextlib.suppress(Exception):  # it tries again next time; else the lease runs out
                self._renew()

    def _renew(self) -> None:
        """Rewrite the lease.

        Raises:
            LockLost: another process has taken it.
        """
        with self._renewing:
            if self._lost is None and not self._write(self._state):
                held: dict[str, Any] = {}
                with contextlib.suppress(FileNotFoundError):
                    held, state = self._look()
                if held.get("holder") != self._holder or not self._write(state):  # or an answer was lost
                    self._lose(held)
            if self._lost is not None:
                raise self._lost

    def _lose(self, held: dict[str, Any]) -> None:
        other = (
            f"Another process on {held['host']} took it"
            if held.get("host")
            else "Another process took it, and has ended since"
        )
        message = f"This run lost its lease while it was paused or cut off. {other} ({self._busy.rstrip('.')})."
        self._lost = LockLost(message, hint=LOST_HINT)

    def check(self, *, sure: bool = False) -> None:
        """Check that the lease is still held: by the clock if it was written a moment ago, else by rewriting it."""
        if self._lost is not None:
            raise self._lost
        if sure or awake_or_not_s() >= self._sure_until:
            self._renew()

    @property
    def lost(self) -> LockLost | None:
        """Why the lease is lost, once the thread that renews it has found out."""
        return self._lost

    def let_go(self) -> None:
        """End it, if it is still ours."""
        self._end.set()
        self._thread.join()
        if self._lost is not None:
            return
        with contextlib.suppress(Exception):  # it runs out by itself
            if awake_or_not_s() < self._sure_until:
                self._ask(lambda: self._store.delete(self._path))
            else:  # it may be another's by now, and a removal cannot be conditional
                self._put(self._state, released=True)


class _Watch:
    """Watches whether an object stays unchanged, by the clock of this process alone."""

    def __init__(self, uri: str) -> None:
        self.changed = False
        self._uri = uri
        self._state, self._since = _SEEN.get(uri, ({}, 0.0))
        self._first = True
        self._reported = False

    def is_still(self, state: dict[str, str]) -> bool:
        """Whether it has been in that state for as long as a lease lasts."""
        if state != self._state:
            self.changed = not self._first
            self._state, self._since = state, time.monotonic()
            seen(self._uri, state)
        self._first = False
        return time.monotonic() - self._since >= LEASE_S

    def report(self, what: str) -> None:
        """Say once that it takes a while."""
        if not self._reported and not self.changed:
            self._reported = True
            left = max(LEASE_S - (time.monotonic() - self._since), 0.0)
            sys.stderr.write(f"{what}, it seems: waiting up to {left:.0f} s to see whether that is still alive.\n")


def seen(uri: str, state: dict[str, str]) -> None:
    """Remember the state of a lease: if it is unchanged after the time a lease lasts, nobody needs to wait again."""
    if uri not in _SEEN or _SEEN[uri][0] != state:
        _SEEN[uri] = state, time.monotonic()


def is_held(data: bytes) -> bool:
    """Whether a lease with this content seems to be held. A guess from what its holder wrote: do not rely on it."""
    held = _parsed(data)
    ahead_s = float(held.get("until", 0.0)) - time.time()
    return not _is_free(held) and 0 < ahead_s < LEASE_S + PLAUSIBLE_S


def _is_free(held: dict[str, Any]) -> bool:
    """Whether the holder has surely let go of the lease, or is surely gone."""
    return not held or bool(held.get("released")) or is_gone(held)


def _is_fresh(held: dict[str, Any]) -> bool:
    """Whether a process of this machine wrote it a moment ago, by the clock that both share."""
    return is_here(held) and 0 <= awake_or_not_s() - float(held.get("at", 0.0)) < LEASE_S


def _parsed(data: bytes) -> dict[str, Any]:
    """The content of a lease; empty if it is damaged, because no living holder leaves it so."""
    with contextlib.suppress(ValueError):
        content = json.loads(data)
        return content if isinstance(content, dict) else {}
    return {}


def state_of(meta: Any) -> dict[str, str]:
    """The state that an object must still have at the next write: stores compare its etag, Google's its version."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
