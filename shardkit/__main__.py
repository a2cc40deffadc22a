"""``python -m shardkit`` is ``shardkit``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from shardkit.collector import spare_what_is_loaded

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """The program, which Ctrl-C may end before all of it is loaded."""
    spare_what_is_loaded()
    try:
        from shardkit.cli.app import main as program
    except KeyboardInterrupt:
        sys.exit(130)
    program(args)


if __name__ == "__main__":
    main()
