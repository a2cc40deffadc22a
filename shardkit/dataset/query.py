"""SQL over datasets: DuckDB reads their present files, or Athena does where they are in a Glue catalogue."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.types as pt

from shardkit.dataset.formats import partitioning_of, read_back, reader_of
from shardkit.dataset.switch import current_result, finish_switches
from shardkit.errors import PipelineError, QueryError, RunNotFound, SchemaConflict
from shardkit.runfolder.folder import STATE_DIR, RunFolder
from shardkit.storage.base import folder as folder_at
from shardkit.tables.schema import TypeMismatch, unify_types
from shardkit.tables.type_text import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd
    import pyarrow.dataset as pads

    from shardkit.storage.base import Folder

Backend = Literal["athena", "duckdb"]
Output = str | os.PathLike[str] | RunFolder
T = TypeVar("T")

REGISTERED = f"{STATE_DIR}/catalog.json"
ANY_DATASET = "dataset"  # what a dataset may be called where there is only one
FOOTERS_AT_ONCE = 32
SWITCHES_AT_MOST = 10  # of a dataset while one query reads it
LARGEST_INT = 2**63
NO_COLUMNS = "no_columns"
# A query may come from elsewhere: it reads and writes no file but those of the datasets that it asks.
FENCE = (
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)


# ---- the files of a dataset, as one table ------------------------------------------------------------------------


def open_dataset(files: Folder, result: Mapping[str, Any]) -> pads.Dataset:
    """The files that a result lists as one table, which has every column that any of them has.

    Where the result tells the columns, no file is opened for it.

    Raises:
        SchemaConflict: files give one column types that cannot be read as one.
    """
    import pyarrow.dataset as pads

    columns, by = result.get("columns", {}), result["partition_by"]
    partitioning = partitioning_of(by, columns) if by else None
    known = read_back(schema_of(result, without=by), result["format"])
    told = _told(result, known, list(partitioning.schema) if partitioning is not None else [])
    if not result["files"]:
        return pads.dataset([], schema=told or schema_of(result), format="parquet")
    filesystem, base = files.arrow()
    found = pads.dataset(
        [f"{base}/{file['path']}" for file in result["files"]],
        schema=told,
        filesystem=filesystem,
        format=reader_of(result["format"], known),
        partitioning=partitioning,
        partition_base_dir=base if by else None,
    )
    if told is not None or (columns and not result.get("by_day")):  # one run has written all files, with one schema
        return found
    return found.replace_schema(_unified(found, files.uri))


def _told(result: Mapping[str, Any], columns: pa.Schema, partitions: list[pa.Field]) -> pa.Schema | None:
    """The schema as the result tells it, which saves opening files; None where the files must be asked."""
    whole = len(columns) + len(partitions) == len(result["columns"]) and len(columns) > 0
    return pa.schema([*columns, *partitions]) if whole else None


def _unified(found: pads.Dataset, uri: str) -> pa.Schema:
    """The schema that has all columns of all files, each of a type that holds the values of all."""
    fragments = list(found.get_fragments())
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:  # each is a request or two where the files are objects
        schemas = list(pool.map(lambda fragment: fragment.physical_schema, fragments))
    kinds: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            kinds[field.name] = _common(kinds.get(field.name, field.type), field.type, field.name, uri)
    # The partition columns are in no file.
    return pa.schema(list((kinds | {f.name: f.type for f in found.schema if f.name not in kinds}).items()))


def _common(left: pa.DataType, right: pa.DataType, column: str, uri: str) -> pa.DataType:
    """The type that both are read as: without loss where there is one, else text."""
    try:
        return unify_types(left, right, widen_ints=True, column=column)
    except TypeMismatch as error:
        if any(pt.is_nested(kind) for kind in (left, right)):
            raise SchemaConflict(
                f"{uri}: {error}, which no query can read as one.",
                hint="Run the days of one of them again, with output.schema saying what the column is.",
            ) from None
        return pa.string()


# ---- what is asked -----------------------------------------------------------------------------------------------


def registered(output: Folder) -> dict[str, Any] | None:
    """The settings that the dataset is in a Glue catalogue with; None where it is in none."""
    try:
        glue: dict[str, Any] = json.loads(output.read(REGISTERED))
    except FileNotFoundError:
        return None
    return glue


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is at one moment, and the names that a query may call it by."""

    folder: Folder
    names: tuple[str, ...]
    result: Mapping[str, Any]
    glue: Mapping[str, Any] | None

    @classmethod
    def at(cls, output: Output, name: str | None, *, alone: bool) -> Dataset:
        """The present state of the dataset in ``output``.

        Raises:
            RunNotFound: there is none.
        """
        root = output.output if isinstance(output, RunFolder) else folder_at(output)
        finish_switches(root)
        result = current_result(root)
        if result is None:
            raise RunNotFound(f"{root.uri} holds no dataset.", hint="Run a pipeline with this output first.")
        glue = registered(root)
        names = [name or result["name"], *([ANY_DATASET] if alone else []), *([glue["table"]] if glue else [])]
        return cls(root, tuple(dict.fromkeys(names)), result, glue)

    @property
    def has_changed(self) -> bool:
        """Whether the dataset has been switched to another state since."""
        return bool((current_result(self.folder) or {}).get("switched") != self.result["switched"])


