"""What a job needs, as options of sbatch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB_PER_GIB = 1024


def sbatch_words(resources: Mapping[str, Any], instances: int) -> list[str]:
    """The options for these ``Resources``; all instances of a job share one node, so they get so many times as much."""
    words = ["--nodes=1", "--ntasks=1"]
    words += [f"--{name}={resources[name]}" for name in ("partition", "account", "qos", "time") if resources.get(name)]
    if cpus := resources.get("cpus"):
        words.append(f"--cpus-per-task={cpus * instances}")
    if memory_gb := resources.get("memory_gb"):
        words.append(f"--mem={math.ceil(memory_gb * MIB_PER_GIB * instances)}M")
    if gpus := resources.get("gpus"):
        kind, _, count = str(gpus).rpartition(":")
        words.append(f"--gres=gpu:{kind + ':' if kind else ''}{int(count) * instances}")
    return [*words, *resources.get("options", ())]
