"""How large chunks may be; what reads pipelines needs this, and not NumPy."""

from __future__ import annotations

CHUNK_RECORDS = 5_000  # at most, so that a crash never costs more than that
CHUNK_BYTES = 1 << 30
