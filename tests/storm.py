"""A storm: processes are killed and paused at random while they work, until the dataset is made.

    scripts/storm                            ten minutes
    scripts/storm --minutes 60 --seed 7      an hour of that storm
    scripts/storm --only s3-days             one kind of pipeline

Each scenario is a pipeline that is run, disturbed and run again until it is done. Then its dataset must be that of an
undisturbed run: nothing lost, nothing doubled; no command may hang, end in a traceback or leave processes behind, and
no record but the poisoned one may be in quarantine after one more try.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from storm_world import KINDS, LEASE_S, Kind, Store, World, stores

HANG_S = 90.0
ATTEMPTS = 5  # disturbed attempts, before one is left alone
ROLES = ["driver", "shardkit-worker", "shardkit-forks", "job", "supervisor", "server"]


@dataclass
class Command:
    """A running command, and its output."""

    process: subprocess.Popen[bytes]
    words: list[str]
    log: Path

    def says(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Tally:
    """What the storm has done, and what it has found."""

    scenarios: int = 0
    events: int = 0
    faults: list[str] = field(default_factory=list)


class Scenario:
    """One pipeline in the storm."""

    def __init__(self, world: World, store: Store, rng: random.Random, tally: Tally) -> None:
        self.world, self.store, self.rng, self.tally = world, store, rng, tally
        self.history: list[str] = []
        self._commands = 0
        self._server: Command | None = None

    def blow(self) -> None:
        """Run and disturb until the run is done, then check the result."""
        for _ in range(ATTEMPTS):
            command = self.start(*self._run_words())
            self.disturb(command)
            if self.end(command) == 0:
                self._look("after a command that ended well")
                if self.rng.random() < 0.7:
                    break
        self._settle()

    def _settle(self) -> None:
        """Run without disturbance, which must finish the run."""
        for _ in range(3):
            command = self.start("run", "pipeline.yaml", "--run-id", "x", "--quiet")
            if self.end(command) == 0 or "was replaced by run" in command.says():
                break
        else:
            self.fault(f"an undisturbed run does not get done: {command.says()[-1500:]}")
            return
        self._look("at the end")
        blamed = self._blamed()
        if blamed - {self.world.key(7)}:
            self.end(self.start("retry", self.world.output, "--quiet"))
            blamed = self._blamed()
        if blamed != {self.world.key(7)}:
            self.fault(f"in quarantine are {sorted(blamed)}")
        self._look("after a retry")
        self._see_that_nobody_is_left()

    def _run_words(self) -> list[str]:
        if self.rng.random() < 0.3 and self._commands:
            return ["resume", self.world.output, "--run-id", "x", "--quiet"]
        return ["run", "pipeline.yaml", "--run-id", "x", "--quiet"]

    def start(self, *words: str) -> Command:
        """Start a command, and first a server of the queue if one is needed and does not run."""
        if self.world.kind.is_served and (self._server is None or self._server.process.poll() is not None):
            self._see_no_traceback(self._server)
            self._server = self._start("jobs", "serve", "--store", "jobs.sqlite", "--engine", "local")
        return self._start(*words)

    def _start(self, *words: str) -> Command:
        self._commands += 1
        log = self.world.root / f"log-{self._commands}"
        self.history.append(f"shardkit {' '.join(words)}")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "program.py", *words],
                cwd=self.world.root,
                env=self.world.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Command(process, list(words), log)

    def end(self, command: Command) -> int:
        """Wait for the end of a command; returns its exit code."""
        try:
            code = self._wait(command)
        except subprocess.TimeoutExpired:
            self.fault(
                f"`shardkit {' '.join(command.words)}` has not ended after {HANG_S:g} s: {command.says()[-1500:]}"
            )
            command.process.kill()
            return command.process.wait()
        self._see_no_traceback(command)
        self.history.append(f"  exit code {code}: {command.says().strip().splitlines()[-1:]}")
        return code

    def _wait(self, command: Command) -> int:
        """Wait for the end of a command, and keep the queue's server running meanwhile."""
        if not self.world.kind.is_served:
            return command.process.wait(HANG_S)
        deadline = time.monotonic() + HANG_S
        while command.process.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(command.words, HANG_S)
            if self._server is not None and self._server.process.poll() is not None:
                self._see_no_traceback(self._server)
                self._server = self._start("jobs", "serve", "--store", "jobs.sqlite", "--engine", "local")
            time.sleep(0.02)
        return command.process.returncode

    def _see_no_traceback(self, command: Command | None) -> None:
        # Python itself may be interrupted before it has come to shardkit.
        if command is not None and "Traceback (most" in command.says() and "/shardkit/" in command.says():
            self.fault(f"`shardkit {' '.join(command.words)}` ends in a traceback: {command.says()[-3000:]}")

    # -- what disturbs

    def disturb(self, command: Command) -> None:
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            self._await_a_moment(command)
            if command.process.poll() is not None:
                return
            kinds = [self._kill, self._kill, self._kill, self._kill_all, self._pause, self._pause_driver]
            if self.world.kind.s3:
                kinds += [self._outage, self._outage]
            self.rng.choice(kinds)(command)

    def _await_a_moment(self, command: Command) -> None:
        """Wait for a random time, or until the run is in a random phase and then a little longer."""
        phase = self.rng.choice(["any", "pass 1", "pass 2", "switch"])
        deadline = time.monotonic() + self.rng.uniform(0.1, 2.5)
        while time.monotonic() < deadline and command.process.poll() is None:
            if phase != "any" and self.world.phase() == phase:
                time.sleep(self.rng.choice([0.0, 0.002, 0.05]))
                return
            time.sleep(0.01)

    def _pick(self) -> tuple[int, str] | None:
        """One of the processes, each role as likely as the others."""
        processes = self.world.processes()
        roles = [role for role in ROLES if role in processes.values()]
        if not roles:
            return None
        role = self.rng.choice(roles)
        return self.rng.choice([pid for pid, its_role in processes.items() if its_role == role]), role

    def _send(self, pid: int, number: signal.Signals, role: str) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        self.tally.events += 1
        self.history.append(f"  {number.name} to {role} in {self.world.phase()}")
        return True

    def _kill(self, _: Command) -> None:
        if picked := self._pick():
            number = self.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            self._send(picked[0], number, picked[1])

    def _kill_all(self, _: Command) -> None:
        for pid, role in self.world.processes().items():
            self._send(pid, signal.SIGKILL, role)

    def _pause(self, _: Command) -> None:
        if (picked := self._pick()) and self._send(picked[0], signal.SIGSTOP, picked[1]):
            time.sleep(self.rng.uniform(0.1, 1.5 * LEASE_S))
            with contextlib.suppress(ProcessLookupError):
                os.kill(picked[0], signal.SIGCONT)

    def _pause_driver(self, command: Command) -> None:
        """Pause the driver, or all processes, for longer than its lease, while another command works."""
        pids = [command.process.pid] if self.rng.random() < 0.5 else list(self.world.processes())
        stopped = [pid for pid in pids if self._send(pid, signal.SIGSTOP, "driver or its own")]
        time.sleep(LEASE_S)
        words = self.rng.choice(
            [["resume", self.world.output, "--run-id", "x"], ["run", "pipeline.yaml"], ["clean", self.world.output]]
        )
        other = self.start(*words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            other.process.wait(self.rng.uniform(0.5, 12.0))
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.end(command) == 0 and self.end(other) == 0:
            self._look("after two that went by each other")
        self.end(other)

    def _outage(self, _: Command) -> None:
        """Make the store unreachable for a while."""
        self.tally.events += 1
        self.history.append("  the store is gone")
        self.store.end()
        time.sleep(self.rng.uniform(0.1, 2.0))
        self.store.begin()

    # -- what is looked at

    def _look(self, when: str) -> None:
        try:
            faults = self.world.faults()
        except Exception as error:  # a file that cannot be read is what is looked for
            faults = [f"the dataset cannot be read: {error!r}"]
        for fault in faults:
            self.fault(f"{when}: {fault}")

    def _blamed(self) -> set[str]:
        done = subprocess.run(
            [sys.executable, "program.py", "failures", self.world.output, "--json"],
            cwd=self.world.root, env=self.world.environment, capture_output=True, text=True, check=False, timeout=HANG_S,
        )  # fmt: skip
        import json

        return {json.loads(line)["key"] for line in done.stdout.splitlines() if line.startswith("{")}

    def _see_that_nobody_is_left(self) -> None:
        if self._server is not None:
            self._server.process.terminate()
            self.end(self._server)
        deadline = time.monotonic() + 15
        while (left := self.world.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            self.fault(f"processes are left: {left}")

    def fault(self, text: str) -> None:
        self.tally.faults.append(text)
        self.history.append(f"  FAULT: {text}")


def storm(*, minutes: float, events: int | None, seed: int, kinds: list[Kind], root: Path) -> Tally:
    """Run scenarios until the time is over, or until so many events; the files of those with faults stay."""
    rng, tally, end = random.Random(seed), Tally(), time.monotonic() + 60 * minutes
    with stores() as store:
        while time.monotonic() < end and (events is None or tally.events < events):
            kind, before = rng.choice(kinds), len(tally.faults)
            world = World(root / f"{tally.scenarios:04d}-{kind.name}", kind, store)
            scenario = Scenario(world, store, rng, tally)
            scenario.blow()
            tally.scenarios += 1
            if len(tally.faults) > before:
                print("\n".join([f"FAULTS in {world.root}:", *scenario.history]), flush=True)
                for pid in world.processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            else:
                world.clear()
            if sys.stderr.isatty():
                print(
                    f"\r{tally.scenarios} scenarios, {tally.events:,} events, {len(tally.faults)} faults ",
                    end="",
                    file=sys.stderr,
                )
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--events", type=int, help="end after so many, whatever the time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--only", choices=[kind.name for kind in KINDS], action="append")
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if not given.only or kind.name in given.only]
    print(f"A storm of {given.minutes:g} minutes; --seed {given.seed} is this one.", flush=True)
    root = Path(tempfile.mkdtemp(prefix="storm-"))
    tally = storm(minutes=given.minutes, events=given.events, seed=given.seed, kinds=kinds, root=root)
    print(f"{tally.scenarios} scenarios, {tally.events:,} events, {len(tally.faults)} faults.")
    if not tally.faults:
        with contextlib.suppress(OSError):
            root.rmdir()
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
