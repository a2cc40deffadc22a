"""WFDB records of one group by hand, by the macro/micro-sharding pattern.

The list is split once for each CPU, joblib runs over the pieces, everything is concatenated and written as JSON.

    python waveforms_by_hand.py GROUP_DIR OUT.json
"""

import multiprocessing
import sys
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from signals import stem_rows


def piece(stems: list[str]) -> pd.DataFrame:
    """The rows of one worker's share, in memory."""
    return pd.DataFrame([row for stem in stems for row in stem_rows(stem)])


if __name__ == "__main__":
    group, out = sys.argv[1:]
    stems = sorted(str(p.with_suffix("")) for p in Path(group).rglob("*.dat") if p.with_suffix(".hea").exists())
    size = len(stems) // multiprocessing.cpu_count() or 1
    pieces = [stems[i : i + size] for i in range(0, len(stems), size)]
    pd.concat(Parallel(n_jobs=-1)(delayed(piece)(p) for p in pieces)).reset_index(drop=True).to_json(out)
