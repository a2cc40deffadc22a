"""Opens a manifest: a list of files, or a report of S3 Inventory; and knows where the files lie that it names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError
from shardkit.storage.base import Access, absolute_uri, is_remote
from shardkit.storage.inventory import open_inventory
from shardkit.storage.list_rows import ROWS, keys_under
from shardkit.storage.lists import open_list
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardkit.storage.base import Folder

ROOT_HINT = "Give input.uri, the folder or bucket that the keys are relative to."


@dataclass(frozen=True)
class Manifest:
    """What a manifest names: files under the folder ``root``, as rows of ``schema`` that each of ``readers`` yields.

    ``keys`` turns their names into keys; null for what lies elsewhere. ``of_inventory`` is true for a report, which
    stands for a listing with all its rules.
    """

    uri: str
    root: str
    schema: pa.Schema
    readers: Sequence[Callable[[], Iterator[pa.RecordBatch]]]
    keys: Callable[[pa.StringArray], pa.StringArray]
    of_inventory: bool = False


def open_file(uri: str, access: Access) -> tuple[Folder, str]:
    """The folder that a file lies in, and its name there."""
    home, _, name = absolute_uri(uri).rpartition("/")
    return folder(home or "/", access), name


def open_manifest(uri: str, root: str | None, access: Access) -> Manifest:
    """Open the manifest of the folder ``root``.

    Without ``root``, an inventory is of its whole bucket, and a list of the bucket of its first row or, on this
    machine, of its own folder.

    Raises:
        InputError: it is not there, or is no manifest, or does not say where its files lie.
    """
    home, name = open_file(uri, access_to(uri, root, access))
    if name.lower().endswith(".json") and (report := open_inventory(home, name, home_access(home, access))) is not None:
        bucket = f"s3://{report.bucket}"
        return Manifest(
            report.uri,
            root or bucket,
            ROWS,
            report.files,
            partial(_cut, prefix=_prefix_in(bucket, root or bucket, report.uri)),
            of_inventory=True,
        )
    rows = open_list(home, name)
    if not rows.uris and root is None:
        raise InputError(f"The list {rows.uri} names its files by keys.", hint=ROOT_HINT)
    place = root or _root_of(rows.read(), home.uri)
    keys = keys_under(place, relative_to=home.uri) if rows.uris else _as_they_are
    return Manifest(rows.uri, place, rows.schema, [rows.read], keys)


def access_to(file: str, root: str | None, access: Access) -> Access:
    """The access to a file of a list: that to the input if both lie in one bucket, else the usual one."""
    own = root is None or root.split("/")[:3] == file.split("/")[:3]
    return access if own else Access(access.session)


def home_access(home: Folder, access: Access) -> Access:
    """The access to other files of the store in which ``home`` lies."""
    opened: Access = getattr(home, "access", access)
    return opened


def _prefix_in(bucket: str, root: str, report: str) -> str:
    """What the keys of an inventory begin with under ``root``; nothing if that is a copy of the bucket elsewhere."""
    if not is_remote(root) or f"{root.rstrip('/')}/" == f"{bucket}/":
        return ""
    if not root.startswith(f"{bucket}/"):
        raise InputError(
            f"The inventory {report} is of {bucket}, and input.uri is {root}.",
            hint=f"Give a folder of {bucket}, or leave input.uri out for all of it.",
        )
    return f"{root.removeprefix(bucket).strip('/')}/"


def _cut(keys: pa.StringArray, *, prefix: str) -> pa.StringArray:
    """Keys of a bucket as keys under a prefix of it; null for the others, and for what stands for a folder."""
    inside = pc.and_not(pc.starts_with(keys, prefix), pc.ends_with(keys, "/"))
    return pc.if_else(inside, pc.utf8_slice_codeunits(keys, len(prefix)), pa.scalar(None, pa.string()))


def _as_they_are(keys: pa.StringArray) -> pa.StringArray:
    return keys


def _root_of(batches: Iterator[pa.RecordBatch], home: str) -> str:
    """The bucket of the first row; on this machine the folder of the list."""
    first = next((batch["name"][0].as_py() for batch in batches if len(batch)), None)
    if not first or not is_remote(first):
        return home
    scheme, _, rest = first.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
