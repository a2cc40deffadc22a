"""The catalogues that have a dataset as a table: Glue, for Athena, and those of Iceberg."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.dataset import catalog as glue
from shardkit.dataset.iceberg.snapshots import check_fits, register
from shardkit.dataset.iceberg.tables import check_installed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from shardkit.dataset.merge import Merge
    from shardkit.storage.base import Folder


CHECKS = {"athena": glue.check_installed, "iceberg": check_installed}


def check_extras(extras: Iterable[str]) -> None:
    """Check, before a run, that what its catalogue needs is installed: some extras of this package.

    Raises:
        PipelineError: it is not.
    """
    for extra in extras:
        CHECKS[extra]()


def check_table(merge: Merge, output: Folder, result: Mapping[str, Any]) -> None:
    """Check, before a switch, that the table can hold what the dataset will be.

    Raises:
        SchemaConflict: Iceberg has no type for a column.
        CatalogError: the table cannot take it.
    """
    if merge.iceberg is not None:
        check_fits(merge.iceberg, output, result)


def keep_registered(merge: Merge, output: Folder, *, changed: bool) -> None:
    """Make sure that the catalogue has the dataset, if it should; ``changed``: the dataset is not as it was.

    Raises:
        CatalogError: it could not be done; the dataset is whole, and a resumption tries again.
    """
    glue.keep_registered(merge.glue, output, changed=changed)
    if merge.iceberg is not None:
        check_installed()
        register(merge.iceberg, output)