def read_sql(
    query: str, output: Output | Mapping[str, Output], *, using: Backend | None = None, session: Any = None
) -> pd.DataFrame:
    """Ask SQL of a dataset, or of several.

    >>> sk.read_sql("SELECT day_partition, count(*) FROM ads GROUP BY 1", "out/")           # doctest: +SKIP
    >>> sk.read_sql("SELECT * FROM shown JOIN clicks USING (ad)",                           # doctest: +SKIP
    ...             {"shown": "out/impressions", "clicks": "out/clicks"})

    A dataset is called by its pipeline's name or, where it is the only one, ``dataset``; in a mapping by the names
    that this gives. A query sees each dataset as it is at one moment, whatever runs are writing it.

    Args:
        query: one SELECT.
        output: the folder of the dataset, or several by name.
        using: by default Athena where all datasets are in a Glue catalogue, else DuckDB on this machine.
        session: the boto3 session for Athena.

    Raises:
        QueryError: the query cannot be answered.
        RunNotFound: there is no dataset.
        PipelineError: DuckDB, or for Athena awswrangler, is not installed.
    """
    frame: pd.DataFrame = ask(query, output, using=using, session=session).to_pandas()
    return frame


def ask(
    query: str, output: Output | Mapping[str, Output], *, using: Backend | None = None, session: Any = None
) -> pa.Table:
    """The same, as an Arrow table."""
    asked: Mapping[str | None, Output] = output if isinstance(output, Mapping) else {None: output}  # type: ignore[assignment]

    def look() -> list[Dataset]:
        return [Dataset.at(place, name, alone=len(asked) == 1) for name, place in asked.items()]

    found = look()
    if not found:
        raise PipelineError("read_sql: there is no dataset to ask.", hint="Give its output folder.")
    with_catalogue = all(one.glue is not None for one in found)
    if using == "athena" and not with_catalogue:
        without = next(one for one in found if one.glue is None)
        raise PipelineError(
            f"{without.folder.uri} is in no catalogue that Athena reads.",
            hint="Set catalog: {glue: {database, table}} in its pipeline and run it, or ask with DuckDB.",
        )
    if using == "athena" or (using is None and with_catalogue):
        from shardkit.dataset.catalog import ask_athena

        tables = {name: (one.glue["database"], one.glue["table"]) for one in found for name in one.names if one.glue}
        first = found[0]
        session = session or getattr(first.folder, "session", None)
        return ask_athena(query, tables, glue=first.glue or {}, output=first.folder.uri, session=session)
    return _while_it_stays(look, found, lambda datasets: _ask_duckdb(query, datasets))


def _while_it_stays(look: Callable[[], list[Dataset]], found: list[Dataset], read: Callable[[list[Dataset]], T]) -> T:
    """What ``read`` makes of the datasets; once more if it failed while one of them was switched to new files."""
    for _ in range(SWITCHES_AT_MOST):
        try:
            return read(found)
        except (QueryError, OSError):
            if not any(one.has_changed for one in found):
                raise
            found = look()
    return read(found)


