"""One row for each signal of a WFDB record: the same work for every contestant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import wfdb

if TYPE_CHECKING:
    from shardkit import Record


def stem_rows(stem: str) -> list[dict[str, Any]]:
    """Name, unit, rate, length, missing share and moments of each signal."""
    record = wfdb.rdrecord(stem)
    return [
        {
            "record": os.path.basename(stem),
            "signal": name,
            "unit": unit,
            "fs": float(record.fs),
            "n": len(values),
            "missing": float(np.isnan(values).mean()),
            "mean": float(np.nanmean(values)),
            "std": float(np.nanstd(values)),
            "min": float(np.nanmin(values)),
            "max": float(np.nanmax(values)),
        }
        for name, unit, values in zip(record.sig_name, record.units, record.p_signal.T, strict=True)
    ]


def signal_rows(record: Record) -> list[dict[str, Any]]:
    """The same for a shardkit record."""
    return stem_rows(record.stem)
