"""One row for each sample of two files, a label and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import shardkit


def sample(record: shardkit.Record) -> dict[str, Any]:
    """The label and the size of one sample."""
    label, picture = record.files["cls"], record.files["jpg"]
    return {"key": record.key, "label": int(label.read_text()), "bytes": len(picture.read_bytes())}
