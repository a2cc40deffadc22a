"""Run folders as earlier versions of shardkit have written them, and the pipelines that they were made from.

``tests/folders`` holds them unchanged, except that their paths start with `HERE`. To add those of another version, run
this file with that version on ``PYTHONPATH``:

    python tests/old_folders.py 0.2
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

FOLDERS = Path(__file__).parent / "folders"
HERE = "/where/it/was/made"
CHECKSUM = re.compile(rb',\s?"crc32":"[0-9a-f]{8}"\s?\}\s*\Z')
LISTED_AT = 1_600_000_000  # when the input's files were written, by which changed files are recognized
WORK = """import os
import time


def rows(record):
    while record.key.startswith("e") and os.path.exists("hold"):
        time.sleep(0.02)
    text = open(record).read()
    if text == "bad":
        raise ValueError("bad text")
    return {"key": record.key, "text": text}
"""
MENDED = WORK.replace('raise ValueError("bad text")', 'text = "mended"')
YAML = """name: texts
input: {input}
function: work:rows
output: {kind}
workers: 1
max_failures: 2
"""
DAYS = "shards: {by: date, path: '{Y}/{m}/{d}'}\n"
TEXTS = {"a.txt": "one", "b.txt": "two", "c.txt": "three", "d.txt": "four", "e.txt": "5", "f.txt": "six"}
BAD = "c.txt"
OF_DAYS = {f"2020/01/{day:02d}/{name}": f"{day} {name}" for day in (1, 2, 3) for name in ("a", "b")}
KINDS = {"done": TEXTS, "quarantine": TEXTS | {BAD: "bad"}, "interrupted": TEXTS, "days": OF_DAYS}


def write_text(path: Path, text: str) -> None:
    """Write one of the input's files, with the time of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (LISTED_AT, LISTED_AT))


def write_world(folder: Path, kind: str) -> Path:
    """Write the input, the function and the pipeline that a folder was made from; returns the pipeline's file."""
    for name, text in KINDS[kind].items():
        write_text(folder / "data" / name, text)
    (folder / "work.py").write_text(WORK)
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(YAML.format(input="data", kind="out") + (DAYS if kind == "days" else ""))
    return pipeline


def bring(version: str, kind: str, folder: Path) -> Path:
    """Put one of the old outputs, with its input and pipeline, into a folder; returns the pipeline's file."""
    from shardkit.plan.digests import work_digest  # not in the versions that this file runs with as a program

    shutil.copytree(FOLDERS / version / kind, folder / "out")
    moved(folder / "out", HERE, str(folder))
    (path,) = (folder / "out").glob("_shardkit/runs/*/plan.json")
    plan = json.loads(path.read_bytes())
    if "work" in plan:  # a digest that includes the input's path
        work = work_digest(plan["pipeline"], plan["function_digest"], named=version != "0.1")
        moved(folder / "out", plan["work"], work)
    return write_world(folder, kind)


def moved(output: Path, old: str, new: str) -> None:
    """Replace a text, such as a path, in an output's documents, and update the checksums of those that have one."""
    for path in output.rglob("*.json"):
        data = path.read_bytes()
        if old.encode() in data:
            path.write_bytes(summed(data.replace(old.encode(), new.encode())))


def summed(data: bytes) -> bytes:
    """A changed document with its checksum updated, if it has one."""
    checksum = CHECKSUM.search(data)
    if checksum is None:
        return data
    head, end = data[: checksum.start()], checksum[0]
    at = end.index(b'"crc32":"') + len(b'"crc32":"')
    return head + end[:at] + b"%08x" % zlib.crc32(head) + end[at + 8 :]


def make(kind: str, folder: Path) -> None:
    """Run the pipeline in a folder; a run that is to be interrupted only until some records are done."""
    pipeline = write_world(folder, kind)
    command = [sys.executable, "-m", "shardkit", "run", pipeline.name, "--quiet", "--run-id", f"old-{kind}"]
    if kind != "interrupted":
        subprocess.run(command, cwd=folder, check=True)
        return
    (folder / "hold").touch()
    process = subprocess.Popen(command, cwd=folder)
    while len(list(folder.glob("out/_shardkit/runs/*/markers/*/*.json"))) < len(TEXTS) - 1:
        time.sleep(0.02)  # until all records but one are done, which waits
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.wait()


def main(version: str, *kinds: str) -> None:
    """Make the folders of the version that is imported: all kinds, or those named."""
    for kind in kinds or KINDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            make(kind, folder)
            moved(folder / "out", str(folder), HERE)
            moved(folder / "out", f'"{socket.gethostname()}"', '"a-machine"')
            shutil.rmtree(FOLDERS / version / kind, ignore_errors=True)
            shutil.copytree(folder / "out", FOLDERS / version / kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
