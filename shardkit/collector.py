"""What the package's own programs say to Python's garbage collector; in a user's process it is left alone."""

from __future__ import annotations

import atexit
import functools
import gc

LOADED = 100_000  # objects: what a run imports comes to somewhat more


@functools.cache  # once a process
def spare_what_is_loaded() -> None:
    """Have the collector pass over what the program loads: it stays to the end, and to look through it takes 70 ms.

    It begins when there are as many objects as that, passes over them for good, and goes on from there as usual.
    """
    usual = gc.get_threshold()

    def begin(*_: object) -> None:
        gc.callbacks.remove(begin)
        gc.freeze()
        gc.set_threshold(*usual)

    gc.callbacks.append(begin)
    gc.set_threshold(LOADED)
    atexit.register(gc.freeze)  # or it would look through all of it at the end, for 0.2 s
