"""The files of jobs that Slurm runs, on a filesystem that all nodes share.

    <root>/jobs/<job>/request.json     as the local engine's, and the job's place in its submission
                      claim            the Slurm job that runs it, written once by the first one that starts
                      state.json       how far it is, as its supervisor says
                      end.json         how it ended, written once: by its supervisor, or by the process that gave it up
                      stop, logs/      as the local engine's
    <root>/batches/<batch>/names       the jobs of one submission, a line each, in the order of the array
                           id          the Slurm job, once it is known
                           slurm.log   what could not go to the log of a job

No lock spans the nodes, as not every shared filesystem has them. Who claims a job, and how it ended, is decided by
making a link, which works for exactly one on all of them: whatever Slurm says of a node whose processes live on, a job
that was given up stays so, and its late process finds out and ends.

The supervisor imports this: standard library only, and little of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

from shardkit.engines.jobfiles import ENDED, JobFiles, read, replace

if TYPE_CHECKING:
    from collections.abc import Iterator


class SlurmFiles(JobFiles):
    """One job's files; ``known`` is its request, if that does not change any more."""

    def __init__(self, root: str, name: str, known: dict[str, Any] | None = None) -> None:
        super().__init__(root, name)
        self._known = known
        self.claimed = os.path.join(self.folder, "claim")
        self._end = os.path.join(self.folder, "end.json")
        self.scratch = self.folder  # on its node, the supervisor names a folder there

    def volume(self, host: str) -> str:
        """The folder of one instance's own files."""
        return os.path.join(self.scratch, host)

    def request(self) -> dict[str, Any] | None:
        """The request of the job; None if there is no such job."""
        return self._known or super().request()

    def create(self, request: dict[str, Any], instances: int) -> None:
        """Write down a new job."""
        del instances
        os.makedirs(self.logs, mode=0o700, exist_ok=True)
        replace(self._request, json.dumps(request))

    def end(self) -> dict[str, Any] | None:
        """How the job ended; None if it has not."""
        return read(self._end)

    def state(self) -> dict[str, Any]:
        """How far the job is."""
        return self.end() or super().state()

    def write_state(self, state: dict[str, Any]) -> None:
        """Write how far the job is; how it ended is written only once, by the first who does."""
        if state["ProcessingJobStatus"] in ENDED:
            write_once(self._end, json.dumps(state))
        else:
            super().write_state(state)

    def claim(self, slurm_id: str) -> bool:
        """Let a Slurm job run this job, unless another one does; returns whether it may."""
        return write_once(self.claimed, slurm_id)

    def claimant(self) -> str:
        """The Slurm job that runs or ran this job; empty before one has begun."""
        with contextlib.suppress(FileNotFoundError), open(self.claimed, encoding="ascii") as file:
            return file.read()
        return ""


class Batch:
    """The files of one submission: of one call of sbatch, for one job or for an array of them."""

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name = root, name
        self.folder = os.path.join(root, "batches", name)
        self.log = os.path.join(self.folder, "slurm.log")
        self._names = os.path.join(self.folder, "names")
        self._id = os.path.join(self.folder, "id")

    def create(self, names: list[str]) -> None:
        """Write down which jobs it is for."""
        os.makedirs(self.folder, mode=0o700)
        replace(self._names, "".join(f"{name}\n" for name in names))

    def job(self, task: int) -> str:
        """The name of the job at a place of the array."""
        with open(self._names, encoding="ascii") as file:
            return file.read().split("\n")[task]

    def submitted(self, slurm_id: str) -> None:
        """Write down that Slurm has it."""
        replace(self._id, slurm_id)

    def exceeded_memory(self, number: str) -> bool:
        """Whether a job's node has noted that it killed it for its memory; without cgroups nothing else says so."""
        killed = re.compile(rf"StepId={re.escape(number)}\.\w+ exceeded memory limit")
        with contextlib.suppress(FileNotFoundError), open(self.log, encoding="utf-8", errors="replace") as file:
            return any(killed.search(line) for line in file)
        return False

    def log_lines(self) -> Iterator[str]:
        """What Slurm and the jobs' scripts have written."""
        with contextlib.suppress(FileNotFoundError), open(self.log, encoding="utf-8", errors="replace") as file:
            for line in file:
                yield line.rstrip("\n")

    def slurm_id(self) -> str:
        """The Slurm job, or the array; empty where the submission may not have got through."""
        with contextlib.suppress(FileNotFoundError), open(self._id, encoding="ascii") as file:
            return file.read()
        return ""


def write_once(path: str, text: str) -> bool:
    """Write a file unless there is one; returns whether this was the first. Nobody ever reads half of it."""
    temporary = f"{path}.{os.uname().nodename}.{os.getpid()}.{time.monotonic_ns()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        os.link(temporary, path)
    except FileExistsError:  # or the answer to the first call was lost, and this is the one to its repetition
        return os.stat(temporary).st_nlink == 2
    finally:
        os.remove(temporary)
    return True
