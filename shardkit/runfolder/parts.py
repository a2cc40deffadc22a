"""Parts: their entries in markers, and the records and types in a part's own footer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardkit.tables.spans import RecordRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow.parquet as pq

    from shardkit.runfolder.document_types import MarkedPart
    from shardkit.tables.spans import Spans

NOTHING_OF = "?"  # ends the type of a column that had no value, which gives way to any other
ORIGINS_KEY = b"shardkit.origins"
RECORDS_KEY = b"shardkit.records"
ROWS_KEY = b"shardkit.rows"  # the same, where no record can be left out


@dataclass
class Part:
    """A part that is whole on the disk."""

    name: str
    rows: int
    bytes: int
    sums: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, marked: MarkedPart) -> Part:
        """The form that a marker holds."""
        return cls(marked["name"], marked["rows"], marked["bytes"], marked.get("sums", []))

    def to_dict(self) -> MarkedPart:
        """The form that a marker holds."""
        return {"name": self.name, "rows": self.rows, "bytes": self.bytes, "sums": self.sums}


def origins_of(footer: pq.FileMetaData) -> dict[str, dict[str, str]]:
    """For each column of a part, and each type that a record alone would have given it, the first record to do so."""
    text = (footer.metadata or {}).get(ORIGINS_KEY)
    origins: dict[str, dict[str, str]] = json.loads(text) if text else {}
    return origins


def record_rows(footer: pq.FileMetaData) -> RecordRows | None:
    """Which records the rows of a part come from; None in parts of earlier versions that do not say so."""
    metadata = footer.metadata or {}
    text = metadata.get(RECORDS_KEY) or metadata.get(ROWS_KEY)
    return RecordRows.load(text) if text else None


def rows_of(footer: pq.FileMetaData, records: Mapping[int, str]) -> Spans | None:
    """The rows of some records in a part; ``records`` has their keys by their positions in the chunk.

    None if the rows of the other records alone would have made a part with other columns or types.
    """
    text = (footer.metadata or {}).get(RECORDS_KEY)
    gone = set(records.values())
    if text is None or any(gone & set(seen.values()) for seen in origins_of(footer).values()):
        return None
    return RecordRows.load(text).of(records)
