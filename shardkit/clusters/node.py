"""What runs on a node of a cluster: chunks of one run, over worker processes of the node's own.

The first call in a process opens the run folder and proves that the node can do its work. The workers stay for the
calls that follow, and end when none has come for a while.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit._version import __version__
from shardkit.clusters.code import unpacked
from shardkit.errors import RunFailed, RunInterrupted, ShardkitError
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.meters import Counts
from shardkit.runfolder.names import node_file
from shardkit.runfolder.stop import Stop
from shardkit.storage.base import File
from shardkit.storage.open import folder as folder_at
from shardkit.workers.pool import WorkerPool
from shardkit.workers.publish import publish_chunk
from shardkit.workers.replies import plain_error
from shardkit.workers.supervisor import Supervisor
from shardkit.workers.tally import Tally
from shardkit.workers.tasks import columns_of_records

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.runfolder.document_types import Marker
    from shardkit.workers.tasks import Chunk, WorkerSettings

LOOK_S = 1.0  # between two looks for a request to stop
IDLE_S = 60.0  # until workers end that nobody has asked for anything
PATIENCE_S = 10.0  # for records in flight when the run is to stop


@dataclass(frozen=True)
class Sent:
    """A chunk on its way to a node, and the attempt that it is part of."""

    chunk: Chunk
    attempt: int


@dataclass(frozen=True)
class NodeWork:
    """What a node needs to work on a run's chunks, but for what it reads in the run folder.

    Args:
        settings: Those of the workers. A function that travels by value is not in them: ``function_sha256`` names it.
        code: The name of the folder with the user's code, under the output; None if it is where it is here.
        call: The name of this pass over the run's chunks; files of the nodes are under it.
        timeout_s: How long a record may take.
        function_sha256: Of the function, if it travels by value.
    """

    settings: WorkerSettings
    code: str | None
    call: str
    timeout_s: float | None
    function_sha256: str | None

    def __call__(self, sent: Sent) -> dict[str, Any]:
        """See a chunk through; returns its ``markers``, or the ``error`` for which no chunk of the run can be done."""
        try:
            return {"markers": _node_of(self).see_through(sent)}
        except ShardkitError as error:
            return {"error": plain_error(error), "node": here()}

    def prove(self) -> dict[str, Any]:
        """Prove that this node reads the input and writes the output; returns who it is, and the ``error`` if not."""
        answer = {
            "node": here(),
            "shardkit": __version__,
            "python": "{}.{}".format(*sys.version_info),
            "noted": node_file(self.call, here()),
        }
        try:
            _prove(self)
        except (ShardkitError, OSError) as error:
            answer["error"] = str(error)
        return answer


def here() -> str:
    """The name of this process among all nodes."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _prove(work: NodeWork) -> None:
    settings = work.settings
    output = folder_at(settings.output)
    run = RunFolder(output, settings.run_id)
    try:
        run.files.read(node_file(work.call, "driver"))
    except FileNotFoundError:
        raise RunFailed(
            f"{socket.gethostname()} does not see the run folder {run.uri}.",
            hint="Use an output that all nodes share: a bucket, or a folder that each of them has mounted.",
        ) from None
    for key in run.some_objects(1):
        try:
            with File(folder_at(settings.input_root, settings.input_access), key).open() as file:
                file.read(1)
        except (FileNotFoundError, PermissionError) as error:
            raise RunFailed(
                f"{socket.gethostname()} cannot read {key} of the input {settings.input_root}: {error}.",
                hint="Use an input that all nodes share: a bucket, or a folder that each of them has mounted.",
            ) from error
    run.encrypted(run.plan()).files.write(node_file(work.call, here()), b"{}")


class _Node:
    """The state of a run's work in this process."""

    def __init__(self, work: NodeWork) -> None:
        _prove(work)
        folder = RunFolder(folder_at(work.settings.output), work.settings.run_id)
        self.work = work
        self._folder = folder.encrypted(folder.plan())
        self._busy = 0
        self._changed = threading.Condition()
        self._used = time.monotonic()
        self._stop = Stop()
        self._pool = WorkerPool(_settings_on_node(work, self._folder), os.cpu_count() or 1, begun=0)
        tally = Tally(self._pool.slots(), self._stop, before=Counts(0, 0, 0), max_quarantined=sys.maxsize)
        spool = self._pool.spool
        publish = functools.partial(publish_chunk, self._folder, spool) if spool is not None else None
        self._supervisor = Supervisor(self._pool, self._stop, tally, timeout_s=work.timeout_s, publish=publish)
        threading.Thread(target=self._watch, name="shardkit-node", daemon=True).start()

    @functools.cached_property
    def _records(self) -> pa.Table:
        return self._folder.records(columns_of_records(are_fetched=self._pool.fetches))

    def see_through(self, sent: Sent) -> list[Marker]:
        """See a chunk through; its parts have names that no other execution of it has, late or elsewhere."""
        with self._changed:
            self._busy += 1
            task = sent.chunk.task(self._records, sent.attempt)
        try:
            return self._supervisor.see_through(dataclasses.replace(task, execution=secrets.token_hex(4)))
        finally:
            with self._changed:
                self._busy -= 1
                self._used = time.monotonic()

    def _watch(self) -> None:
        """Look for a request to stop while there is work, and end when there has been none for a while."""
        while True:
            time.sleep(LOOK_S)
            if self._busy and not self._stop.asked:
                with contextlib.suppress(ShardkitError, OSError):
                    if self._folder.files.exists(node_file(self.work.call, "stop")):
                        self._stop.ask(RunInterrupted("The run is to stop."), patience_s=PATIENCE_S)
            if not self._busy and time.monotonic() - self._used > IDLE_S and _forget(self):
                return

    def is_idle(self) -> bool:
        """Whether nothing runs here."""
        return not self._busy

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


_nodes: dict[str, _Node] = {}
_opening = threading.Lock()


def _node_of(work: NodeWork) -> _Node:
    """The state of the run's work in this process; that of runs before ends."""
    with _opening:
        node = _nodes.get(work.call)
        if node is None:
            for other in [each for each in _nodes.values() if each.is_idle()]:
                _nodes.pop(other.work.call).close()
            node = _nodes[work.call] = _Node(work)
        return node


def _forget(node: _Node) -> bool:
    """End a node's workers, unless it has got work meanwhile; whether they have ended."""
    with _opening:
        if not node.is_idle():
            return False
        if _nodes.get(node.work.call) is node:
            del _nodes[node.work.call]
            node.close()
        return True


def _settings_on_node(work: NodeWork, folder: RunFolder) -> WorkerSettings:
    """The workers' settings with the function as it is found here."""
    function = work.settings.function
    if work.function_sha256 is not None:
        pickled = folder.sent(node_file(work.call, "function").removesuffix(".json"), work.function_sha256)
        function = dataclasses.replace(function, pickled=pickled)
    elif work.code is not None:
        function = dataclasses.replace(function, source_dir=unpacked(folder.output, work.code))
    return dataclasses.replace(work.settings, function=function)
