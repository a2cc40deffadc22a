"""A program that kills itself before the n-th step of a dataset's switch, or finds the disk full there.

With ``copy`` it goes on, and copies the project before each step, whichever STEP is given: to ``PROJECT-before-1`` and so
on. That is what would be left if it were killed there.

    switch_steps.py STEP kill|full|copy|none run|days|resume|open|checked|accept PROJECT VERSION [FORMAT]

It prints the steps that it reached.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shardkit as sk
from shardkit.dataset import next_state as building
from shardkit.dataset import switch as commit
from shardkit.dataset import switch_steps as switching
from shardkit.runfolder.folder import RunFolder
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


def step(name: str, do: Callable[..., Any], *, of: str = "", always: str = "") -> Callable[..., Any]:
    def instead(*arguments: Any, **options: Any) -> Any:
        if always and always in arguments:
            under_way.append(True)  # it is a step wherever it is
            try:
                return counted(*arguments, **options)
            finally:
                under_way.pop()
        return do(*arguments, **options) if always else counted(*arguments, **options)

    def counted(*arguments: Any, **options: Any) -> Any:
        if under_way and str(arguments[0]).endswith(of):
            with ONE_AT_A_TIME:
                steps.append(name)
                number = len(steps)
            if HOW == "copy":
                with ONE_AT_A_TIME:  # nothing else is done meanwhile
                    shutil.copytree(ROOT, f"{ROOT}-before-{number}")
                    return do(*arguments, **options)
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
switching.write_index = step("index", switching.write_index)  # of formats that have one
switching._tidy = step("tidy", switching._tidy)
RunFolder.write = step("checks", RunFolder.write, always="checks.json")  # type: ignore[method-assign]

if ACTION == "run":
    fields: dict[str, Any] = {"source_dir": ROOT, "workers": 1, "rows_per_file": 3, "run_id": VERSION, "quiet": True}
    fields |= {"format": sys.argv[6]} if len(sys.argv) > 6 else {}
    sk.run("work:features", ROOT / "data", ROOT / "out", **fields)
elif ACTION == "checked":
    pipeline = sk.Pipeline(
        function="work:features",
        input=ROOT / "data",
        output=ROOT / "out",
        source_dir=ROOT,
        workers=1,
        checks={"sql": {"version": "SELECT * FROM new WHERE version <> 'first'"}},
    )
    pipeline.run(run_id=VERSION, quiet=True)
elif ACTION == "accept":
    sk.open_run(ROOT / "out", VERSION).accept(quiet=True)
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
elif ACTION == "resume":
    sk.open_run(ROOT / "out", VERSION).resume(quiet=True)
else:
    sk.open_run(ROOT / "out")
sys.stdout.write(" ".join(steps))
