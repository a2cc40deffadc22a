"""Where this user's programs keep what outlives them."""

from __future__ import annotations

import os


def state_path(*names: str) -> str:
    """A path in shardkit's folder in ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "shardkit", *names)
