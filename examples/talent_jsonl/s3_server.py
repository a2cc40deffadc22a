"""An S3 server on this machine, for as long as a notebook needs one: without an account, and nothing is kept.

    server = s3_server.start()                      # from here on, s3:// means this server
    server.upload("week", "s3://talent/ads/")
    server.stop()

The server is moto's: pip install "moto[server]". Any other server of S3 will do, such as SeaweedFS: set
AWS_ENDPOINT_URL_S3 and its credentials in the environment instead of calling ``start``. With a real bucket there is
nothing to set but its name.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

HOST = "127.0.0.1"
MADE_UP = {
    "AWS_ACCESS_KEY_ID": "made-up",
    "AWS_SECRET_ACCESS_KEY": "made-up",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Server:
    """A server in a process of its own, which ends with this one at the latest.

    Attributes:
        port: where it listens, on 127.0.0.1 alone.
        url: the same as a URL.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self._process = subprocess.Popen(  # noqa: S603  this very file
            [sys.executable, __file__, str(port)],
            stdin=subprocess.PIPE,  # the server ends when this closes
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it prints a line for each request
            start_new_session=True,  # interrupting a cell must not end it
            text=True,
        )
        if self._process.stdout is None or not self._process.stdout.readline():
            raise RuntimeError(f"The S3 server did not start. Run this to see why: {sys.executable} {__file__} {port}")

    @property
    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def upload(self, folder: str | Path, uri: str, *, leave_out: Collection[str] = ()) -> int:
        """Copy a folder's files to ``s3://bucket/prefix/``, and make the bucket if it is not there.

        Args:
            folder: what to copy, with all folders below it.
            uri: the destination.
            leave_out: files that are not copied, by their paths under ``folder``.

        Returns:
            How many files were copied.
        """
        import boto3

        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        client = boto3.Session().client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket=bucket)
        keys = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
        chosen = [key for key in keys if key not in leave_out]
        for key in chosen:
            client.put_object(Bucket=bucket, Key=prefix + key, Body=Path(folder, key).read_bytes())
        return len(chosen)

    def stop(self) -> None:
        """End the server; its objects are lost."""
        self._process.communicate()  # closes its input


_servers: list[Server] = []


def start() -> Server:
    """Start a server on a free port and let this process, and those that it starts, use it as S3.

    One that is running stays. After one that was stopped the next has the same port, because this process looks for
    S3 there. The credentials are made up, and nothing outside this process's environment is changed.

    Raises:
        ModuleNotFoundError: moto, or what its server needs, is not installed.
    """
    if _servers and _servers[-1].is_running:
        return _servers[-1]
    if any(find_spec(name) is None for name in ("moto", "flask", "flask_cors")):
        raise ModuleNotFoundError(
            "The S3 server of this example is moto's, which is not installed. Install it with: "
            "pip install 'moto[server]'"
        )
    with socket.create_server((HOST, _servers[-1].port if _servers else 0)) as probe:
        port = probe.getsockname()[1]
    server = Server(port)
    _servers.append(server)
    os.environ.update(MADE_UP, AWS_ENDPOINT_URL_S3=server.url)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):  # of a real account
        os.environ.pop(name, None)
    return server


def serve(port: int) -> None:
    """Answer on ``port`` until the standard input ends."""
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(HOST, port, verbose=False).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
