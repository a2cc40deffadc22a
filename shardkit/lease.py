"""Leases: locks in an object store."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from typing import Any

from shardkit.errors import RunBusy

LEASE_S = 60.0
LEASE_RENEWAL_S = 15.0


class Lease:
    """A lock that ends by itself when its holder does: conditional writes let one process win.

    ``store`` is obstore's, ``path`` the object's in it; ``busy`` says what to tell those who come too late.
    """

    def __init__(self, store: Any, path: str, busy: str) -> None:
        self._store = store
        self._path = path
        self._busy = busy
        self._holder = uuid.uuid4().hex
        self._etag: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="shardkit-lease", daemon=True)

    def take(self) -> None:
        """Hold the lease from now on.

        Raises:
            RunBusy: another process holds it.
        """
        from obstore import exceptions

        while not self._etag:
            try:
                self._put("create")
            except exceptions.AlreadyExistsError:
                with contextlib.suppress(FileNotFoundError):  # its holder has let go of it in this moment
                    self._take_over()
        self._thread.start()

    def _take_over(self) -> None:
        """Take a lease that has run out; of several that try, one wins."""
        from obstore import exceptions

        found = self._store.get(self._path)
        held = json.loads(bytes(found.bytes()))
        if held.get("holder") == self._holder:  # the answer to an earlier request was lost
            self._etag = found.meta["e_tag"]
            return
        if held["until"] > time.time():
            raise RunBusy(f"{self._busy[:-1]} on {held['host']}.", hint="Wait for it to end, or stop it first.")
        try:
            self._put({"e_tag": found.meta["e_tag"]})
        except (exceptions.PreconditionError, exceptions.AlreadyExistsError):
            raise RunBusy(self._busy, hint="Wait for it to end, or stop it first.") from None

    def _put(self, mode: Any) -> None:
        lease = {"host": socket.gethostname(), "holder": self._holder, "until": time.time() + LEASE_S}
        self._etag = self._store.put(self._path, json.dumps(lease).encode(), mode=mode)["e_tag"]

    def _renew(self) -> None:
        while not self._end.wait(LEASE_RENEWAL_S):
            with contextlib.suppress(Exception):  # the next time, perhaps; else the lease runs out
                if self._is_ours():
                    self._put({"e_tag": self._etag})

    def _is_ours(self) -> bool:
        """Whether nobody has taken the lease over."""
        found = self._store.get(self._path)
        self._etag = found.meta["e_tag"]
        return bool(json.loads(bytes(found.bytes())).get("holder") == self._holder)

    def let_go(self) -> None:
        """End it, if it is still ours."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it runs out by itself
            if self._is_ours():
                self._store.delete(self._path)
