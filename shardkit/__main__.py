"""``python -m shardkit`` is ``shardkit``."""

from shardkit.cli import main

main()
