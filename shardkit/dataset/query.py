"""SQL over datasets: DuckDB reads their present files, or Athena if they are in a Glue catalogue."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from shardkit.dataset.catalog import ask_athena, registered
from shardkit.dataset.current import current_result
from shardkit.dataset.iceberg.history import result_as_of
from shardkit.dataset.read import open_dataset
from shardkit.dataset.switch import finish_switches
from shardkit.errors import PipelineError, QueryError, RunNotFound
from shardkit.hints import Hint
from shardkit.runfolder.folder import RunFolder
from shardkit.storage.open import folder as folder_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd
    import pyarrow.dataset as pads

    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

Backend = Literal["athena", "duckdb"]
Output = str | os.PathLike[str] | RunFolder
T = TypeVar("T")

ANY_DATASET = "dataset"  # a name for any dataset, if there is only one
SWITCHES_AT_MOST = 10  # of a dataset while one query reads it
LARGEST_INT = 2**63
NO_COLUMNS = "no_columns"
# A query may come from anyone: it reads no files but those of the datasets that it is given, and writes none.
FENCE = (
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is at one moment, and the names that a query may use for it."""

    folder: Folder
    names: tuple[str, ...]
    result: Result
    glue: Mapping[str, Any] | None

    @classmethod
    def at(cls, output: Output, name: str | None, *, alone: bool, as_of: str | None = None) -> Dataset:
        """The present state of the dataset in ``output``, or what the run ``as_of`` has left.

        Raises:
            RunNotFound: there is none.
        """
        root = output.output if isinstance(output, RunFolder) else folder_at(output)
        finish_switches(root)
        result = current_result(root)
        if result is None:
            raise RunNotFound(f"{root.uri} holds no dataset.", hint="Run a pipeline with this output first.")
        if as_of is not None:
            result = result_as_of(root, as_of, result)
        glue = registered(root)
        names = [name or result["name"], *([ANY_DATASET] if alone else []), *([glue["table"]] if glue else [])]
        return cls(root, tuple(dict.fromkeys(names)), result, glue)

    @property
    def has_changed(self) -> bool:
        """Whether the dataset has been switched to another state since."""
        now = current_result(self.folder)
        return now is None or now["switched"] != self.result["switched"]


def read_sql(
    query: str,
    output: Output | Mapping[str, Output],
    *,
    using: Backend | None = None,
    as_of: str | None = None,
    session: Any = None,
) -> pd.DataFrame:
    """Query a dataset, or several, with SQL.

    Examples:
        >>> sk.read_sql("SELECT day_partition, count(*) FROM ads GROUP BY 1", "out/")           # doctest: +SKIP
        >>> sk.read_sql("SELECT * FROM shown JOIN clicks USING (ad)",                           # doctest: +SKIP
        ...             {"shown": "out/impressions", "clicks": "out/clicks"})

    Each dataset is a table with the name of its pipeline or, in a mapping, its key; if it is the only one, also with
    the name ``dataset``. A query sees each dataset as it is at one moment, even while runs change it.

    Args:
        query: one SELECT.
        output: the folder of the dataset, or several by name.
        using: by default Athena if all datasets are in a Glue catalogue, else DuckDB on this machine.
        as_of: a run: the dataset is read as that run has left it. It has to be in an Iceberg table.
        session: the boto3 session for Athena.

    Raises:
        QueryError: the query cannot be answered.
        RunNotFound: there is no dataset, or no snapshot of the run ``as_of``.
        PipelineError: DuckDB, or for Athena awswrangler, is not installed.
    """
    frame: pd.DataFrame = ask(query, output, using=using, as_of=as_of, session=session).to_pandas()
    return frame


def ask(
    query: str,
    output: Output | Mapping[str, Output],
    *,
    using: Backend | None = None,
    as_of: str | None = None,
    session: Any = None,
) -> pa.Table:
    """The same, as an Arrow table."""
    outputs: Mapping[str | None, Output] = output if isinstance(output, Mapping) else {None: output}  # type: ignore[assignment]

    def look() -> list[Dataset]:
        return [Dataset.at(one, name, alone=len(outputs) == 1, as_of=as_of) for name, one in outputs.items()]

    if as_of is not None and (len(outputs) > 1 or using == "athena"):
        raise PipelineError(
            "as_of: a query of an earlier run's dataset is about that dataset alone, and DuckDB answers it.",
            hint="Athena has FOR VERSION AS OF, which takes the id of a snapshot.",
        )
    datasets = look()
    if not datasets:
        raise PipelineError("read_sql: there is no dataset to ask.", hint="Give its output folder.")
    with_catalogue = all(one.glue is not None for one in datasets)
    if using == "athena" and not with_catalogue:
        without = next(one for one in datasets if one.glue is None)
        raise PipelineError(
            f"{without.folder.uri} is in no catalogue that Athena reads.",
            hint="Set catalog: {glue: {database, table}} in its pipeline and run it, or query it with DuckDB.",
        )
    if using == "athena" or (using is None and with_catalogue):
        tables = {name: (one.glue["database"], one.glue["table"]) for one in datasets for name in one.names if one.glue}
        first = datasets[0]
        session = session or getattr(first.folder, "session", None)
        return ask_athena(query, tables, glue=first.glue or {}, output=first.folder.uri, session=session)
    return _read_steadily(look, datasets, lambda present: _ask_duckdb(query, present))


def _read_steadily(look: Callable[[], list[Dataset]], datasets: list[Dataset], read: Callable[[list[Dataset]], T]) -> T:
    """The result of ``read``, which is called again if it failed while a dataset was switched to new files."""
    for _ in range(SWITCHES_AT_MOST):
        try:
            return read(datasets)
        except (QueryError, OSError):
            if not any(one.has_changed for one in datasets):
                raise
            datasets = look()
    return read(datasets)


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
                if name.lower() not in map(str.lower, names):
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
    """A dataset for DuckDB, where every table has a column; a dataset that never had a row has none."""
    return opened if len(opened.schema) else pa.table({NO_COLUMNS: pa.array([], pa.null())})


def _opened(one: Dataset) -> pads.Dataset:
    try:
        return open_dataset(one.folder, one.result)
    except pa.ArrowException as error:
        raise QueryError(f"The dataset in {one.folder.uri} cannot be read: {error}.") from error


def in_words(error: Exception) -> str:
    """DuckDB's message on one line, without its excerpt of the query."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())


def _duckdb_error(error: Exception, names: list[str]) -> QueryError:
    """DuckDB's message without its excerpt of the query; if a table is missing, with the names of those there are."""
    said = in_words(error)
    hint = ""
    if said.startswith("Catalog Error: Table"):
        said = said.partition(" Did you mean")[0]
        hint = f"There are {', '.join(names)}."
    elif said.startswith("Permission Error"):
        rule = "A query reads the datasets that it is given, and no other file."
        hint = Hint(f"{rule} Give several as a mapping: name to folder.", f"{rule} Give each of them by --output.")
    elif NO_COLUMNS in said:
        hint = "A dataset without a row has no columns."
    return QueryError(f"The query cannot be answered: {said}", hint=hint)


def _plain(table: pa.Table) -> pa.Table:
    """The table with sums of integers, which have 128 bits in DuckDB, as integers like Athena's, or as floats."""
    for i, field in enumerate(table.schema):
        if field.type == pa.decimal128(38, 0):
            values = table.column(i)
            fits = all(v is None or -LARGEST_INT <= v < LARGEST_INT for v in values.to_pylist())
            table = table.set_column(i, field.name, values.cast(pa.int64() if fits else pa.float64()))
    return table
