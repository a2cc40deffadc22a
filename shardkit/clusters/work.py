"""The nodes of a cluster, as `micro.run_chunks` hands them chunks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from joblib import cpu_count

from shardkit._version import __version__
from shardkit.clusters.backend import NAME, Calls, Lost
from shardkit.clusters.merging import merge_days_on
from shardkit.clusters.node import PATIENCE_S, NodeWork, Sent
from shardkit.errors import RunFailed
from shardkit.functions import is_library, python_version
from shardkit.runfolder.names import node_file
from shardkit.storage.base import is_remote
from shardkit.workers.replies import error_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardkit.clusters.base import Answered, Cluster
    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
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
        self.fetches = is_remote(settings.input_root)
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
        self, folder: RunFolder, tally: Tally, stop: Stop, *, attempt: Attempt, timeout_s: float | None
    ) -> Iterator[ClusterWork]:
        """See that each node can do its work, and get ready for the chunks of an attempt.

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
        )
        folder.files.write(node_file(call, "driver"), b"{}")
        self._check_nodes(folder, work)
        calls = Calls(self._cluster)
        ended = threading.Event()
        watcher = threading.Thread(target=_pass_on, args=(stop, folder, call, calls, ended), daemon=True)
        watcher.start()
        try:
            yield ClusterWork(calls, work, tally, stop, attempt)
        finally:
            ended.set()
            watcher.join()

    def _check_nodes(self, folder: RunFolder, work: NodeWork) -> None:
        """See that every node reads the input and writes the output.

        Raises:
            RunFailed: one does not; the message names it.
        """
        for each in self._cluster.on_each_node(work.prove):
            if each.error is not None:
                raise self._unfit(each)
            answer = each.answer
            where = f"{each.node}: {answer['error']}" if "error" in answer else ""
            if not where and not folder.files.exists(answer["noted"]):
                where = f"{each.node}: what {answer['node']} writes to {folder.uri} does not arrive there."
            if where:
                raise RunFailed(
                    f"A node of the cluster cannot work on the run. {where}",
                    hint="All nodes need the same storage: a bucket, or a folder that each of them has mounted.",
                )
            if answer["shardkit"] != __version__:
                raise RunFailed(
                    f"{each.node} has shardkit {answer['shardkit']}, and this process has {__version__}.",
                    hint=self._cluster.cure,
                )
            if work.function_sha256 is not None and answer["python"] != python_version():
                raise RunFailed(
                    f"The function travels by value from Python {python_version()}, and {each.node} has Python "
                    f"{answer['python']}.",
                    hint="Put the function in a module and set source_dir, or use one version of Python.",
                )

    def _unfit(self, each: Answered) -> RunFailed:
        error = each.error
        if isinstance(error, ModuleNotFoundError) or "ModuleNotFoundError" in str(error):
            return RunFailed(f"{each.node} lacks a package: {_line_of(error)}.", hint=self._cluster.cure)
        return RunFailed(
            f"{each.node} does not answer: {type(error).__name__}: {_line_of(error)}.",
            hint="See that the cluster is well; then run or resume.",
        )


class ClusterWork:
    """Each call sees a chunk through on some node, which commits it and returns its markers."""

    def __init__(self, calls: Calls, work: NodeWork, tally: Tally, stop: Stop, attempt: Attempt) -> None:
        self.joblib: dict[str, Any] = {"backend": NAME, "calls": calls}
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
                    f"Chunk {chunk.number} of shard {chunk.shard} was lost {MOST_LOSSES + 1} times with the node that "
                    f"was at it: {type(each.error).__name__}: {_line_of(each.error)}.",
                    hint="See the cluster's own messages, then resume the run; a node may be short of memory.",
                )
        self._attempt.go_on_as_next(f"{len(lost)} chunks were lost with their nodes: {_line_of(lost[0].error)}")
        return chunks


def _pass_on(stop: Stop, folder: RunFolder, call: str, calls: Calls, ended: threading.Event) -> None:
    """Tell the nodes when the work is to stop, and wait for them no longer than they may take."""
    while not ended.wait(LOOK_S):
        if stop.asked:
            with contextlib.suppress(Exception):  # those that it does not reach are not waited for
                folder.files.write(node_file(call, "stop"), b"{}")
            break
    waited = 0.0
    while not ended.wait(LOOK_S):
        waited += LOOK_S * stop.is_urgent
        if waited > PATIENCE_S + GRACE_S:
            calls.give_up(None)
            return


def _line_of(error: BaseException | None) -> str:
    """The error's last line, where libraries put what matters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
