"""The nodes of a cluster, as `micro.run_chunks` hands them chunks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from joblib import cpu_count

from shardkit._version import __version__
from shardkit.clusters.backend import NAME, Calls, Lost
from shardkit.clusters.fitness import check_nodes, line_of, readable_object
from shardkit.clusters.merging import merge_days_on
from shardkit.clusters.node import PATIENCE_S, NodeWork, Sent
from shardkit.errors import RunFailed
from shardkit.functions import is_library, python_version
from shardkit.runfolder.names import node_file
from shardkit.units import counted
from shardkit.workers.replies import error_from
from shardkit.workers.tasks import fetches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardkit.clusters.base import Cluster
    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.others import Others
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.board import Slot
    from shardkit.workers.tally import Tally
    from shardkit.workers.tasks import Chunk, WorkerSettings

MOST_LOSSES = 3  # of one chunk
LOOK_S = 0.1
GRACE_S = 5.0  # for the answers of nodes that have had to stop


class ClusterWorkers:
    """The nodes of a cluster; each has worker processes of its own.

    Args:
        cluster: Connected.
        settings: The workers'.
        code: The name of the folder with the user's code, under the output.
    """

    def __init__(self, cluster: Cluster, settings: WorkerSettings, *, code: str | None) -> None:
        self.size = cluster.size
        self.threads = int(cpu_count())
        self.fetches = fetches(settings)
        self.left: list[int] = []
        self.chunk_records = settings.calling.chunk_records
        self._cluster = cluster
        self._settings = settings
        self._code = code

    def begin(self, count: int) -> None:
        """Workers begin on their nodes, with the first chunk."""

    def slots(self) -> Sequence[Slot]:
        """None: what nodes are at is known when their chunks are done."""
        return ()

    def hang_up(self) -> None:
        """Workers end by themselves."""

    def merge_days(self, ledger: Ledger, merge: Merge, attempt: Attempt) -> bool:
        """Merge the days of a run on the nodes, side by side."""
        merge_days_on(self._cluster, ledger, merge, attempt, code=self._code)
        return True

    @contextlib.contextmanager
    def working(
        self,
        folder: RunFolder,
        tally: Tally,
        stop: Stop,
        *,
        attempt: Attempt,
        timeout_s: float | None,
        others: Others | None = None,
    ) -> Iterator[ClusterWork]:
        """See that each node can do its work, and get ready for the chunks of an attempt; there are no other jobs.

        Raises:
            RunFailed: a node cannot.
        """
        call = f"{attempt.number:04d}-{secrets.token_hex(4)}"
        function = self._settings.function
        pickled = function.pickled
        if pickled is not None:
            folder.write_pickled(node_file(call, "function").removesuffix(".json"), pickled)
        sha256 = hashlib.sha256(pickled).hexdigest() if pickled is not None else None
        here = self._cluster.shares_code or is_library(function.source_dir or "")
        work = NodeWork(
            dataclasses.replace(self._settings, function=dataclasses.replace(function, pickled=None)),
            None if here else self._code,
            call,
            timeout_s,
            sha256,
            readable_object(folder, self._settings),
            __version__,
            python_version(),
        )
        folder.files.write(node_file(call, "driver"), b"{}")
        check_nodes(self._cluster, folder, work, stop)
        calls = Calls(self._cluster)
        ended = threading.Event()
        watcher = threading.Thread(target=_pass_on, args=(stop, folder, call, calls, ended), daemon=True)
        watcher.start()
        try:
            yield ClusterWork(calls, work, tally, stop, attempt, most_out=self._cluster.most_out)
        finally:
            ended.set()
            watcher.join()
            if calls.gave_up:
                _tell_to_stop(folder, call)


class ClusterWork:
    """Each call sees a chunk through on some node, which commits it and returns its markers."""

    def __init__(
        self, calls: Calls, work: NodeWork, tally: Tally, stop: Stop, attempt: Attempt, *, most_out: int
    ) -> None:
        self.joblib: dict[str, Any] = {"backend": NAME, "calls": calls, "pre_dispatch": most_out}
        self.do = work
        self._tally = tally
        self._stop = stop
        self._attempt = attempt
        self._lost: list[Lost] = []
        self._losses: Counter[tuple[int, int]] = Counter()

    def task(self, chunk: Chunk) -> Sent:
        """The chunk by its records' numbers: a node reads the rest in the run folder."""
        return Sent(chunk, self._attempt.number)

    def done(self, outcome: Lost | dict[str, Any] | None) -> None:
        """Count a chunk's markers, or note that it was lost.

        Raises:
            ShardkitError: a node says that no chunk can be done.
        """
        if outcome is None:  # the run stops, and the answer has not been waited for
            return
        if isinstance(outcome, Lost):
            self._lost.append(outcome)
            return
        if "error" in outcome:
            error = error_from(outcome["error"])
            error.message = f"On node {outcome['node']}: {error.message}"
            self._stop.ask(error, patience_s=0.0)
            raise error
        markers: list[Marker] = outcome["markers"]
        for marker in markers:
            self._tally.add(marker)
        self._tally.check_budget()

    def lost(self) -> list[Chunk]:
        """The chunks that were lost with their nodes, which go out again under the next attempt number.

        Raises:
            RunFailed: one was lost too often.
        """
        lost, self._lost = self._lost, []
        if not lost or self._stop.asked:
            return []
        chunks = [each.argument.chunk for each in lost]
        self._losses.update((chunk.shard, chunk.number) for chunk in chunks)
        for each, chunk in zip(lost, chunks, strict=True):
            if self._losses[chunk.shard, chunk.number] > MOST_LOSSES:
                raise RunFailed(
                    f"Chunk {chunk.number} of shard {chunk.shard} was lost {MOST_LOSSES + 1} times on the cluster, "
                    f"lastly by {type(each.error).__name__}: {line_of(each.error)}.",
                    hint="See the cluster's own messages, then resume the run; a node may be short of memory.",
                )
        self._attempt.go_on_as_next(f"{counted(len(lost), 'chunk')} lost on the cluster: {line_of(lost[0].error)}")
        return chunks


def _pass_on(stop: Stop, folder: RunFolder, call: str, calls: Calls, ended: threading.Event) -> None:
    """Tell the nodes when the work is to stop, and wait for them no longer than they may take."""
    while not ended.wait(LOOK_S):
        if stop.asked:
            _tell_to_stop(folder, call)
            break
    asked, until = time.monotonic(), math.inf
    while not ended.wait(LOOK_S) and time.monotonic() < until:
        if stop.out_of_patience and math.isinf(until):
            is_hurried = time.monotonic() - asked < PATIENCE_S - 1  # Ctrl-C came twice
            until = time.monotonic() + (LOOK_S if is_hurried else GRACE_S)
    if not ended.is_set():
        calls.give_up(None)


def _tell_to_stop(folder: RunFolder, call: str) -> None:
    with contextlib.suppress(Exception):  # those that it does not reach are not waited for
        folder.files.write(node_file(call, "stop"), b"{}")
