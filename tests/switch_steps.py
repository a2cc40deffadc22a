"""A program that kills itself before the n-th step of a dataset's switch, or finds the disk full there.

    switch_steps.py STEP kill|full|none run|days|open PROJECT VERSION

It prints the steps that it reached.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shardkit as sk
from shardkit.dataset import next_state as building
from shardkit.dataset import switch as commit
from shardkit.dataset import switch_steps as switching
from shardkit.storage.local import writing

if TYPE_CHECKING:
    from collections.abc import Callable

FATAL, HOW, ACTION = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ROOT, VERSION = Path(sys.argv[4]), sys.argv[5]
steps: list[str] = []
under_way: list[bool] = []
ONE_AT_A_TIME = threading.Lock()


def within_switch(do: Callable[..., Any]) -> Callable[..., Any]:
    def instead(*arguments: Any, **options: Any) -> Any:
        under_way.append(True)
        try:
            return do(*arguments, **options)
        finally:
            under_way.pop()

    return instead


def step(name: str, do: Callable[..., Any], *, of: str = "") -> Callable[..., Any]:
    def instead(*arguments: Any, **options: Any) -> Any:
        if under_way and str(arguments[0]).endswith(of):
            with ONE_AT_A_TIME:
                steps.append(name)
                number = len(steps)
            if number == FATAL and HOW == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == FATAL and HOW == "full":
                with writing(str(arguments[-1])[:100]):
                    raise OSError(28, "No space left on device")
        return do(*arguments, **options)

    return instead


switching.Switch.finish = within_switch(switching.Switch.finish)  # type: ignore[method-assign]
switching.Switch.clear_up = within_switch(switching.Switch.clear_up)  # type: ignore[method-assign]
building.switch = within_switch(commit.switch)
switching._publish = step("publish", switching._publish)
switching.Switch._write_result = step("write", switching.Switch._write_result)  # type: ignore[method-assign]
commit.note = switching.note = step("note", switching.note)
switching.remove = step("remove", switching.remove)
Path.unlink = step("unlink", Path.unlink, of="commit.json")  # type: ignore[method-assign]
switching._tidy = step("tidy", switching._tidy)

if ACTION == "run":
    fields: dict[str, Any] = {"source_dir": ROOT, "workers": 1, "rows_per_file": 3, "run_id": VERSION, "quiet": True}
    sk.run("work:features", ROOT / "data", ROOT / "out", **fields)
elif ACTION == "days":
    fields = {
        "source_dir": ROOT,
        "workers": 1,
        "run_id": VERSION,
        "quiet": True,
        "max_failures": "100%",
        "name": "feed",
    }
    shards = {"by": "date", "path": "{Y}-{m}-{d}"}
    sk.run("feed_work:rows", ROOT / "data", ROOT / "out", shards=shards, **fields)
else:
    sk.open_run(ROOT / "out")
sys.stdout.write(" ".join(steps))
