"""A Spark cluster: each call is a Spark job of one task, as joblibspark has it."""

from __future__ import annotations

import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pyspark.sql import SparkSession

from shardkit.clusters.base import Answer, Answered, Cluster
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark import SparkContext


def _context_of(session: SparkSession) -> SparkContext:
    try:
        return session.sparkContext
    except (AttributeError, NotImplementedError) as error:
        raise PipelineError(
            "parallel: the Spark session is one of Spark Connect, which has no SparkContext to run chunks by.",
            hint="Use a classic session; on Databricks, compute whose access mode is dedicated, and not serverless.",
        ) from error


class Spark(Cluster):
    """The cluster of the active session; else that of ``address``, Spark's master, or of Spark's own default."""

    def __init__(self, n_jobs: int, address: str | None, backend: Any = None) -> None:
        session = SparkSession.getActiveSession()
        self._own = session is None
        if session is None:
            if address is None or address.startswith("local"):
                os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else it is whichever python3 comes first
            builder = SparkSession.builder.appName("shardkit")
            session = (builder.master(address) if address else builder).getOrCreate()
        self._context = _context_of(session)
        self._out: set[Answer] = set()
        self._group = f"shardkit-{uuid.uuid4().hex}"
        self._sized(n_jobs, self._context.defaultParallelism)
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="shardkit-spark")

    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made; Spark makes it again where an executor dies, and fails it when several have."""
        answer = self._threads.submit(self._one, call, argument)
        self._out.add(answer)
        answer.add_done_callback(self._out.discard)
        return answer

    def _one(self, call: Callable[[Any], Any], argument: Any) -> Any:
        self._context.setJobGroup(self._group, "shardkit", interruptOnCancel=False)
        (answer,) = self._context.parallelize([0], 1).map(lambda _: call(argument)).collect()
        return answer

    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make as many calls as fit at once: Spark does not say where they go."""
        try:
            answers = self._context.parallelize(range(self.size), self.size).map(lambda _: call()).collect()
        except Exception as error:  # noqa: BLE001  whoever asked says what it means
            return [Answered("an executor", error=error)]
        return [Answered(answer["node"], answer) for answer in answers]

    @property
    def cure(self) -> str:
        """How to have this package on the nodes."""
        return f"{super().cure} PYSPARK_PYTHON, or spark.pyspark.python, says which Python of theirs Spark uses."

    def close(self) -> None:
        """Cancel what still runs, and stop the session if it is this run's own."""
        if self._out:  # Spark warns of a group without jobs
            self._context.cancelJobGroup(self._group)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._own:
            self._context.stop()
