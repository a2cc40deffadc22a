"""Members of archives to records, without a Python object for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.inside.piece import MEMBERS
from shardkit.plan.globs import matches
from shardkit.tables.arrays import arrow, numpy, one_chunk

if TYPE_CHECKING:
    from shardkit.inside.archives import Index
    from shardkit.inside.rule import Inside

AFTER_STEM = r"(?s)\.[^/]*$"  # from the first dot of the name's last part on, as WebDataset has it


class MemberRecords(NamedTuple):
    """The records of an archive: their names, sizes in bytes, members, and which of these is the main one."""

    names: pa.StringArray
    bytes: np.ndarray
    members: pa.ListArray
    main: np.ndarray


def records_of(index: Index, rule: Inside) -> MemberRecords:
    """The records of an archive, in the order in which their first members lie there."""
    names = index.names
    of = pc.replace_substring_regex(names, AFTER_STEM, "") if rule.by == "stem" else names
    encoded = of.dictionary_encode()
    group = numpy(encoded.indices).astype(np.int64)
    if rule.by == "stem":
        by_name = pc.sort_indices(
            pa.table({"group": arrow(group), "name": names}), [("group", "ascending"), ("name", "ascending")]
        )
        order = numpy(by_name).astype(np.int64)
    else:
        order = np.arange(len(group))
    group, may_be_main = group[order], numpy(matches(names, rule.pattern))[order]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    main = np.full(len(first), -1, np.int64)
    mains = np.flatnonzero(may_be_main)[::-1]
    main[group[mains]] = mains  # the first of each group is the last to be written
    has_main = main >= 0
    order = order[has_main[group]]
    counts = np.diff(np.r_[first, len(group)])[has_main]
    offsets = np.r_[0, np.cumsum(counts)]
    numbers = [arrow(column[order]) for column in (index.start, index.stored, index.crc)]
    members = pa.StructArray.from_arrays([names.take(arrow(order)), *numbers], fields=list(MEMBERS.value_type))
    sums = np.r_[0, np.cumsum(index.stored[order])]
    return MemberRecords(
        encoded.dictionary.filter(arrow(has_main)),
        np.diff(sums[offsets]),
        pa.ListArray.from_arrays(arrow(offsets.astype(np.int32)), members),
        (main - first)[has_main].astype(np.int32),
    )


def not_cut(size: int) -> MemberRecords:
    """A record without a name, which stands for an archive of that size in bytes that cannot be cut."""
    none = pa.array([[]], MEMBERS)
    return MemberRecords(pa.array([""], pa.string()), np.array([size]), none, np.zeros(1, np.int32))


def together(archives: list[MemberRecords]) -> MemberRecords:
    """The records of several archives, one after the other."""
    columns = list(zip(*archives, strict=True))
    names, members = (one_chunk(pa.chunked_array(columns[at])) for at in (0, 2))
    return MemberRecords(names, np.concatenate(columns[1]), members, np.concatenate(columns[3]))
