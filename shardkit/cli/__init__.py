"""Commands, and the words that they print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit._lazy import names_of

if TYPE_CHECKING:
    from shardkit.cli.app import cli, main

__all__ = [
    "cli",
    "main",
]

if not TYPE_CHECKING:  # or type checkers would accept any name
    __getattr__ = names_of(
        __name__,
        {
            "cli": "app",
            "main": "app",
        },
    )
