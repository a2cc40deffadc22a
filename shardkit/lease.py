"""Leases: locks in an object store."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from shardkit.errors import RunBusy

if TYPE_CHECKING:
    from collections.abc import Callable

LEASE_S = 60.0
LEASE_RENEWAL_S = 15.0
CLOCKS_APART_S = 20.0  # at most, those of two machines


class Lease:
    """A lock that ends by itself when its holder does: conditional writes let one process win.

    ``store`` is obstore's, ``path`` the object's in it; ``busy`` says what to tell those who come too late. ``ask``
    makes a request, repeats it where that helps, and lets pass what the store says of its condition.
    """

    def __init__(self, store: Any, path: str, busy: str, ask: Callable[[Callable[[], Any]], Any]) -> None:
        self._store = store
        self._ask = ask
        self._path = path
        self._busy = busy
        self._holder = uuid.uuid4().hex
        self._state: dict[str, str] = {}
        self._until = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="shardkit-lease", daemon=True)

    def take(self) -> None:
        """Hold the lease from now on.

        Raises:
            RunBusy: another process holds it.
        """
        from obstore import exceptions

        while not self._state:
            try:
                self._put("create")
            except exceptions.AlreadyExistsError:
                with contextlib.suppress(FileNotFoundError):  # its holder has let go of it in this moment
                    self._take_over()
        self._thread.start()

    def _take_over(self) -> None:
        """Take a lease that has run out; of several that try, one wins."""
        from obstore import exceptions

        held, meta = self._look()
        if held.get("holder") == self._holder:  # the answer to an earlier request was lost
            self._state = _state(meta)
            return
        if held["until"] > time.time():
            raise RunBusy(f"{self._busy[:-1]} on {held['host']}.", hint="Wait for it to end, or stop it first.")
        try:
            self._put(_state(meta))
        except (exceptions.PreconditionError, exceptions.AlreadyExistsError):
            if self._is_ours():  # likewise
                return
            self._state = {}
            raise RunBusy(self._busy, hint="Wait for it to end, or stop it first.") from None

    def _put(self, mode: Any) -> None:
        until = time.time() + LEASE_S
        lease = {"host": socket.gethostname(), "holder": self._holder, "until": until}
        self._state = _state(self._ask(lambda: self._store.put(self._path, json.dumps(lease).encode(), mode=mode)))
        self._until = until

    def _renew(self) -> None:
        while not self._end.wait(LEASE_RENEWAL_S):
            with contextlib.suppress(Exception):  # the next time, perhaps; else the lease runs out
                if self._is_ours():
                    self._put(self._state)

    def _is_ours(self) -> bool:
        """Whether nobody has taken the lease over."""
        held, meta = self._look()
        self._state = _state(meta)
        ours = bool(held.get("holder") == self._holder)
        if not ours:
            self._until = 0.0
        return ours

    def _look(self) -> tuple[dict[str, Any], Any]:
        """What the lease says, and the state of its object."""

        def look() -> tuple[bytes, Any]:
            found = self._store.get(self._path)
            return bytes(found.bytes()), found.meta

        data, meta = self._ask(look)
        return json.loads(data), meta

    def let_go(self) -> None:
        """End it, if it is still ours."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it runs out by itself
            if time.time() < self._until - CLOCKS_APART_S or self._is_ours():
                self._ask(lambda: self._store.delete(self._path))


def _state(told: Any) -> dict[str, str]:
    """What an object must still be for the next write: stores go by its etag, Google's by its version."""
    return {name: told[name] for name in ("e_tag", "version") if told.get(name)}
