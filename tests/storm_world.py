"""The pipelines of the storm: an input, a function and an output, on disk or in S3, and the rows they must give."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from emulators import CREDENTIALS, moto_on_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

LEASE_S = 2.0  # instead of a minute, so that a pause may outlast it
RECORDS = 30
POISON = 7
WORK = """
import time

def rows(record):
    number = int(open(record).read())
    time.sleep(0.02)
    if number == 7:
        raise ValueError("poison")
    for i in range(1 + number % 3):
        yield {"key": record.key, "i": i, "text": f"{number} of {i}"}

def same(batches):
    for batch in batches:
        time.sleep(0.05)
        yield batch
"""
# The command line, with short leases.
PROGRAM = f"""
import sys
try:
    import shardkit.storage.lease as lease
    lease.LEASE_S, lease.LEASE_RENEWAL_S = {LEASE_S}, {LEASE_S / 6}
    from shardkit.__main__ import main
except KeyboardInterrupt:
    sys.exit(130)
main()
"""
# A proxy in front of the S3 server, so that the server can vanish without losing its objects.
PROXY = """
import asyncio, sys

async def pipe(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

async def serve(reader, writer):
    try:
        behind = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except OSError:
        writer.close()
        return
    await asyncio.gather(pipe(reader, behind[1]), pipe(behind[0], writer))

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline: where its output is, and its fields beside the usual ones."""

    name: str
    s3: bool
    fields: dict[str, Any]

    @property
    def is_served(self) -> bool:
        """Whether a server launches its jobs."""
        return "queue" in self.fields


DAYS = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}}
JOBS = {"engine": "local", "shards": {"by": "size", "count": 2}}
KINDS = [
    Kind("plain", s3=False, fields={}),
    Kind("days", s3=False, fields=DAYS),
    Kind("combine", s3=False, fields={"combine": "work:same", "output": {"partition_by": ["i"]}}),
    Kind("small-files", s3=False, fields={"output": {"rows_per_file": 7}}),
    Kind("s3", s3=True, fields={"output": {"rows_per_file": 20}}),
    Kind("s3-days", s3=True, fields=DAYS),
    Kind("jobs", s3=False, fields=JOBS),
    Kind("served", s3=False, fields=JOBS | {"queue": {"place": "jobs.sqlite"}}),
]


class Store:
    """An S3 server, and a proxy in front of it that can be killed and started again."""

    def __init__(self, behind: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._behind = behind
        self._proxy: subprocess.Popen[bytes] | None = None
        self.begin()

    def begin(self) -> None:
        """Start the proxy, if it does not run."""
        if self._proxy is None:
            self._proxy = subprocess.Popen([sys.executable, "-c", PROXY, str(self.port), str(self._behind)])

    def end(self) -> None:
        """Kill the proxy: connections break, and new ones are refused."""
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()
            self._proxy = None

    @property
    def environment(self) -> dict[str, str]:
        """How a program finds it."""
        return {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}"} | CREDENTIALS


@contextlib.contextmanager
def stores() -> Iterator[Store]:
    """The store that all pipelines of the storm share."""
    with moto_on_loopback() as url:
        store = Store(int(url.rpartition(":")[2]))
        try:
            yield store
        finally:
            store.end()


class World:
    """One pipeline's files, and the processes that work on it, which carry its name in their environment."""

    def __init__(self, root: Path, kind: Kind, store: Store) -> None:
        self.root, self.kind, self._store = root, kind, store
        self.name = f"{root.name}-{os.getpid()}"
        self.output = f"s3://{self.name}/out" if kind.s3 else str(root / "out")
        root.mkdir(parents=True)
        (root / "work.py").write_text(WORK)
        (root / "program.py").write_text(PROGRAM)
        (root / "pipeline.yaml").write_text(json.dumps(self._pipeline()))
        for number in range(RECORDS):
            path = root / "data" / self.key(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(number))
        if kind.s3:
            self._client().create_bucket(
                Bucket=self.name,
                CreateBucketConfiguration={"LocationConstraint": CREDENTIALS["AWS_DEFAULT_REGION"]},
            )

    def _pipeline(self) -> dict[str, Any]:
        fields = {"name": "storm", "input": "data", "function": "work:rows", "workers": 2, "max_failures": "50%"}
        fields |= {"timeout": 10, **self.kind.fields}
        return fields | {"output": {"uri": self.output, **self.kind.fields.get("output", {})}}

    def key(self, number: int) -> str:
        """The key of a record."""
        return f"2020-01-0{1 + number % 4}/{number:03d}.txt"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this pipeline's commands."""
        return os.environ | self._store.environment | self._own_environment

    @property
    def _own_environment(self) -> dict[str, str]:
        state = str(self.root / "state")
        return {"STORM": self.name, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_STATE_HOME": state}

    def _client(self) -> Any:
        import boto3

        given = self._store.environment
        return boto3.client(
            "s3",
            endpoint_url=given["AWS_ENDPOINT_URL_S3"],
            region_name=given["AWS_DEFAULT_REGION"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def processes(self) -> dict[int, str]:
        """The roles of the processes that work on this pipeline, by process id."""
        return {pid: role for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if (role := self._role(pid))}

    def _role(self, pid: int) -> str:
        try:
            place = Path(f"/proc/{pid}")
            if f"STORM={self.name}".encode() not in (place / "environ").read_bytes().split(b"\0"):
                return ""
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            name = (place / "comm").read_text().strip()
        except (OSError, ValueError):
            return ""
        if name in {"shardkit-forks", "shardkit-worker"}:
            return name
        if not any(words):
            return ""  # it has ended
        if "serve" in words:
            return "server"
        roles = {"program.py": "driver", "shardkit.job": "job", "supervisor": "supervisor", "bootstrap": "job"}
        return next((role for part, role in roles.items() if any(part in word for word in words)), "other")

    def expected(self) -> Counter[tuple[str, int, str]]:
        """The rows that the dataset must have."""
        numbers = [number for number in range(RECORDS) if number != POISON]
        return Counter((self.key(n), i, f"{n} of {i}") for n in numbers for i in range(1 + n % 3))

    def faults(self) -> list[str]:
        """What is wrong with the dataset, as a reader of its folder finds it."""
        contents = self._contents()
        files = {key: data for key, data in contents.items() if not key.startswith("_shardkit/")}
        rows: Counter[tuple[str, int, str]] = Counter()
        for key, data in files.items():
            table = pq.ParquetFile(io.BytesIO(data)).read()
            part = [text.split("=")[1] for text in key.split("/") if text.startswith("i=")]
            numbers = table["i"].to_pylist() if "i" in table.column_names else [int(part[0])] * len(table)
            rows.update(zip(table["key"].to_pylist(), numbers, table["text"].to_pylist(), strict=True))
        expected, faults = self.expected(), []
        if doubled := rows - expected:
            faults.append(f"{doubled.total()} rows too many, such as {next(iter(doubled))}")
        if lost := expected - rows:
            faults.append(f"{lost.total()} rows lost, such as {next(iter(lost))}")
        listed = {file["path"] for file in json.loads(contents["_shardkit/current.json"])["files"]}
        if listed != set(files):
            faults.append(f"current.json lists {sorted(listed)}, and there are {sorted(files)}")
        return faults

    def _contents(self) -> dict[str, bytes]:
        if not self.kind.s3:
            out = Path(self.output)
            paths = [p for p in out.rglob("*") if p.is_file() and "runs" not in p.relative_to(out).parts]
            return {str(path.relative_to(out)): path.read_bytes() for path in paths}
        client, contents = self._client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix="out/"):
            for key in [item["Key"] for item in page.get("Contents", []) if "/runs/" not in item["Key"]]:
                contents[key.removeprefix("out/")] = client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return contents

    def phase(self) -> str:
        """How far the run has come, judged by the files on disk."""
        folder = Path(self.output) / "_shardkit"
        if self.kind.s3 or not folder.exists():
            return "begin"
        if (folder / "commit.json").exists():
            return "switch"
        runs = list((folder / "runs").glob("*"))
        if any((run / "dataset").exists() for run in runs):
            return "pass 2"
        return "pass 1" if any(any(run.glob("markers/*/*")) for run in runs) else "begin"

    def clear(self) -> None:
        """End the remaining processes, and remove the files."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        shutil.rmtree(self.root, ignore_errors=True)
