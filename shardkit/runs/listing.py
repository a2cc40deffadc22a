"""Lists the input of a pipeline: its folder, or what a manifest names in it, or several of these as one.

The keys of several inputs begin with the input's name. Lists of keys to include or exclude apply to each before that.
What reads lists is loaded where a pipeline has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError
from shardkit.runfolder import documents
from shardkit.storage.list_files import datasets_in, with_datasets
from shardkit.storage.list_rows import META, keys_under
from shardkit.storage.open import folder
from shardkit.tables.arrays import numpy, one_chunk, scalar
from shardkit.tables.spill import LISTED, Spill, batches_of, filtered

if TYPE_CHECKING:
    from shardkit.spec.input import Input, InputPart
    from shardkit.spec.spec import Spec
    from shardkit.storage.base import Access, Folder
    from shardkit.storage.listed import ListFacts

S = TypeVar("S", bound="Spec")
NAMED = 3


def with_roots(pipeline: S) -> S:
    """The pipeline with the folders that its manifests imply as the URIs of its input.

    Raises:
        InputError: a manifest cannot be read, or implies none.
    """
    parts = pipeline.input.places()
    if all(part.uri is not None for part in parts):
        return pipeline
    rooted = [_with_root(part, pipeline.input_access(part)) for part in parts]
    several = bool(pipeline.input.parts)
    return pipeline.replace(input={"parts": rooted} if several else rooted[0])


def _with_root(part: Input | InputPart, access: Access) -> dict[str, Any]:
    content = part.model_dump(by_alias=True)
    if part.uri is None:
        from shardkit.storage.manifest import open_manifest

        content["uri"] = open_manifest(str(part.manifest), None, access).root
    return content


def list_input(pipeline: Spec, output: Folder) -> tuple[pa.Table, list[ListFacts]]:
    """The objects of a pipeline's input, in key order, and how its manifests compare with them.

    Raises:
        InputError: a place is empty or cannot be read, or a list does not fit what is there.
    """
    need = [*(["etag"] if pipeline.is_incremental else []), *(["modified"] if _by_time(pipeline) else [])]
    several = bool(pipeline.input.parts)
    tables: dict[str, pa.Table] = {}
    facts: list[ListFacts] = []
    for part in pipeline.input.places():
        access, root = pipeline.input_access(part), str(part.uri)
        if part.manifest is not None:
            from shardkit.storage.listed import list_from

            listed = list_from(
                part.manifest, root, access, leave_out=output, need=need, all_inside=not several, say=documents.say
            )
            objects = listed.objects
            facts.append(listed.facts)
        else:
            objects = folder(root, access).objects(leave_out=output)
        tables[str(getattr(part, "name", ""))] = _chosen(objects, part, root, access)
    return (_together(tables) if several else tables[""]), facts


def _by_time(pipeline: Spec) -> bool:
    return pipeline.shards is not None and pipeline.shards.column is not None


def _chosen(objects: pa.Table, part: Input | InputPart, root: str, access: Access) -> pa.Table:
    """The objects that are in ``include_list``, and not in ``exclude_list``, as far as these are given."""
    if part.include_list is not None:
        keys = _keys(part.include_list, root, access)
        there = numpy(pc.is_in(keys, value_set=one_chunk(objects["key"])))
        if not there.all():
            missing = keys.take(pa.array(np.flatnonzero(~there)[:NAMED])).to_pylist()
            raise InputError(
                f"{int((~there).sum()):,} of the {len(keys):,} files that {part.include_list} names are not in the "
                f"input {root}: {', '.join(missing)}{', ...' if (~there).sum() > NAMED else ''}.",
                hint="Mend the list, or the input; hidden names, which begin with '_' or '.', are no input.",
            )
        objects = filtered(objects, numpy(pc.is_in(objects["key"], value_set=keys)))
    if part.exclude_list is not None:
        keys = _keys(part.exclude_list, root, access, outside=True)
        objects = filtered(objects, ~numpy(pc.is_in(objects["key"], value_set=keys)))
    return objects


def _keys(uri: str, root: str, access: Access, *, outside: bool = False) -> pa.StringArray:
    """The keys in a list; names of files ``outside`` of the input are left out if they may be there, else refused."""
    from shardkit.storage.lists import open_list
    from shardkit.storage.manifest import access_to, open_file

    home, name = open_file(uri, access_to(uri, root, access))
    rows = open_list(home, name, only_names=True)
    to_keys = keys_under(root, relative_to=home.uri) if rows.uris else None
    found: list[pa.Array] = []
    for batch in rows.read():
        keys = batch["name"] if to_keys is None else to_keys(batch["name"])
        if keys.null_count and not outside:
            wrong = batch["name"].filter(pc.is_null(keys))[0].as_py()
            raise InputError(f"{uri} names {wrong}, which is not in the input {root}.", hint="Is input.uri right?")
        found.append(keys.drop_null())
    return one_chunk(pa.chunked_array(found, pa.string()))


def _together(tables: dict[str, pa.Table]) -> pa.Table:
    """The objects of several inputs as one table; their keys begin with the input's name."""
    meta = _common_meta(tables)
    schema = LISTED.append(pa.field(META, meta)) if meta is not None else LISTED
    spill = Spill(schema)
    kept = []
    datasets: list[str] = []
    for name in sorted(tables, key=lambda each: f"{each}/"):  # the order of the keys
        table = tables[name]
        if not len(table):
            raise InputError(f"The input {name} holds no files.", hint="Leave it out, or is its uri right?")
        datasets += [f"{name}/{each}" for each in datasets_in(table)]
        for batch in batches_of(table):
            keys = pc.binary_join_element_wise(scalar(name), batch["key"], "/")
            columns = [keys, *batch.columns[1 : len(LISTED)]]
            if meta is not None:
                columns.append(_meta_as(batch, meta))
            kept.append(spill.keep(pa.RecordBatch.from_arrays(columns, schema=schema)))
    return with_datasets(spill.table(kept), datasets)


def _common_meta(tables: dict[str, pa.Table]) -> pa.StructType | None:
    """What the manifests of several inputs say besides, as one type; None if they say nothing.

    Raises:
        InputError: a column has two types.
    """
    kinds: dict[str, tuple[pa.DataType, str]] = {}
    for name, table in tables.items():
        for field in table.schema.field(META).type if META in table.column_names else ():
            kind, first = kinds.setdefault(field.name, (field.type, name))
            if kind != field.type:
                raise InputError(
                    f"The column {field.name} is {kind} in the list of the input {first}, and {field.type} in that of "
                    f"{name}.",
                    hint="Give it one type in both.",
                )
    return pa.struct([(name, kind) for name, (kind, _) in kinds.items()]) if kinds else None


def _meta_as(batch: pa.RecordBatch, meta: pa.StructType) -> pa.StructArray:
    """What the rows of a batch say besides, with nulls for what only other inputs' lists say."""
    given = batch[META] if META in batch.schema.names else pa.nulls(len(batch), pa.struct([]))
    own = [field.name for field in given.type]
    columns = [
        given.field(own.index(field.name)) if field.name in own else pa.nulls(len(batch), field.type) for field in meta
    ]
    return pa.StructArray.from_arrays(columns, fields=list(meta))
