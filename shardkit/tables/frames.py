"""pandas frames as Arrow tables: pandas' own types, and objects in the types that they would have in dicts."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa

from shardkit.tables.values import to_array

# Kinds of objects, by pandas' names, that Arrow converts correctly whatever their order.
ARROW_TAKES = {"string", "empty", "boolean", "integer", "floating", "mixed-integer-float", "bytes", "decimal"}


def is_pandas(value: Any, name: str) -> bool:
    """Whether a value is of a class of pandas; does not import pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, name, ()))


def from_pandas(frame: Any, *, floats_for_nothing: bool) -> pa.Table:
    """A frame with its named index levels as columns; an index without a name is only a row number.

    In pandas, a column without values has floats. It becomes a column of nulls, unless ``floats_for_nothing`` is set.

    Raises:
        TypeError: a column cannot be stored, or the index and a column have one name for different values.
    """
    frame = _with_index(frame)
    own = {i: kind for i, kind in enumerate(frame.dtypes) if _needs_care(kind, frame, i)}
    try:
        table = _column_by_column(frame, own) if own else _as_it_is(frame)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError) as error:
        reason = "; ".join(map(str, error.args))
        raise TypeError(f"{_culprit(frame)} cannot be stored: {reason}") from error
    if floats_for_nothing:
        return table
    for i, (kind, column) in enumerate(zip(frame.dtypes, table.columns, strict=True)):
        if kind == np.float64 and isinstance(kind, np.dtype) and column.null_count == len(column):
            table = table.set_column(i, table.column_names[i], pa.nulls(len(column)))
    return table


def _with_index(frame: Any) -> Any:
    named = [name for name in frame.index.names if name is not None]
    doubled = [name for name in named if name in frame.columns]
    for name in doubled:
        if not frame.index.get_level_values(name).equals(sys.modules["pandas"].Index(frame[name])):
            raise TypeError(f"the index and a column are both named {name!r}, with different values: rename one")
    if doubled:
        frame = frame.reset_index(level=doubled, drop=True)
    others = [name for name in named if name not in doubled]
    return frame.reset_index(level=others) if others else frame


def _needs_care(kind: Any, frame: Any, i: int) -> bool:
    if isinstance(kind, np.dtype):
        if kind.kind != "O":
            return not kind.isnative
        import pandas as pd

        return pd.api.types.infer_dtype(frame.iloc[:, i], skipna=True) not in ARROW_TAKES
    return any(is_pandas(kind, name) for name in ("PeriodDtype", "IntervalDtype", "SparseDtype")) or (
        is_pandas(kind, "CategoricalDtype") and _needs_care(kind.categories.dtype, kind.categories.to_frame(), 0)
    )


def _as_it_is(frame: Any) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False, nthreads=1)


def _column_by_column(frame: Any, own: dict[int, Any]) -> pa.Table:
    columns = []
    for i, kind in enumerate(frame.dtypes):
        column = frame.iloc[:, i]
        columns.append(_array(column, kind) if i in own else pa.array(column, from_pandas=True))
    names = [name if isinstance(name, str) else str(name) for name in frame.columns]
    return pa.table(columns, names=names)


def _array(column: Any, kind: Any) -> pa.Array:
    if is_pandas(kind, "SparseDtype"):
        return pa.array(column.sparse.to_dense(), from_pandas=True)
    if isinstance(kind, np.dtype) and kind.kind != "O":
        return pa.array(column.to_numpy().astype(kind.newbyteorder("=")), from_pandas=True)
    values = [None if isinstance(v, float) and v != v else v for v in column.tolist()]  # noqa: PLR0124  that is NaN
    return to_array(values, None, several=False)


def _culprit(frame: Any) -> str:
    for i, (name, kind) in enumerate(zip(frame.columns, frame.dtypes, strict=True)):
        try:
            column = frame.iloc[:, i]
            _array(column, kind) if _needs_care(kind, frame, i) else pa.array(column, from_pandas=True)
        except Exception:  # noqa: BLE001  any error is about this column
            return f"column {name!r}"
    return "the DataFrame"
