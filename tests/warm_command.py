"""Runs a command as a fork of the process that has loaded the program (see warm.py), for shells and other programs.

It is what `shardkit` and `python` are in a folder that `folder()` makes, for the front of a PATH. What is no command of
the program (`python script.py`) runs as always.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import sys
from pathlib import Path

ADDRESS = "SHARDKIT_TESTS_WARM"
LENGTH, ENDED = struct.Struct("!I"), struct.Struct("!id")


def folder(place: Path) -> Path:
    """Make the folder with the commands in ``place``."""
    place.mkdir(exist_ok=True)
    for name, words in (("shardkit", ["-m", "shardkit"]), ("python", [])):
        path = place / name
        path.write_text(
            f"#!{sys.executable} -SEI\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"from warm_command import main\nmain({sys.executable!r}, {words!r} + sys.argv[1:])\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return place


def main(python: str, words: list[str]) -> None:
    """Run it, and end as it does."""
    if words[:1] != ["-m"] or words[1:2][0].partition(".")[0] != "shardkit":
        os.execv(python, [python, *words])
    import json

    ended, theirs = os.pipe()
    request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ), "session": False}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(f"\0{os.environ[ADDRESS]}")
        socket.send_fds(server, [json.dumps(request).encode()], [1, 2, theirs])
        os.close(theirs)
        (pid,) = LENGTH.unpack(server.recv(LENGTH.size))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status, _ = ENDED.unpack(os.read(ended, ENDED.size))
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
