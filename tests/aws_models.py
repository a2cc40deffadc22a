"""The descriptions of AWS services, which botocore reads for each session: megabytes of JSON, and folders of a thousand.

Here all sessions of a process, and of its forks, share what the first one has read.
"""

from __future__ import annotations

from typing import Any

from botocore.loaders import Loader

_READ: dict[tuple[str, ...], dict[Any, Any]] = {}
_begin = Loader.__init__


def share() -> None:
    """Share them from now on."""

    def begin(self: Loader, *arguments: Any, **options: Any) -> None:
        _begin(self, *arguments, **options)
        self._cache = _READ.setdefault(tuple(self.search_paths), {})

    Loader.__init__ = begin
