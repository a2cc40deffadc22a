"""Claims: which job of a run is at a chunk of another job's shard; and which of two jobs that do one chunk has done it.

A job that has done its own shard looks at the heartbeats of the others, and does chunks of those that will still take
a while: each time the last one that is open, because their own jobs begin with the first ones. Two rules hold.

- Claims only save work. Before a job begins a chunk of another's shard, it writes ``claims/<shard>/<chunk>.json``, if
  nobody has. A job needs no claim for chunks of its own. It looks at the claims on them now and then, does claimed
  chunks last, and does them too if nobody else has done them by then, so that it never waits for another job. In the
  same way others claim the chunks that it is at once nothing else is left: this is how a slow job loses its last ones.
- The marker decides. All who do a chunk write its marker under one name, the one that the shard's own job would give
  it, if there is none yet. The first has done the chunk; the others remove their parts. Each looks now and then whether
  another was first, and then gives up the chunk that it is at. So a chunk counts once, whoever dies or sleeps.

A claim is void once its job has ended or has begun another attempt, or once its heartbeat has not changed for `CLAIM_S`
by the clock of the process that looks at it: no two clocks are compared. A void claim may be taken over.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from shardkit.errors import Damaged, StorageError
from shardkit.runfolder import documents
from shardkit.runfolder.document_types import Claim

if TYPE_CHECKING:
    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder

FOLDER = "claims"
CLAIM_S = 30.0  # of a job that gives no sign of life; it writes its heartbeat every few seconds


def claimed(folder: RunFolder, shard: int) -> frozenset[int]:
    """The chunks of a shard that other jobs have claimed."""
    names = [entry.key.rpartition("/")[2] for entry in folder.files.entries(f"{FOLDER}/{shard:05d}")]
    return frozenset(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))


def claim(folder: RunFolder, shard: int, chunk: int, by: str) -> bool:
    """Claim a chunk, for the attempt ``by``; whether nobody else has."""
    return folder.files.write_if(_name(shard, chunk), documents.dump(Claim(by=by)), {}) is not None


def holder(folder: RunFolder, shard: int, chunk: int) -> str:
    """The attempt that has claimed a chunk; empty if none has, or it cannot be read."""
    with contextlib.suppress(FileNotFoundError, Damaged):
        name = _name(shard, chunk)
        return folder.parse(name, folder.files.read(name), Claim, "")["by"]
    return ""


def take_over(folder: RunFolder, shard: int, chunk: int, by: str, *, instead_of: str) -> bool:
    """Claim a chunk instead of another attempt; whether that still held it, and nobody was faster."""
    name = _name(shard, chunk)
    data, state = folder.files.read_state(name)
    if data is None or holder(folder, shard, chunk) != instead_of:
        return False
    return folder.files.write_if(name, documents.dump(Claim(by=by)), state) is not None


def _name(shard: int, chunk: int) -> str:
    return f"{FOLDER}/{shard:05d}/{chunk:06d}.json"


def commit(folder: RunFolder, marker: Marker) -> bool:
    """Write the marker of a chunk; whether it counts.

    Where other jobs may do the chunk too, one of them may have committed all of its records under the same name: then
    the parts are removed instead. If it has committed some of them, the marker gets a name of its own, and the ledger
    takes the one with more records.

    Raises:
        StorageError: it cannot be written.
    """
    if "by" not in marker:
        folder.write_marker(marker)
        return True
    name, data = folder.marker_name(marker), documents.dump(marker)
    if folder.files.write_if(name, data, {}) is not None:
        return True
    there: list[Marker] = folder.read_markers([name])
    if not there or there[0].get("by") == marker.get("by"):  # damaged; or of a worker that has died since
        folder.files.write(name, data)
        return True
    if _covers(there[0], marker):
        for part in marker["parts"]:
            with contextlib.suppress(StorageError):  # nothing counts on it
                folder.files.remove(f"{folder.parts_of(marker['shard'])}/{part['name']}")
        return False
    folder.write_marker({**marker, "execution": marker["by"]})
    return True


def _covers(there: Marker, marker: Marker) -> bool:
    """Whether a marker has all records of another of the same chunk."""
    if there["ids"] is None:
        return True
    return marker["ids"] is not None and set(marker["ids"]) <= set(there["ids"])
