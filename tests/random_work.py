"""The functions of the random pipelines. A record's file says what to return for it; see ``random_pipelines.py``.

This file is copied beside each pipeline's input, where other files say which records are mended and what is broken.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # no other imports here, because the worker of each run would import them again

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

HERE = Path(__file__).parent


def rows(record: Any) -> Any:
    content = json.loads(Path(record).read_text())
    if content["fails"] and not (HERE / "mended" / content["id"]).exists():
        raise ValueError("not yet")
    beside = sum(int(path.read_text()) for path in record.paths if path.suffix == ".side")
    rows = [{"key": record.key, "beside": beside} | _decoded(row) for row in content["rows"]]
    return _returned(rows, content["how"])


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    return row | ({"date": datetime.date.fromisoformat(row["date"])} if row.get("date") else {})


def _returned(rows: list[dict[str, Any]], how: str) -> Any:
    if not rows and how != "table":
        return None if how == "rows" else []
    if how == "frame":
        import pandas as pd  # takes half a second in each worker

        return pd.DataFrame(rows, dtype=object)
    if how == "table":
        table = pa.Table.from_pylist(rows)
        if "int" in table.column_names and pa.types.is_integer(table.schema.field("int").type):
            i = table.schema.get_field_index("int")
            table = table.set_column(i, "int", table["int"].cast(pa.int16()))
        return table
    return iter(rows) if how == "generator" else rows


# ---- combine -----------------------------------------------------------------------------------------------------


def _may_be_broken() -> None:
    if (HERE / "broken").exists():
        raise ValueError("combine is broken")


def counted(batches: Any) -> Iterator[pa.RecordBatch]:
    _may_be_broken()
    for batch in batches:
        yield batch.append_column("n", pa.array([batches.num_rows] * batch.num_rows))


def filtered(batches: Any) -> Iterator[pa.Table]:
    """Only the rows with an even number; each batch in two pieces, one of which is empty."""
    import pyarrow.compute as pc

    _may_be_broken()
    for batch in batches:
        table = pa.Table.from_batches([batch])
        yield table.slice(0, 0)
        yield table.filter(pc.equal(pc.bit_wise_and(table["row"], 1), 0))


def framed(batches: Any) -> Iterator[pd.DataFrame]:
    """Only the keys, as DataFrames."""
    import pandas as pd

    _may_be_broken()
    for batch in batches:
        yield pd.DataFrame({"key": batch["key"].to_pylist(), "row": batch["row"].to_pylist(), "group": "all"})


def nothing(batches: Any) -> Iterator[pa.Table]:
    _may_be_broken()
    yield from ()


def emptied(batches: Any) -> Iterator[pa.RecordBatch]:
    """All batches without their rows."""
    _may_be_broken()
    for batch in batches:
        yield batch.slice(0, 0)
