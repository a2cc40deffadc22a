"""A Slurm cluster of two nodes on the loopback: the real daemons, without accounts, cgroups and systemd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.engines.slurm import SlurmEngine

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=shardkit
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
MpiDefault=none
ReturnToService=2
SlurmdTimeout=5
KillWait=2
MinJobAge=600
MaxArraySize=1001
MaxJobCount=200000
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,sched_interval=1,bf_interval=1
DefMemPerCPU=100
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port1} CPUs=16 CoresPerSocket=16 RealMemory=16000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port2} CPUs=16 CoresPerSocket=16 RealMemory=16000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=first Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


class Cluster:
    """The daemons of a cluster, each a process of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.env = os.environ | {"SLURM_CONF": str(self.configuration)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start it; returns when both nodes take jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = dict(zip(("port", "port1", "port2"), _free_ports(3), strict=True))
        self.configuration.write_text(CONFIGURATION.format(folder=self.folder, **ports))
        files = {"key-file": key, "socket": self.folder / "munge.sock", "pid-file": self.folder / "munge.pid"}
        files |= {"log-file": self.folder / "munge.log", "seed-file": self.folder / "seed"}
        self._start("munged", "-F", "--num-threads=1", *(f"--{name}={path}" for name, path in files.items()))
        _until((self.folder / "munge.sock").exists)
        self.start_controller("-c")
        for node in NODES:
            self.start_node(node)
        _until(lambda: set(self.run("sinfo", "--noheader", "--Node", "--format=%T").split()) == {"idle"})

    def start_controller(self, *words: str) -> None:
        """Start slurmctld."""
        self._start("slurmctld", "-D", *words)

    def start_node(self, node: str, *, hidden: str = "") -> None:
        """Start slurmd for a node, which does not see what is in the folder ``hidden``."""
        words = ["slurmd", "-D", "-N", node]
        if hidden:
            words = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {hidden} && exec {' '.join(words)}"]
        self._start(*words, name=node)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon: ``slurmctld``, or the slurmd of a node by the node's name."""
        process = self._daemons.pop(name)
        process.send_signal(number)
        process.wait(timeout=30)

    def stop(self) -> None:
        """End everything."""
        with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
            self.run("scancel", f"--user={os.getuid()}", "--state=PENDING")
            self.run("scancel", f"--user={os.getuid()}")
            _until(lambda: not self.run("squeue", "--noheader"), seconds=10)
        for name in reversed(list(self._daemons)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.end(name, signal.SIGTERM if name != "slurmctld" else signal.SIGKILL)

    def run(self, *words: str) -> str:
        """Run one of Slurm's commands; what it prints."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    def _start(self, program: str, *words: str, name: str = "") -> None:
        with (self.folder / f"{name or program}.log").open("ab") as log:
            self._daemons[name or program] = subprocess.Popen(
                [program, *words], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A running cluster."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.fail(f"no Slurm: {', '.join(missing) or 'takes root'}; see scripts/test-slurm")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # munged wants everybody to find its socket
        made = Cluster(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@contextlib.contextmanager
def slurm_engine(cluster: Cluster, folder: Path, **settings: Any) -> Iterator[SlurmEngine]:
    """An engine of a cluster, whose jobs end with it."""
    from shardkit.engines.slurm import SlurmEngine

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SLURM_CONF", str(cluster.configuration))
        engine = SlurmEngine(folder, **({"lag_s": 0.5} | settings))
        yield engine
        cluster.run("scancel", f"--user={os.getuid()}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def _until(condition: object, *, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.CalledProcessError):
            if condition():  # type: ignore[operator]
                return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")
