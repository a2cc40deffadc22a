"""The dataset that a run has made: columns, partitions, files, and what differs from the dataset before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.dataset.profile import profile
from shardkit.errors import ShardkitError
from shardkit.pages.charts import axis, chart, rows, tips
from shardkit.pages.page import Cell
from shardkit.units import counted, first_line, human_bytes, percent

if TYPE_CHECKING:
    from shardkit.dataset.profile import Column
    from shardkit.pages.charts import Chart
    from shardkit.pages.page import Page
    from shardkit.runfolder.document_types import Result
    from shardkit.runs.report.look import Look

ROWS_OF_PARTITIONS = 24  # up to so many partitions have a line of their own
BARS = 400
VALUE_CHARACTERS = 24


def add_dataset(page: Page, look: Look) -> None:
    """Add what came out."""
    result = look.result
    if result is None:
        return
    size, files = human_bytes(result["bytes_out"]), counted(len(result["files"]), "file")
    page.add_headline("The dataset", f"{counted(result['rows'], 'row')} in {files}, {size}")
    if look.summary.replaced_by:
        page.add_text("Columns", [f"Run {look.summary.replaced_by} has replaced this dataset."])
        return
    _add_columns(page, look, result)
    if len(result["partitions"]) > 1 or result["partition_by"]:
        page.add_chart("Rows by partition", _partitions(result), is_wide=True)


def _add_columns(page: Page, look: Look, result: Result) -> None:
    try:
        seen = profile(look.folder.output, result)
    except (ShardkitError, OSError) as error:  # a page about the run is of use without it
        page.add_text("Columns", [f"The files cannot be read: {first_line(str(error))}"])
        return
    notes = []
    if seen.footers < seen.files:
        of = f"{seen.footers:,} of {counted(seen.files, 'file')}" if seen.footers else "a sample"
        notes.append(f"Nulls and ranges are those of {of}.")
    notes.append(f"The distribution is that of a sample of {counted(seen.sampled, 'row')}.")
    columns = ["Column", "Type", "Null", "From", "To", "Distribution"]
    page.add_table("Columns", columns, [_column_row(each) for each in seen.columns], note=" ".join(notes))


def _column_row(column: Column) -> list[Cell]:
    share = None if column.nulls is None or not column.values else column.nulls / column.values
    top = ", ".join(f"{_short(value)} ({count:,})" for value, count in column.top)
    if column.distinct is not None and column.distinct > len(column.top):
        top = f"{column.distinct:,} different; most often {top}"
    return [
        Cell(column.name),
        Cell(column.type, kind="left"),
        Cell("-", -1) if share is None else Cell(null_percent(share), share),
        Cell(_short(column.low)),
        Cell(_short(column.high)),
        Cell(top, kind="left", bars=heights(column.bins), tip=_bins_tip(column)),
    ]


def heights(bins: list[int]) -> list[float]:
    """The heights of a small histogram's bars, from 0 to 1; a class that is not empty is seen."""
    most = max(bins, default=0)
    return [round(max(count / most, 0.06), 3) if count else 0.0 for count in bins]


def _bins_tip(column: Column) -> str:
    return f"{counted(sum(column.bins), 'value')} in {len(column.bins)} equal ranges" if column.bins else ""


def null_percent(share: float) -> str:
    """A share of nulls as people read it."""
    return "0" if not share else percent(share) if share >= 0.0005 else "< 0.05%"


def _short(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[: VALUE_CHARACTERS - 1]}…"


def rows_of_partitions(result: Result) -> dict[str, int]:
    """The rows of each partition, whether it is a day or made by columns."""
    found: dict[str, int] = {}
    for file in result["files"]:
        name = file["path"].rpartition("/")[0] or file["partition"]
        found[name] = found.get(name, 0) + file["rows"]
    return dict(sorted(found.items()))


def _partitions(result: Result) -> Chart:
    rows_of = rows_of_partitions(result)
    names = list(rows_of)
    if len(names) <= ROWS_OF_PARTITIONS:
        values = [{"name": name, "of": "rows", "n": rows_of[name], "text": f"{rows_of[name]:,}"} for name in names]
        return rows(values, {"rows": "--blue"}, tip=tips(name="Partition", text="Rows"))
    bars = []
    for group in np.array_split(np.arange(len(names)), min(BARS, len(names))):
        number = sum(rows_of[names[i]] for i in group.tolist())
        text = names[group[0]] if len(group) == 1 else f"{names[group[0]]} to {names[group[-1]]}"
        bars.append({"at": names[group[0]], "n": number, "name": text, "text": f"{number:,}"})
    encoding = {
        "x": axis("at", "ordinal", axis={"labelOverlap": True, "labelAngle": 0}),
        "y": axis("n", title="rows"),
        "tooltip": tips(name="Partition", text="Rows"),
    }
    return chart(bars, {"mark": {"type": "bar", "color": "--blue"}, "encoding": encoding})
