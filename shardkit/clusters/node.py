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
from shardkit.clusters.lanes import ROOM, Lanes
from shardkit.errors import RunFailed, RunInterrupted, ShardkitError
from shardkit.functions import python_version
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.meters import Counts
from shardkit.runfolder.names import node_file
from shardkit.runfolder.stop import Stop
from shardkit.storage.open import folder as folder_at
from shardkit.workers.memory import allocated_bytes
from shardkit.workers.neighbours import neighbours_at
from shardkit.workers.pool import WorkerPool
from shardkit.workers.publish import Publisher, publish_chunk
from shardkit.workers.replies import plain_error
from shardkit.workers.supervisor import Supervisor
from shardkit.workers.tally import Tally
from shardkit.workers.tasks import OPTIONAL, columns_of_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    import pyarrow as pa

    from shardkit.runfolder.document_types import Marker
    from shardkit.workers.tasks import Chunk, ChunkTask, WorkerSettings

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
        probe: The key of an object of the input that the driver can read; None if it can read none.
        shardkit: The driver's version.
        python: The driver's minor version of Python.
    """

    settings: WorkerSettings
    code: str | None
    call: str
    timeout_s: float | None
    function_sha256: str | None
    probe: str | None
    shardkit: str
    python: str

    def __call__(self, sent: Sent) -> dict[str, Any]:
        """See a chunk through; returns its ``markers``, or the ``error`` for which no chunk of the run can be done."""
        try:
            with _node_at(self) as node:
                return {"markers": node.see_through(sent)}
        except ShardkitError as error:
            return {"error": plain_error(error), "node": here()}

    def prove(self) -> dict[str, Any]:
        """Prove that this node reads the input and writes the output; returns who it is, and the ``error`` if not."""
        answer = {
            "node": here(),
            "shardkit": __version__,
            "python": python_version(),
            "noted": node_file(self.call, here()),
        }
        try:
            _prove(self)
        except ShardkitError as error:
            answer |= {"error": error.message, "hint": error.hint}
        except Exception as error:  # noqa: BLE001  it may be of another version, too
            answer["error"] = f"{type(error).__name__}: {error}"
        return answer


def here() -> str:
    """The name of this process among all nodes."""
    return f"{socket.gethostname()}-{os.getpid()}"


_proven: set[str] = set()  # calls that this process is fit for: each proof takes some requests to the storage


def _prove(work: NodeWork) -> None:
    """See that this node can work on a run.

    Raises:
        RunFailed: it cannot.
    """
    if work.call in _proven:
        return
    settings = work.settings
    if work.shardkit != __version__:
        raise RunFailed(
            f"{here()} has shardkit {__version__}, and the driver has {work.shardkit}.",
            hint="Install one version everywhere.",
        )
    if work.function_sha256 is not None and work.python != python_version():
        raise RunFailed(
            f"The function travels by value from Python {work.python}, and {here()} has Python {python_version()}.",
            hint="Put the function in a module and set source_dir, or use one version of Python.",
        )
    output = folder_at(settings.output)
    run = RunFolder(output, settings.run_id)
    try:
        run.files.read(node_file(work.call, "driver"))
    except FileNotFoundError:
        raise RunFailed(
            f"{socket.gethostname()} does not see the run folder {run.uri}.",
            hint="Use an output that all nodes share: a bucket, or a folder that each of them has mounted.",
        ) from None
    if work.probe is not None:
        try:
            read_a_byte(settings, work.probe)
        except (FileNotFoundError, PermissionError):
            raise RunFailed(
                f"{socket.gethostname()} cannot read {work.probe} of the input {settings.places.text}.",
                hint="Use an input that all nodes share: a bucket, or a folder that each of them has mounted.",
            ) from None
    run.encrypted(run.plan()).files.write(node_file(work.call, here()), b"{}")
    _proven.add(work.call)


def read_a_byte(settings: WorkerSettings, key: str) -> None:
    """See that an object of the input can be read."""
    with settings.places.file(key).open() as file:
        file.read(1)


class _Node:
    """The state of a run's work in this process."""

    def __init__(self, work: NodeWork) -> None:
        _prove(work)
        folder = RunFolder(folder_at(work.settings.output), work.settings.run_id)
        self.work = work
        self._folder = folder.encrypted(folder.plan())
        self._busy = 0
        self._lanes: Lanes | None = None
        self._reading = threading.Lock()
        self._used = time.monotonic()
        self._stop = Stop()
        self._pool = WorkerPool(_settings_on_node(work, self._folder), os.cpu_count() or 1, begun=0)
        tally = Tally(self._pool.slots(), self._stop, before=Counts(0, 0, 0), max_quarantined=sys.maxsize)
        spool = self._pool.spool
        self._uploads: dict[tuple[int, int], list[Future[None]]] = {}
        self._publisher: Publisher | None = None
        publish = None
        if spool is not None:
            self._publisher = Publisher(functools.partial(publish_chunk, self._folder, spool), self._stop)
            publish = functools.partial(self._upload, self._publisher)
        self._neighbours = neighbours_at(work.call)
        self._supervisor = Supervisor(
            self._pool, self._stop, tally, timeout_s=work.timeout_s, publish=publish, neighbours=self._neighbours
        )
        threading.Thread(target=self._watch, name="shardkit-node", daemon=True).start()

    @functools.cached_property
    def _records(self) -> pa.Table:
        columns = columns_of_records(self._pool.inside, are_fetched=self._pool.fetches)
        return self._folder.records(columns, if_there=OPTIONAL)

    def see_through(self, sent: Sent) -> list[Marker]:
        """See a chunk through; its parts have names that no other execution of it has, late or elsewhere."""
        with self._reading:
            task = sent.chunk.task(self._records, sent.attempt)
        task = dataclasses.replace(task, execution=secrets.token_hex(4))
        room = ROOM.get()
        # Where all is on this node, there is nothing to wait for while another chunk could be worked on.
        if room is None or not (self._pool.claims_next or self._publisher):
            markers = self._supervisor.see_through(task)
        else:
            with self._reading:
                self._lanes = self._lanes or Lanes(self._supervisor.see_through, room.calls)
            markers = self._lanes.see_through(task, room)
        self._uploaded(task)
        return markers

    def _upload(self, publisher: Publisher, marker: Marker) -> None:
        self._uploads.setdefault((marker["shard"], marker["chunk"]), []).append(publisher.add(marker))

    def _uploaded(self, task: ChunkTask) -> None:
        """Wait until a chunk is committed.

        Raises:
            StorageError: something could not be uploaded.
        """
        for upload in self._uploads.pop((task.shard, task.chunk), []):
            upload.result()
        if self._publisher is not None:
            self._publisher.check()

    def begin(self) -> None:
        """A call begins; the caller keeps the node from being closed meanwhile."""
        self._busy += 1

    def end(self) -> None:
        """A call has ended."""
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
        if self._lanes is not None:
            self._lanes.close()
        if self._publisher is not None:
            self._publisher.close()
        self._pool.close()
        if self._neighbours is not None:
            self._neighbours.close()


_nodes: dict[str, _Node] = {}
_opening = threading.Lock()


@contextlib.contextmanager
def _node_at(work: NodeWork) -> Iterator[_Node]:
    """The state of the run's work in this process, which stays while the block lasts; that of runs before ends."""
    with _opening:
        node = _nodes.get(work.call)
        if node is None:
            for other in [each for each in _nodes.values() if each.is_idle()]:
                _nodes.pop(other.work.call).close()
            node = _nodes[work.call] = _Node(work)
        node.begin()
    try:
        yield node
    finally:
        with _opening:
            node.end()


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
    """The workers' settings with the function as it is found here, and the memory that this node has."""
    function = work.settings.function
    if work.function_sha256 is not None:
        pickled = folder.sent(node_file(work.call, "function").removesuffix(".json"), work.function_sha256)
        function = dataclasses.replace(function, pickled=pickled)
    elif work.code is not None:
        function = dataclasses.replace(function, source_dir=unpacked(folder.output, work.code))
    memory_bytes = work.settings.memory_bytes or allocated_bytes()
    return dataclasses.replace(work.settings, function=function, memory_bytes=memory_bytes)
