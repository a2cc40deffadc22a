"""What the programs say to Python's garbage collector."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from shardkit.collector import LOADED, spare_what_is_loaded

usual, before, runs = gc.get_threshold(), gc.get_stats()[0]["collections"], []
spare_what_is_loaded()
spare_what_is_loaded()
loaded = [[] for _ in range(LOADED // 2)]
assert gc.get_stats()[0]["collections"] == before
loaded += [[] for _ in range(LOADED)]
assert gc.get_freeze_count() >= LOADED and gc.get_threshold() == usual and not gc.callbacks


class Ring:
    def __init__(self):
        self.itself = self

    def __del__(self):
        runs.append(self)


Ring()
more = [[] for _ in range(10 * usual[0])]
assert runs
"""


def test_the_collector_passes_over_what_is_loaded_and_then_goes_on_as_usual() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
