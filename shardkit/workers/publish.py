"""Finished chunks on their way from the spool of this machine to an output that is far away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shardkit.runfolder.claims import commit

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.stop import Stop
    from shardkit.storage.local_folder import LocalFolder

PUBLISHED_AT_ONCE = 4


def publish_chunk(folder: RunFolder, spool: LocalFolder, marker: Marker) -> None:
    """Upload a chunk's parts and, once they are all there, its marker."""
    home = folder.parts_of(marker["shard"])
    for part in marker["parts"]:
        key = f"{home}/{part['name']}"
        folder.files.put_file(spool.root / key, key)
        spool.remove(key)
    if marker["records"]["listed"]:
        commit(folder, marker)


class Publisher:
    """Publishes chunks while the workers go on with others."""

    def __init__(self, publish: Callable[[Marker], None], stop: Stop) -> None:
        self._publish = publish
        self._stop = stop
        self._room = threading.Semaphore(PUBLISHED_AT_ONCE)
        self._threads = ThreadPoolExecutor(PUBLISHED_AT_ONCE, thread_name_prefix="shardkit-publish")
        self._error: BaseException | None = None

    def add(self, marker: Marker) -> Future[None]:
        """Have a chunk committed, after which the future ends; waits while too many are on their way."""
        self._room.acquire()
        return self._threads.submit(self._one, marker)

    def _one(self, marker: Marker) -> None:
        try:
            self._publish(marker)
        except BaseException as error:  # noqa: BLE001  it is raised by check()
            self._error = self._error or error
            self._stop.ask(error, patience_s=0.0)
        finally:
            self._room.release()

    def close(self) -> None:
        """Wait until all is committed."""
        self._threads.shutdown()

    def check(self) -> None:
        """Raise what kept a chunk from being committed."""
        if self._error is not None:
            raise self._error
