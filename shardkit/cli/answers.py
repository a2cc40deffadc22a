"""The datasets of a query, and its answer as text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pyarrow.types as pt

from shardkit.dataset.query import Dataset
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)")


def named_outputs(outputs: Iterable[str]) -> dict[str, str] | str:
    """Outputs as a command line has them: one folder, or several, each alone or as ``NAME=FOLDER``.

    Raises:
        PipelineError: two have the same name.
    """
    given = list(outputs)
    if len(given) == 1 and not NAMED.fullmatch(given[0]):
        return given[0]
    uri_of: dict[str, str] = {}
    for output in given:
        match = NAMED.fullmatch(output)
        name, uri = (match[1], match[2]) if match else (Dataset.at(output, None, alone=False).names[0], output)
        if name in uri_of:
            raise PipelineError(
                f"Two of the datasets are called {name}: {uri_of[name]} and {uri}.",
                hint="Name them: --output NAME=DIR.",
            )
        uri_of[name] = uri
    return uri_of


def as_lines(table: pa.Table, format: str) -> Iterable[str]:
    """An answer as text: ``csv``, ``json`` (an object for each row) or a ``table`` for people."""
    import io

    if format == "csv":
        import csv

        for row in (table.column_names, *(batch for batch in _rows(table))):
            sink = io.StringIO()
            csv.writer(sink, lineterminator="").writerow(["" if value is None else value for value in row])
            yield sink.getvalue()
    elif format == "json":
        for row in _rows(table):
            yield json.dumps(dict(zip(table.column_names, row, strict=True)), ensure_ascii=False)
    else:
        cells = [table.column_names, *([_cell(value) for value in row] for row in _rows(table))]
        widths = [max(len(row[i]) for row in cells) for i in range(table.num_columns)]
        right = [pt.is_integer(k) or pt.is_floating(k) or pt.is_decimal(k) for k in table.schema.types]
        for row in cells:
            padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
            yield "  ".join(padded).rstrip()


def _rows(table: pa.Table) -> Iterable[list[Any]]:
    from shardkit.dataset.formats.json_lines import jsonable

    for batch in table.to_batches(max_chunksize=4096):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield [jsonable(value) for value in row]


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
