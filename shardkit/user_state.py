"""The folder for files that outlive this user's programs, and that other users of the machine must not read.

Standard library only, because the queue's functions in the cloud use it too.
"""

from __future__ import annotations

import contextlib
import os
import stat

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def state_home() -> str:
    """Shardkit's folder in ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "shardkit")


def state_path(*names: str) -> str:
    """A path in shardkit's folder in ``$XDG_STATE_HOME``."""
    return os.path.join(state_home(), *names)


def keep_private(path: str) -> None:
    """Make a file, if there is none, that only its owner can read; tighten files that are in the user's own state."""
    home = os.path.realpath(state_home())
    inside = os.path.realpath(path).startswith(f"{home}{os.sep}")
    with contextlib.suppress(OSError):  # opening the file raises the error
        if inside:
            tighten(home, PRIVATE_FOLDER)
            for name in (path, f"{path}-wal", f"{path}-shm"):
                tighten(name, PRIVATE_FILE)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))


def tighten(path: str, mode: int) -> None:
    """Take away what others may do with a file or folder of this user."""
    with contextlib.suppress(FileNotFoundError):
        about = os.stat(path)
        if about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) & ~mode:
            os.chmod(path, stat.S_IMODE(about.st_mode) & mode)
