"""``shardkit engine``: the engine of this machine, for programs that speak the service's protocol."""

from __future__ import annotations

from typing import Any

import click

from shardkit.cli.commands import Group, echo


@click.group(cls=Group, epilog="shardkit engine serve --port 8765\nshardkit engine serve --help")
def engine() -> None:
    """The engine that runs Processing jobs on this machine."""


@engine.command(
    epilog="""
shardkit engine serve --port 8765
shardkit engine serve --max-instances 20 --create-rate 1 --throttle 0.2 --capacity-errors 0.03 --seed 7
"""
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="The port on 127.0.0.1; by default any free one."
)
@click.option("--root", metavar="DIR", help="Where the jobs' files are; by default in your state folder.")
@click.option("--max-instances", type=click.IntRange(1), metavar="N", help="How many instances may run at once.")
@click.option("--isolation", type=click.Choice(["auto", "namespace", "none"]), default="auto", help="Of /opt/ml.")
@click.option("--endpoint-url", metavar="URL", help="Where the jobs find S3.")
@click.option(
    "--any-credentials", is_flag=True, help="Let in anybody who reaches the port: they can run programs as you."
)
@click.option("--create-rate", type=float, metavar="N", help="Throttle more than N calls a second that create jobs.")
@click.option("--throttle", type=float, default=0.0, metavar="SHARE", help="Throttle this share of all calls.")
@click.option(
    "--lose-responses",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="Carry out this share of calls without an answer.",
)
@click.option("--capacity-errors", type=float, default=0.0, metavar="SHARE", help="Jobs that fail with CapacityError.")
@click.option(
    "--spot-interruptions",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="Training jobs that lose spot instances once.",
)
@click.option("--seed", type=int, metavar="N", help="The same seed chooses the same calls.")
def serve(
    *,
    port: int,
    root: str | None,
    max_instances: int | None,
    isolation: str,
    endpoint_url: str | None,
    any_credentials: bool,
    **faults: Any,
) -> None:
    """Speak the service's protocol on 127.0.0.1, for boto3, the AWS CLI and the SDKs; no Docker, no account.

    Anybody who gets in can run programs as you, so requests must be signed: with the key pair that is printed at the
    start, which is also in serve.env under DIR for you alone, or with your AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    """
    from shardkit.engines.faults import FaultyEngine
    from shardkit.engines.local import LocalEngine
    from shardkit.engines.wire import serve as serve_engine

    local_engine = LocalEngine(root, max_instances=max_instances, isolation=isolation, endpoint_url=endpoint_url)
    serve_engine(FaultyEngine(local_engine, **faults), port=port, say=echo, anybody=any_credentials)
