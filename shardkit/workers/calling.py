"""In which way a worker calls the function: record by record, with batches, or many times at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.functions import is_async
from shardkit.workers.calls import Calls
from shardkit.workers.tasks import ASYNC_CALLS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from concurrent.futures import ThreadPoolExecutor

    from shardkit.workers.board import Slot
    from shardkit.workers.chunk_run import ChunkRun
    from shardkit.workers.guard import Guard
    from shardkit.workers.output import Output
    from shardkit.workers.pace import Pace
    from shardkit.workers.tasks import ChunkTask, WorkerSettings


def calls_of(
    settings: WorkerSettings, slot: Slot, output: Output, guard: Guard, *, open_run: Callable[[ChunkTask], ChunkRun]
) -> Calls:
    """Load the function, and find out how it is called.

    Raises:
        PipelineError: it cannot be loaded, or be called as the pipeline says.
    """
    calling = settings.calling
    function = settings.function.load(make=made)
    pace = _pace(settings)
    if is_async(function):
        from shardkit.workers.async_calls import AsyncCalls

        return AsyncCalls(
            function,
            slot,
            output,
            guard,
            pace=pace,
            loop=event_loop(),
            most=calling.concurrency or ASYNC_CALLS,
            size=calling.batch,
            timeout_s=calling.timeout_s,
            open_run=open_run,
        )
    check_not_concurrent(settings.function.name, calling.concurrency)
    if calling.batch is not None:
        from shardkit.workers.batch_calls import BatchCalls

        return BatchCalls(function, slot, output, guard, pace=pace, size=calling.batch)
    return Calls(function, slot, output, guard, pace=pace)


def check_not_concurrent(name: str, concurrency: int | None) -> None:
    """Check that nobody wants several calls at once of a function that does not wait.

    Raises:
        PipelineError: somebody does.
    """
    if concurrency is not None:
        raise PipelineError(
            f"concurrency: {concurrency} is for a function that waits, and {name} is no async def.",
            hint="Write async def, and await what it waits for; or leave out concurrency and set workers.",
        )


def made(kind: type) -> Any:
    """An object of a class; if its calls are awaited, made where an event loop runs, which clients may need."""
    if not is_async(kind):
        return kind()

    async def make() -> Any:
        return kind()

    return awaited(make())


_loops: list[asyncio.AbstractEventLoop] = []
_threads: list[ThreadPoolExecutor] = []


def event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process in which the user's coroutines run, made when it is first asked for."""
    import asyncio

    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0]


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine of the user's gives, or raises; in a notebook, whose thread has a loop already, in another."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    loop = event_loop()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return loop.run_until_complete(coroutine)
    if not _threads:
        _threads.append(ThreadPoolExecutor(1, thread_name_prefix="shardkit-loop"))
    return _threads[0].submit(loop.run_until_complete, coroutine).result()


def _pace(settings: WorkerSettings) -> Pace | None:
    calling = settings.calling
    if calling.rate_per_s is None or settings.scratch is None:
        return None
    from shardkit.workers.pace import Pace

    own = f"-{os.getpid()}" if calling.own_rate else ""
    return Pace(f"{settings.scratch}/pace{own}", calling.rate_per_s)
