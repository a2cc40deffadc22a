"""A plan as notebooks show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardkit.pages.view import View
from shardkit.tables.arrays import numpy
from shardkit.units import counted, human_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.runfolder.document_types import PlanDocument, PlannedShard

BARS = 60


def plan_view(content: PlanDocument, records: pa.Table, text: str) -> str:
    """The plan in HTML: a bar for each shard or, of few shards, the distribution of the records' sizes."""
    headline, *lines = text.splitlines()
    view = View(headline)
    shards = sorted(content["shards"], key=lambda shard: -shard["bytes"])
    if len(shards) > 2:
        view.add_text(f"Bytes by shard, the largest first{_of_all(len(shards))}:")
        view.add_bars([(_tip(shard), shard["bytes"]) for shard in shards[:BARS]])
    elif len(records):
        view.add_text("Records by size, in powers of 2:")
        view.add_bars(_sizes(numpy(records["bytes"])))
    view.add_facts(_facts(lines))
    return view.to_html()


def _tip(shard: PlannedShard) -> str:
    return f"{' '.join(shard['group_names'][:1]) or shard['shard']}: {human_bytes(shard['bytes'])}"


def _of_all(count: int) -> str:
    return f" {BARS} of {count:,}" if count > BARS else ""


def _sizes(sizes: np.ndarray) -> list[tuple[str, float]]:
    """How many records there are of each size."""
    powers = np.frexp(sizes.astype(float))[1]
    first = int(powers.min())
    return [
        (f"{counted(count, 'record')} of up to {human_bytes(2.0**power)}", count)
        for power, count in enumerate(np.bincount(powers - first).tolist(), first)
    ]


def _facts(lines: list[str]) -> list[tuple[str, str]]:
    """The lines of a plan's text, each with the word at its beginning apart; what is indented goes below it."""
    facts: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith("   ") and facts:
            facts[-1] = (facts[-1][0], f"{facts[-1][1]}\n{' '.join(line.split())}")
        else:
            facts.append((line[2:10].strip(), line[11:]))
    return facts
