"""The pipeline's checks of the rows of a build, before the dataset is switched to it.

A query sees two tables: ``new`` has the rows of the partitions that the run makes (its days, or all of the dataset),
``old`` those of the present dataset. Numbers of rows and types come from the two results; everything else is SQL.
"""

from __future__ import annotations

import json
import tempfile
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.dataset.formats.kinds import format_of
from shardkit.dataset.query import FENCE, NO_COLUMNS, in_words
from shardkit.dataset.read import open_dataset
from shardkit.errors import PipelineError
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow.dataset as pads

    from shardkit.dataset.build import Build
    from shardkit.runfolder.check_types import CheckResult
    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

SAMPLED = 5
TEXT_CHARACTERS = 200  # of a value in a sample
NO_DUCKDB = "Checks need duckdb, which is not installed."
INSTALL_HINT = "Install it with: pip install 'shardkit[sql]'"


def check_queries(checks: Mapping[str, Any]) -> None:
    """See ahead of a run that its checks can be made: DuckDB is there, and the queries are SQL.

    Raises:
        PipelineError: it is not, or one is not, or is not one SELECT.
    """
    try:
        import duckdb
    except ImportError:
        raise PipelineError(NO_DUCKDB, hint=INSTALL_HINT) from None
    for name, query in checks.get("sql", {}).items():
        try:
            statements = duckdb.extract_statements(query)
        except duckdb.Error as error:
            raise PipelineError(f"checks.sql.{name} is no SQL: {in_words(error)}") from None
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise PipelineError(f"checks.sql.{name}: a check is one SELECT.", hint="Its tables are new and old.")


def results_of(checks: Mapping[str, Any], build: Build, output: Folder, old: Result | None) -> list[CheckResult]:
    """How the checks of a build end, beside the present dataset ``old``.

    Raises:
        PipelineError: DuckDB is not installed.
    """
    new = build.result
    results: list[CheckResult] = []
    if "rows_within" in checks:
        results.append(_rows_within(float(checks["rows_within"].strip().rstrip("% ")), new, old))
    if checks.get("same_types"):
        results.append(_same_types(new, old))
    if any(name in checks for name in ("no_new_nulls", "unique", "sql")):
        with _Tables(build, output, old) as tables:
            results += [_no_new_nulls(tables, column) for column in checks.get("no_new_nulls", ())]
            if checks.get("unique"):
                results.append(_unique(tables, checks["unique"]))
            results += [_asked(tables, name, query) for name, query in checks.get("sql", {}).items()]
    return results


def _result(
    name: str, message: str, *, passed: bool, offending: int = 0, sample: Sequence[dict[str, Any]] = ()
) -> CheckResult:
    return {"name": name, "passed": passed, "message": message, "offending": offending, "sample": list(sample)}


# ---- without SQL


def _rows_within(percent: float, new: Result, old: Result | None) -> CheckResult:
    """Each partition has about as many rows as it had or, if it is a new day, as the day before it in the dataset."""
    now, before = _rows_by_partition(new), _rows_by_partition(old)
    if not before:
        return _result("rows_within", "there is no earlier dataset to compare with", passed=True)
    off: list[dict[str, Any]] = []
    for partition, rows in now.items():
        other = partition if partition in before else max((p for p in before if p < partition), default=None)
        if not new["by_day"]:
            other = next(iter(before)) if len(before) == 1 else None
            was = sum(before.values())
        elif other is None:
            continue  # the first day
        else:
            was = before[other]
        if abs(rows - was) > was * percent / 100:
            place = {"day": partition, "compared_with": other} if new["by_day"] else {}
            off.append({**place, "rows": rows, "rows_before": was})
    if not off:
        return _result("rows_within", f"rows differ by no more than {percent:g}%", passed=True)
    first = off[0]
    where = f" on {first['day']}" if "day" in first else ""
    message = f"{first['rows']:,} rows{where}, and {first['rows_before']:,} before: more than {percent:g}% apart"
    return _result("rows_within", message, passed=False, offending=len(off), sample=off[:SAMPLED])


