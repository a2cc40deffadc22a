"""``python -m shardkit`` is ``shardkit``."""

from __future__ import annotations

import sys


def main() -> None:
    """The program, which Ctrl-C may end before all of it is loaded."""
    try:
        from shardkit.cli.app import main as program
    except KeyboardInterrupt:
        sys.exit(130)
    program()


if __name__ == "__main__":
    main()
