"""The user's code on a node, as it was uploaded for the run."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
import threading
import zipfile
from typing import TYPE_CHECKING

from shardkit.storage.base import STATE_DIR

if TYPE_CHECKING:
    from shardkit.storage.base import Folder

_folders: dict[str, str] = {}
_unpacking = threading.Lock()


def unpacked(output: Folder, code: str) -> str:
    """The folder of this machine in which the code of that name now lies; it goes with this process."""
    with _unpacking:
        if code not in _folders:
            home = tempfile.mkdtemp(prefix="shardkit-code-")
            atexit.register(shutil.rmtree, home, ignore_errors=True)
            with zipfile.ZipFile(io.BytesIO(output.child(f"{STATE_DIR}/code/{code}").read("source.zip"))) as files:
                files.extractall(home)
            _folders[code] = home
        return _folders[code]
