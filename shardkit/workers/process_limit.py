"""Checks, before a run begins, whether the system lets it have the threads and processes that it needs."""

from __future__ import annotations

import threading

from shardkit.errors import RunFailed

BESIDE_WORKERS = 6  # a heartbeat, the process that forks, and a few that read and write


def check_room(workers: int) -> None:
    """Check that as many threads can be started as a run with so many workers has threads and processes.

    Raises:
        RunFailed: they cannot; without this, libraries that start threads would take the process down.
    """
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(2 * workers + BESIDE_WORKERS)]
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise RunFailed(
            f"The system lets this process start {len(started)} more threads or processes; a run with {workers} "
            f"worker{'s' * (workers != 1)} needs {len(threads)}.",
            hint="Raise the limit (ulimit -u, or pids.max of the container), or use fewer workers.",
        ) from None
    finally:
        end.set()
        for thread in started:
            thread.join()
