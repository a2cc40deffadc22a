"""Listing very many objects, by shardkit as in a plan and by s3fs."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from typing import TYPE_CHECKING

import servers
from common import DATA, PYTHON, Measure, contestant, measure

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = 5_000  # objects a day
FASTER_GOAL = 3.0


def list_s3(workers: int, scale: float, runs: int) -> dict[str, object]:  # noqa: ARG001  a listing has no workers
    """100,000 objects on SeaweedFS, without and with 30 ms a request; ten times as many from a stub, for the memory."""
    count = int(100_000 * scale)
    report: dict[str, object] = {}
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(servers.s3_server())
        far = stack.enter_context(servers.delayed(port, 0.03))
        servers.fill(port, ((f"feed/{i // FOLDER:04d}/part-{i:07d}.jsonl", b"x") for i in range(count)))
        print(f"\nlist-s3: {count:,} objects, {FOLDER:,} a folder; whole commands")
        for where, at in (("near", port), ("30 ms", far)):
            ours, theirs = (_measured(script, at, runs) for script in ("list_by_shardkit.py", "list_by_s3fs.py"))
            wall, other = (statistics.median(m.wall_s for m in taken) for taken in (ours, theirs))
            verdict = "reached" if other / wall >= FASTER_GOAL else "MISSED"
            peaks = [max(m.peak_bytes for m in taken) / 1e6 for taken in (ours, theirs)]
            print(
                f"  {where:<6} shardkit {wall:6.2f} s, {peaks[0]:.0f} MB  s3fs.find {other:6.2f} s, {peaks[1]:.0f} MB  "
                f"{other / wall:.1f} times as fast (goal {FASTER_GOAL:g}: {verdict})"
            )
            report[where] = {"shardkit_s": wall, "s3fs_s": other, "peak_mb": peaks}
    report["stub"] = _memory(count)
    return report


def _measured(script: str, port: int, runs: int) -> list[Measure]:
    command = contestant(script, f"s3://{servers.BUCKET}/feed")
    return [measure(command, DATA / "scratch", servers.environment(port)) for _ in range(runs)]


def _memory(count: int) -> dict[str, float]:
    """The peak memory for some objects and for ten times as many, which a stub lists without having them."""
    peaks = {}
    for many in (count, 10 * count):
        with stub(many) as port:
            (taken,) = _measured("list_by_shardkit.py", port, 1)
        peaks[many] = taken.peak_bytes
        print(f"  stub   {many:>9,} objects  {taken.wall_s:6.2f} s  peak {taken.peak_bytes / 1e6:5.0f} MB")
    each = (peaks[10 * count] - peaks[count]) / (9 * count)
    print(f"  {each:.0f} bytes of memory an object")
    return {"bytes_an_object": each, "peak_mb": peaks[count] / 1e6, "peak_mb_ten_times": peaks[10 * count] / 1e6}


@contextlib.contextmanager
def stub(count: int) -> Iterator[int]:
    """A server that lists so many objects; its port."""
    port = servers.free_port()
    script = str(DATA.parent / "list_server.py")
    process = subprocess.Popen([PYTHON, script, str(port), str(count), str(FOLDER)], stderr=subprocess.DEVNULL)
    try:
        servers.wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait()
