"""A program that ends itself before the n-th step of a dataset's switch, or finds the disk full there.

    switch_steps.py STEP kill|full|none run|days|open PROJECT VERSION

It prints the steps that it came to.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shardkit as sk
from shardkit import building, commit
from shardkit.files import writing
from shardkit.runfolder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

FATAL, HOW, ACTION = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ROOT, VERSION = Path(sys.argv[4]), sys.argv[5]
steps: list[str] = []
switching: list[bool] = []
ONE_AT_A_TIME = threading.Lock()


def within_switch(do: Callable[..., Any]) -> Callable[..., Any]:
    def instead(*arguments: Any, **options: Any) -> Any:
        switching.append(True)
        try:
            return do(*arguments, **options)
        finally:
            switching.pop()

    return instead


def step(name: str, do: Callable[..., Any], *, of: str = "") -> Callable[..., Any]:
    def instead(*arguments: Any, **options: Any) -> Any:
        if switching and str(arguments[0]).endswith(of):
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


commit._finish_switch = within_switch(commit._finish_switch)
building.switch = within_switch(commit.switch)
commit._place = step("place", commit._place)
RunFolder.write = step("write", RunFolder.write)  # type: ignore[method-assign]
commit._note = step("note", commit._note)
commit._remove = step("remove", commit._remove)
Path.unlink = step("unlink", Path.unlink, of="commit.json")  # type: ignore[method-assign]
commit._tidy = step("tidy", commit._tidy)

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