def _rows_by_partition(result: Result | None) -> dict[str, int]:
    rows: dict[str, int] = {}
    if result is not None:
        rows = dict.fromkeys(result["partitions"], 0)
        for file in result["files"]:
            rows[file["partition"]] = rows.get(file["partition"], 0) + file["rows"]
    return rows


def _same_types(new: Result, old: Result | None) -> CheckResult:
    """Each column of the present dataset is still there, with its type; there may be further columns."""
    if old is None or not old["columns"]:
        return _result("same_types", "there is no earlier dataset to compare with", passed=True)
    now, before = new["columns"], old["columns"]
    off = [
        {"column": name, "type": now.get(name), "type_before": kind}
        for name, kind in before.items()
        if now.get(name) != kind
    ]
    if not off:
        return _result("same_types", f"{counted(len(before), 'column')} as before", passed=True)
    first = off[0]
    now_is = f"is {first['type']} now" if first["type"] else "is gone"
    message = f"the column {first['column']} was {first['type_before']}, and {now_is}"
    return _result("same_types", message, passed=False, offending=len(off), sample=off[:SAMPLED])


# ---- in SQL


class _Tables:
    """A connection to DuckDB with the tables ``new`` and ``old``; use it as a context."""

    def __init__(self, build: Build, output: Folder, old: Result | None) -> None:
        self._build, self._output, self._old = build, output, old
        self.by_day = build.result["by_day"]
        self.days = list(build.result["partitions"]) if self.by_day else []
        self.day_column = build.result["partition_by"][0] if self.by_day else ""

    def __enter__(self) -> _Tables:
        try:
            import duckdb
        except ImportError:
            raise PipelineError(NO_DUCKDB, hint=INSTALL_HINT) from None
        self.error = duckdb.Error
        new = _new_rows(self._build, self._output)
        if self._old is not None and not format_of(self._old["format"]).tabular:
            raise PipelineError(
                f"The checks cannot compare with the dataset in {self._output.uri}: {self._old['format']} is no table.",
                hint="Check nothing by SQL until the dataset is in the new format.",
            )
        old = open_dataset(self._output, self._old) if self._old is not None else None
        self.columns = set(new.schema.names)
        self.columns_before = set(old.schema.names) if old is not None else set()
        self._scratch = tempfile.TemporaryDirectory(prefix="shardkit-checks-")
        self.connection = duckdb.connect(config={"temp_directory": self._scratch.name})
        empty = pa.table({NO_COLUMNS: pa.array([], pa.null())})
        for name, rows in (("new", new), ("old", old if old is not None else new.schema.empty_table())):
            self.connection.register(f"shardkit {name}", rows if len(rows.schema) else empty)
            self.connection.execute(f'CREATE TEMP VIEW "{name}" AS SELECT * FROM "shardkit {name}"')  # noqa: S608  names
        for setting in FENCE:
            self.connection.execute(setting)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._scratch.cleanup()

    def rows(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query, in batches."""
        relation = self.connection.sql(query)
        if relation is not None:
            yield from relation.to_arrow_reader()

    def count(self, query: str) -> int:
        """The number that a query returns."""
        return int(next(iter(self.rows(query))).column(0)[0].as_py())


def _new_rows(build: Build, output: Folder) -> pads.Dataset:
    """The files of a build as one table, each where it lies now."""
    import pyarrow.dataset as pads

    kept = set(build.kept)
    homes: dict[str, tuple[Folder, list[Any]]] = {}
    for file in build.result["files"]:
        home = output if file["path"] in kept else build.home_of(file["path"])
        homes.setdefault(home.uri, (home, []))[1].append(file)
    tables = [open_dataset(home, {**build.result, "files": files}) for home, files in homes.values()]
    if not tables:
        return open_dataset(output, build.result)
    if len(tables) == 1:
        return tables[0]
    schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
    return pads.dataset([table.replace_schema(schema) for table in tables])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _no_new_nulls(tables: _Tables, column: str) -> CheckResult:
    """The column has no more nulls than it had in the same partitions; none if there was no such column."""
    name = f"no_new_nulls: {column}"
    if column not in tables.columns:
        return _result(name, f"there is no column {column}", passed=False)
    where = f"{_quoted(column)} IS NULL"
    now = tables.count(f"SELECT count(*) FROM new WHERE {where}")  # noqa: S608  names are quoted
    if not now:
        return _result(name, "no nulls", passed=True)
    before = 0
    if column in tables.columns_before:
        days = ", ".join(map(_text, tables.days))
        same = f" AND {_quoted(tables.day_column)}::VARCHAR IN ({days})" if tables.by_day else ""
        before = tables.count(f"SELECT count(*) FROM old WHERE {where}{same}")  # noqa: S608  names are quoted
    if now <= before:
        return _result(name, f"{counted(now, 'null')}, and {before:,} before", passed=True)
    sample = _sampled(tables, f"SELECT * FROM new WHERE {where} LIMIT {SAMPLED}")  # noqa: S608  names are quoted
    message = f"{counted(now, 'null')} in {column}, and {before:,} before"
    return _result(name, message, passed=False, offending=now - before, sample=sample)


def _unique(tables: _Tables, columns: Sequence[str]) -> CheckResult:
    """No two rows that the run makes have the same values in all of the columns; nulls are not the same, as in SQL."""
    name = f"unique: {', '.join(columns)}"
    missing = next((column for column in columns if column not in tables.columns), None)
    if missing is not None:
        return _result(name, f"there is no column {missing}", passed=False)
    key = ", ".join(map(_quoted, columns))
    whole = " AND ".join(f"{_quoted(column)} IS NOT NULL" for column in columns)
    twice = f"SELECT {key}, count(*) AS rows FROM new WHERE {whole} GROUP BY {key} HAVING count(*) > 1"  # noqa: S608  names
    count, sample = _counted(tables, twice)
    if not count:
        return _result(name, "no two rows have the same", passed=True)
    return _result(name, f"{counted(count, 'key')} in more than one row", passed=False, offending=count, sample=sample)


def _asked(tables: _Tables, query_name: str, query: str) -> CheckResult:
    """What a query of the pipeline says: a single true or false, or else the rows that offend."""
    name = f"sql: {query_name}"
    try:
        count, verdict = 0, None
        sample: list[dict[str, Any]] = []
        for batch in tables.rows(query):
            if len(batch.schema) == 1 and pa.types.is_boolean(batch.schema.field(0).type) and len(batch) == 1 > count:
                verdict = batch.column(0)[0].as_py() is True
            sample += _plain(batch.slice(0, SAMPLED - len(sample)))
            count += len(batch)
    except tables.error as error:
        return _result(name, f"the query cannot be answered: {in_words(error)}", passed=False)
    if count == 1 and verdict is not None:
        return _result(name, "true" if verdict else "not true", passed=verdict, offending=int(not verdict))
    if not count:
        return _result(name, "no offending rows", passed=True)
    return _result(name, counted(count, "offending row"), passed=False, offending=count, sample=sample)


def _counted(tables: _Tables, query: str) -> tuple[int, list[dict[str, Any]]]:
    """How many rows a query has, and the first of them."""
    count = 0
    sample: list[dict[str, Any]] = []
    for batch in tables.rows(query):
        sample += _plain(batch.slice(0, SAMPLED - len(sample)))
        count += len(batch)
    return count, sample


def _sampled(tables: _Tables, query: str) -> list[dict[str, Any]]:
    return [row for batch in tables.rows(query) for row in _plain(batch)]


def _plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as JSON can hold them, long values cut."""
    rows = json.loads(json.dumps(batch.to_pylist(), default=str))
    return [{name: _short(value) for name, value in row.items()} for row in rows]


def _short(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}..."
