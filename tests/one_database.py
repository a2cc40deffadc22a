"""One database of DuckDB for all queries of a file of tests: to make one takes twenty times as long as to ask it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def one_database() -> Iterator[None]:
    """Have queries connect to one database, and leave its settings as they are; each has views of its own."""
    import duckdb

    with duckdb.connect() as made, pytest.MonkeyPatch.context() as patched:
        patched.setattr(duckdb, "connect", lambda **_: made.cursor())
        patched.setattr("shardkit.dataset.query.FENCE", ())
        yield
