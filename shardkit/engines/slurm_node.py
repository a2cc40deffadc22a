"""What a job's Slurm script runs on its node: the local engine's supervisor, where nobody shares this machine's locks.

    python -c "from shardkit.engines.slurm_node import main; main()" ROOT BATCH

It claims the job first, so that whatever Slurm starts twice runs once. While it runs, it looks every few seconds
whether the job was given up, as when Slurm takes its node for dead, or asked to stop, and then ends with all that it
has started. How a job ended that Slurm itself ends (its time is over, others take its node, somebody cancels it), the
engine learns from Slurm. What a job keeps on its node goes to a folder there, not to the shared filesystem.

It imports only the standard library, unless it has to reach S3.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

from shardkit.engines import isolation
from shardkit.engines.jobfiles import ENDED
from shardkit.engines.slurm_files import Batch, SlurmFiles
from shardkit.engines.supervisor import HANDED_ON, Supervisor, Terminated

LOOK_EVERY_S = 5.0
YEAR_S = 366 * 86400.0


class NodeSupervisor(Supervisor):
    """Runs one job on a node."""

    # Which GPUs and which CPUs are the job's, too; and what a program may want to know of its Slurm job.
    handed_on = re.compile(
        rf"{HANDED_ON.pattern}|SLURM_\w+|(CUDA|ROCR|HIP|NVIDIA|GPU|ZE)_\w+|OMP_NUM_THREADS|MODULEPATH|LOADEDMODULES"
    )
    longest_s = YEAR_S  # Slurm's own limit counts
    look_every_s = LOOK_EVERY_S

    def __init__(self, files: SlurmFiles) -> None:
        super().__init__(files)
        self._slurm_files = files
        self._ended_by_slurm = False
        if self._job["isolation"] == "auto":
            self._job["isolation"] = isolation.probe()

    def _program(self, host: str, volume: str) -> isolation.Program:
        program = super()._program(host, volume)
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or 0)
        if not cpus:
            return program
        told = {"LOKY_MAX_CPU_COUNT": str(max(1, cpus // len(self._hosts)))}  # joblib's count of CPUs
        return program._replace(environment=told | dict(program.environment))

    def _check_stop(self, *, unasked: bool = False) -> None:
        super()._check_stop(unasked=unasked)
        if self._slurm_files.end() is not None:
            raise Terminated

    def _look(self) -> None:
        if self._slurm_files.end() is not None:
            raise Terminated
        if self._stop_reason is None and os.path.exists(self._files.stop_asked):
            self._begin_to_stop("")

    def _terminated_end(self) -> dict[str, Any]:
        self._ended_by_slurm = True
        return super()._terminated_end()

    def _say(self, **changes: Any) -> None:
        if self._ended_by_slurm and changes.get("ProcessingJobStatus") in ENDED:
            changes = {"terminated": time.time()}  # Slurm knows why
        super()._say(**changes)


def main() -> None:
    """Run the job of this array task; the exit code says whether it has completed."""
    root, name = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the supervisor can handle it
    batch = Batch(root, name)
    task = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    files = SlurmFiles(root, batch.job(int(task or 0)))
    slurm_id = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ["SLURM_JOB_ID"]
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" or not files.claim(slurm_id):
        sys.exit(f"{files.name}: Slurm job {slurm_id} has nothing to do, as the job was begun already.")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    _redirect(os.path.join(files.logs, "supervisor.log"))
    with _scratch(slurm_id) as folder:
        files.scratch = folder
        NodeSupervisor(files).run()
    end = files.end()
    sys.exit(0 if end is not None and end["ProcessingJobStatus"] == "Completed" else 1)


def _redirect(log: str) -> None:
    """Write to the job's own log what the supervisor says."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


@contextlib.contextmanager
def _scratch(slurm_id: str) -> Any:
    """A folder on this node, which goes with the job; what jobs have left that were killed goes, too."""
    home = os.path.join(os.environ.get("TMPDIR") or tempfile.gettempdir(), f"shardkit-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(home, 0o700)
    about = os.lstat(home)
    if about.st_uid != os.getuid() or not os.path.isdir(home):  # somebody else's: anybody may write where it lies
        home = tempfile.mkdtemp(prefix="shardkit-")
    with _locked(os.path.join(home, "lock")):
        for entry in os.scandir(home):
            if entry.is_dir(follow_symlinks=False) and not _is_locked(os.path.join(entry.path, "alive")):
                shutil.rmtree(entry.path, ignore_errors=True)
        folder = tempfile.mkdtemp(prefix=f"{slurm_id}-", dir=home)
        alive = os.open(os.path.join(folder, "alive"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(alive)


@contextlib.contextmanager
def _locked(path: str) -> Any:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
