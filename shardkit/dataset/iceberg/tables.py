"""The Iceberg tables of a dataset: where they are noted, and the catalogues that have them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from shardkit.errors import CatalogError, Damaged, PipelineError, ShardkitError
from shardkit.runfolder.names import ICEBERG
from shardkit.storage.aws_locations import reach_of
from shardkit.storage.base import STATE_DIR, is_remote
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from shardkit.storage.base import Folder

HOME = f"{STATE_DIR}/iceberg"  # metadata of the tables and, on this machine, the catalogue
OWNER = "shardkit.output"  # the property of a table that names its dataset


@dataclass(frozen=True)
class IcebergTable:
    """A table of an Iceberg catalogue.

    Attributes:
        name: the catalogue's, under which pyiceberg's own configuration may have settings for it.
        table: namespace and name of the table, with a dot between them.
        properties: pyiceberg's settings of the catalogue, none of which is a secret.
        keep: for how long a replaced snapshot stays, such as ``5d``.
    """

    name: str
    table: str
    properties: dict[str, str] = field(default_factory=dict)
    keep: str = "5d"

    def open(self, output: Folder) -> Catalog:
        """The catalogue.

        Raises:
            PipelineError: pyiceberg knows no such catalogue.
        """
        from pyiceberg.catalog import load_catalog
        from pyiceberg.utils.config import Config

        configured = Config().get_catalog_config(self.name) or {}
        if self.properties or configured:
            given = self.properties
        elif isinstance(output, LocalFolder):
            home = output.path / HOME
            home.mkdir(parents=True, exist_ok=True)
            given = {"type": "sql", "uri": f"sqlite:///{home}/catalog.sqlite"}
        else:
            raise PipelineError(
                f"catalog: no settings are given for the Iceberg catalogue {self.name!r}, and {output.uri} cannot hold "
                "one of its own.",
                hint="Give them, such as catalog: {iceberg: {properties: {type: glue}}}, or in pyiceberg's own file.",
            )
        return load_catalog(self.name, **({} if not is_remote(output.uri) else _access(output)), **given)

    def load(self, catalog: Catalog) -> Table | None:
        """The table as the catalogue has it now; None if there is none."""
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return catalog.load_table(self.table)
        except NoSuchTableError:
            return None

    @contextlib.contextmanager
    def reporting(self, done: str) -> Iterator[None]:
        """Turn what a catalogue raises into an error of ours; ``done`` says how far the dataset has come.

        Raises:
            CatalogError: something was raised.
        """
        try:
            yield
        except CatalogError as error:
            raise CatalogError(f"{done} {error.message}", hint=error.hint) from error
        except ShardkitError:
            raise
        except Exception as error:  # pyiceberg, SQLAlchemy, botocore, requests and Arrow have no common base
            said = " ".join(str(error).split())[:800]
            raise CatalogError(
                f"{done} {type(error).__name__}: {said}", hint="Fix that, then resume the run."
            ) from error


def _access(output: Folder) -> dict[str, str]:
    """How pyiceberg reaches the store of an output in the same way as we do."""
    reach = reach_of(output, "The Iceberg catalogue")
    access = {
        "client.region": reach.region,
        "client.access-key-id": reach.access_key,
        "client.secret-access-key": reach.secret_key,
        "client.session-token": reach.token,
        "s3.endpoint": reach.endpoint,
    }
    return {name: value for name, value in access.items() if value}


def check_installed() -> None:
    """Check that pyiceberg is installed, before a run rather than after it.

    Raises:
        PipelineError: it is not.
    """
    if importlib.util.find_spec("pyiceberg") is None:
        raise PipelineError(
            "catalog: an Iceberg table needs pyiceberg, which is not installed.",
            hint="Install it with: pip install 'shardkit[iceberg]'",
        )


# ---- the note on a dataset's tables ------------------------------------------------------------------------------


def tables_of(output: Folder) -> list[IcebergTable]:
    """The tables that may name files of the dataset, the latest first.

    Raises:
        Damaged: the note on them cannot be read.
    """
    try:
        return [IcebergTable(**table) for table in json.loads(output.read(ICEBERG))["tables"]]
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError) as error:
        raise Damaged(
            f"{output.uri}/{ICEBERG} is damaged: {error}.",
            hint="Remove it and resume the run, which writes it again; then files of old snapshots stay for good.",
        ) from None


def note_table(table: IcebergTable, output: Folder) -> None:
    """Note, before the table names the first file, that the dataset is in it; from then on no switch removes files."""
    others = [other for other in tables_of(output) if (other.name, other.table) != (table.name, table.table)]
    write_tables([table, *others], output)


def write_tables(tables: list[IcebergTable], output: Folder) -> None:
    """Note the tables of a dataset, the latest first."""
    data = json.dumps({"tables": [asdict(table) for table in tables]}, indent=1).encode()
    try:
        if output.read(ICEBERG) == data:
            return
    except FileNotFoundError:
        pass
    output.write(ICEBERG, data)


def uri_of(output: Folder, path: str) -> str:
    """A file of the output as Iceberg names it."""
    return f"{_root(output)}/{path}"


def path_of(output: Folder, uri: str) -> str | None:
    """The file of the output that Iceberg names so; None if it lies elsewhere."""
    root = f"{_root(output)}/"
    return uri[len(root) :] if uri.startswith(root) else None


def _root(output: Folder) -> str:
    return output.uri if is_remote(output.uri) else f"file://{output.path}"
