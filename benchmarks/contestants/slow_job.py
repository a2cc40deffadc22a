"""A function that waits, in the job whose number is in SLOW_JOB ten times as long: waiting needs no CPU."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

SECONDS = 0.25
SLOWER = 10


def job_number() -> int:
    """The number of the job in which this process is."""
    config = Path(os.environ.get("SHARDKIT_OPT_ML", "/opt/ml"), "config", "processingjobconfig.json")
    name = json.loads(config.read_text())["ProcessingJobName"]
    found = re.search(r"-g\d+-(\d+)-\d+$", name)
    return int(found[1]) if found else -1


class Waiting:
    """Waits once for each record."""

    def __init__(self) -> None:
        self.seconds = SECONDS * (SLOWER if str(job_number()) == os.environ.get("SLOW_JOB") else 1)

    def __call__(self, record: Any) -> dict[str, Any]:
        """One row."""
        time.sleep(self.seconds)
        return {"key": record.key, "job": job_number()}
