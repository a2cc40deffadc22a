"""JSON Schema without the grammar of web addresses, which takes a second to read whenever the library is imported."""

from __future__ import annotations

import sys


def without_grammar() -> None:
    """Have `jsonschema` be imported without it: no schema of these tests asks whether a text is an address."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
