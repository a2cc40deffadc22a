"""The catalogues that have a dataset as a table: Glue, for Athena, and those of Iceberg, loaded where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.runfolder.names import GLUE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from shardkit.dataset.merge import Merge
    from shardkit.storage.base import Folder


def check_extras(extras: Iterable[str]) -> None:
    """Check, before a run, that what its catalogue needs is installed: some extras of this package.

    Raises:
        PipelineError: it is not.
    """
    from shardkit.dataset import catalog
    from shardkit.dataset.iceberg import tables

    for extra in extras:
        {"athena": catalog.check_installed, "iceberg": tables.check_installed}[extra]()


def check_table(merge: Merge, output: Folder, result: Mapping[str, Any]) -> None:
    """Check, before a switch, that the table can hold what the dataset will be.

    Raises:
        SchemaConflict: Iceberg has no type for a column.
        CatalogError: the table cannot take it.
    """
    if merge.iceberg is not None:
        from shardkit.dataset.iceberg.snapshots import check_fits

        check_fits(merge.iceberg, output, result)


def keep_registered(merge: Merge, output: Folder, *, changed: bool) -> None:
    """Make sure that the catalogue has the dataset, if it should; ``changed``: the dataset is not as it was.

    Without a Glue catalogue, queries no longer go to the table there, which is no longer brought up to date.

    Raises:
        CatalogError: it could not be done; the dataset is whole, and a resumption tries again.
    """
    if merge.glue is None:
        output.remove(GLUE)
    else:
        from shardkit.dataset import catalog

        catalog.keep_registered(merge.glue, output, changed=changed)
    if merge.iceberg is not None:
        from shardkit.dataset.iceberg.snapshots import register
        from shardkit.dataset.iceberg.tables import check_installed

        check_installed()
        register(merge.iceberg, output)