# ---- DuckDB ------------------------------------------------------------------------------------------------------


def _ask_duckdb(query: str, datasets: Iterable[Dataset]) -> pa.Table:
    try:
        import duckdb
    except ImportError:
        raise PipelineError(
            "SQL on this machine needs duckdb, which is not installed.",
            hint="Install it with: pip install 'shardkit[sql]'",
        ) from None
    names: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="shardkit-sql-") as scratch,
        duckdb.connect(config={"temp_directory": scratch}) as connection,
    ):
        for i, one in enumerate(datasets):
            # DuckDB asks the Arrow dataset for the columns and rows that it needs, so files of other days stay closed.
            connection.register(f"shardkit files {i}", _with_columns(_opened(one)))
            for name in one.names:
                if name.lower() not in (known.lower() for known in names):
                    quoted = name.replace('"', '""')
                    connection.execute(f'CREATE TEMP VIEW "{quoted}" AS SELECT * FROM "shardkit files {i}"')  # noqa: S608  names, quoted
                    names.append(name)
        for setting in FENCE:
            connection.execute(setting)
        try:
            relation = connection.sql(query)
            return _plain(relation.to_arrow_table()) if relation is not None else pa.table({})
        except duckdb.Error as error:
            raise _duckdb_error(error, names) from error


def _with_columns(opened: pads.Dataset) -> Any:
    """A dataset as DuckDB takes it, which knows no table without columns: one that never had a row has none."""
    return opened if len(opened.schema) else pa.table({NO_COLUMNS: pa.array([], pa.null())})


def _opened(one: Dataset) -> pads.Dataset:
    try:
        return open_dataset(one.folder, one.result)
    except pa.ArrowException as error:
        raise QueryError(f"The dataset in {one.folder.uri} cannot be read: {error}.") from error


def _duckdb_error(error: Exception, names: list[str]) -> QueryError:
    """DuckDB's message without its picture of the query; one about a table tells which there are."""
    said = " ".join(str(error).split("\n\nLINE ")[0].split())
    hint = ""
    if said.startswith("Catalog Error: Table"):
        said = said.partition(" Did you mean")[0]
        hint = f"There are {', '.join(names)}."
    elif said.startswith("Permission Error"):
        hint = "A query reads the datasets that it is given, and no other file. Give each of them by --output."
    elif NO_COLUMNS in said:
        hint = "A dataset without a row has no columns."
    return QueryError(f"The query cannot be answered: {said}", hint=hint)


def _plain(table: pa.Table) -> pa.Table:
    """Sums of integers, which DuckDB gives 128 bits, as the integers that Athena makes of them, or as floats."""
    for i, field in enumerate(table.schema):
        if field.type == pa.decimal128(38, 0):
            values = table.column(i)
            fits = all(v is None or -LARGEST_INT <= v < LARGEST_INT for v in values.to_pylist())
            table = table.set_column(i, field.name, values.cast(pa.int64() if fits else pa.float64()))
    return table


# ---- for the command line ----------------------------------------------------------------------------------------

NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)")


def named_outputs(given: Iterable[str]) -> dict[str, str] | str:
    """Outputs as a command line gives them: one folder, or several, each alone or as ``NAME=FOLDER``.

    Raises:
        PipelineError: two have one name.
    """
    places = list(given)
    if len(places) == 1 and not NAMED.fullmatch(places[0]):
        return places[0]
    found: dict[str, str] = {}
    for place in places:
        match = NAMED.fullmatch(place)
        name, uri = (match[1], match[2]) if match else (Dataset.at(place, None, alone=False).names[0], place)
        if name in found:
            raise PipelineError(
                f"Two of the datasets are called {name}: {found[name]} and {uri}.", hint="Name them: --output NAME=DIR."
            )
        found[name] = uri
    return found


def as_lines(table: pa.Table, format: str) -> Iterable[str]:
    """An answer as text: ``csv``, ``json`` (an object a row) or a ``table`` for people."""
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
    from shardkit.dataset.formats import jsonable

    for batch in table.to_batches(max_chunksize=4096):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield [jsonable(value) for value in row]


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
