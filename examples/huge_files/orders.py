"""The functions for pieces of a CSV file, and for samples of a tar."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import shardkit


def by_customer(record: shardkit.Record) -> pd.DataFrame:
    """The orders of each customer in one piece of the file, their prices summed."""
    orders = pd.read_csv(record)  # a piece has the header, too
    sums: pd.DataFrame = orders.groupby("customer", as_index=False).agg(
        orders=("order", "size"), total=("price", "sum"), notes=("note", "count")
    )
    sums["piece"] = record.key
    return sums


def sample(record: shardkit.Record) -> dict[str, Any]:
    """One sample, which is two members of the tar: the label, and the text."""
    return {
        "key": record.key,
        "label": json.loads(record.files["json"].read_text())["label"],
        "words": len(record.files["txt"].read_text().split()),
    }
