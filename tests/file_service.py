"""A Processing service in a folder, for several processes at once: its jobs take real time, and do nothing.

python tests/file_service.py STORE FOLDER FAULTS [POLICY AS JSON]      drives the queue to its end
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import ReadTimeoutError
from simulated_service import client_error, matches, moment

from shardkit.jobs import Policy, SQLiteStore, drive


class FileService:
    """The four methods of the service's client; a job is a file that can be created only once.

    Args:
        folder: Where the jobs are.
        lost: The share of calls that get no answer; half of these are carried out.
    """

    def __init__(self, folder: Path, *, lost: float = 0.0) -> None:
        self.folder, self.lost = folder, lost

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        name = request["ProcessingJobName"]
        with (self.folder / "calls").open("a") as file:
            file.write(f"{name}\n")
        lost = random.random() < self.lost
        if lost and random.random() < 0.5:
            raise ReadTimeoutError(endpoint_url="folder")
        part = self.folder / f"{name}.{os.getpid()}.part"
        part.write_text(json.dumps({"created_at": time.time()}))
        try:
            os.link(part, self.folder / f"{name}.job")
        except FileExistsError:
            raise client_error("ResourceInUse", f"{name} already exists", "CreateProcessingJob") from None
        finally:
            part.unlink()
        if lost:
            raise ReadTimeoutError(endpoint_url="folder")
        return {}

    def describe_processing_job(self, **request: Any) -> dict[str, Any]:
        path = self.folder / f"{request['ProcessingJobName']}.job"
        if not path.exists():
            raise client_error("ValidationException", "Could not find requested job", "DescribeProcessingJob")
        return line_of(path)

    def list_processing_jobs(self, **filters: Any) -> dict[str, Any]:
        lines = [line_of(path) for path in sorted(self.folder.glob("*.job"))]
        lines = [
            line
            for line in lines
            if matches(line, filters) and line["ProcessingJobName"] > filters.get("NextToken", "")
        ]
        page = lines[: filters["MaxResults"]]
        more = {"NextToken": page[-1]["ProcessingJobName"]} if len(lines) > len(page) else {}
        return {"ProcessingJobSummaries": page} | more

    def stop_processing_job(self, **request: Any) -> dict[str, Any]:
        raise AssertionError("nobody asked for that")


def line_of(path: Path) -> dict[str, Any]:
    """A job's entry in the list: a job takes up to 0.3 s, and one in ten finds no capacity."""
    created_at = json.loads(path.read_text())["created_at"]
    dice = random.Random(path.stem)
    ended_at = created_at + dice.uniform(0.05, 0.3)
    over = time.time() >= ended_at
    failed = dice.random() < 0.1
    line = {
        "ProcessingJobName": path.stem,
        "CreationTime": moment(created_at),
        "LastModifiedTime": moment(ended_at if over else created_at),
        "ProcessingJobStatus": ("Failed" if failed else "Completed") if over else "InProgress",
    }
    if over:
        line["ProcessingEndTime"] = moment(ended_at)
    return line | ({"FailureReason": "CapacityError: none"} if over and failed else {})


if __name__ == "__main__":
    policy = Policy.local(**json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})
    drive(SQLiteStore(sys.argv[1]), FileService(Path(sys.argv[2]), lost=float(sys.argv[3])), policy=policy)
