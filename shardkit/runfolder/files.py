"""The files of one run: where they are, and how its JSON documents are read and written."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from shardkit.errors import Damaged, PlanMismatch
from shardkit.hints import Hint
from shardkit.runfolder import documents
from shardkit.runfolder.names import LOCK, REMOVED, RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from shardkit.storage.base import Folder
    from shardkit.storage.locks import Held

D = TypeVar("D")


@dataclass(frozen=True)
class RunFiles:
    """One run's files, in the folder of its output; ``kept`` holds the contents of those that never change."""

    output: Folder
    run_id: str
    kept: dict[str, bytes | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def files(self) -> Folder:
        """The run's own folder."""
        return self.output.child(f"{RUNS}/{self.run_id}")

    @property
    def path(self) -> Path:
        """Where the run's own folder lies on this machine.

        Raises:
            PipelineError: it does not.
        """
        return self.files.path

    @property
    def uri(self) -> str:
        """The URI of the run's own folder."""
        return self.files.uri

    @property
    def arguments(self) -> str:
        """How the run is named on the command line."""
        return f"{shlex.quote(self.output.uri)} --run-id {self.run_id}"

    @staticmethod
    def parts_of(shard: int) -> str:
        """The folder of one shard's parts, in the run's own."""
        return f"parts/{shard:05d}"

    @staticmethod
    def markers_of(shard: int) -> str:
        """The folder of one shard's markers, in the run's own."""
        return f"markers/{shard:05d}"

    def exists(self) -> bool:
        """Whether the run was planned to the end: without a plan there is no run."""
        return self.files.exists("plan.json")

    def check_unused(self) -> None:
        """Check that nothing is left of an earlier run of this name: its markers would count as this one's.

        Raises:
            PlanMismatch: something is left: `clean` was killed, is at work, or keeps parts that other runs count on.
        """
        left = next((entry.key for home in ("markers", "parts") for entry in self.files.entries(home)), None)
        if left is not None:
            raise PlanMismatch(
                f"Of an earlier run {self.run_id}, which was removed, {self.files.uri}/{left} is left.",
                hint=self._remains_hint,
            )

    @property
    def _remains_hint(self) -> str:
        uri = self.output.uri
        choose = "Choose another run id, or remove the rest:"
        return Hint(f"{choose} sk.clean({uri!r})", f"{choose} shardkit clean {shlex.quote(uri)}")

    @contextlib.contextmanager
    def lock(self, busy: str = "", *, new: bool = False) -> Iterator[Held]:
        """Keep other processes from working on the run; let go however the process ends.

        ``busy`` is a message of its own for when another process holds the lock; ``new`` means that no other process
        can have seen the run before, which saves a look.

        Raises:
            RunBusy: another process holds it.
            PlanMismatch: the run is being removed.
        """
        with self.files.lock(LOCK, busy or f"Run {self.run_id} is being worked on by another process.") as held:
            if not new and self.files.exists(REMOVED):
                raise PlanMismatch(
                    f"Run {self.run_id} is being removed by `clean`, or half of it was.",
                    hint=self._remains_hint,
                )
            yield held

    def is_locked(self) -> bool:
        """Whether a process works on the run now."""
        return self.files.is_locked(LOCK)

    def write(self, name: str, content: Mapping[str, Any]) -> bytes:
        """Write one of the JSON files, atomically; returns what it holds."""
        data = documents.dump(content, readable=True)
        self.files.write(name, data)
        return data

    def read(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files.

        Raises:
            Damaged: it is not there, or not as it was written.
        """
        content: dict[str, Any] | None = self.read_if_there(name, dict)
        if content is None:
            raise self.missing(name, "Start a new run.")
        return content

    def read_if_there(self, name: str, kind: type[D]) -> D | None:
        """Read one of the JSON files, which is of that kind; None if it is not there.

        Raises:
            Damaged: it is not as it was written.
        """
        try:
            return self.parse(name, self.files.read(name), kind, "Start a new run.")
        except FileNotFoundError:
            return None

    def read_all(self, names: list[str], kind: type[D], damaged: list[str]) -> list[D]:
        """The documents with these names, except for damaged ones, whose names are added to ``damaged``."""
        names = [name for name in names if name.endswith(".json")]
        contents = []
        for name, data in zip(names, self.files.read_many(names), strict=True):
            try:
                contents.append(self.parse(name, data, kind, ""))
            except Damaged:
                damaged.append(name)
        return contents

    def parse(self, name: str, data: bytes, kind: type[D], hint: str) -> D:
        """Parse the bytes of one of the JSON files; ``hint`` says what to do if it is damaged."""
        try:
            return documents.parse(data, kind, f"Run {self.run_id}: {self.uri}/{name}")
        except Damaged as error:
            raise self.damaged(name, error.message, hint) from None

    def missing(self, name: str, hint: str) -> Damaged:
        """The error for a file that is not there."""
        return Damaged(f"Run {self.run_id}: {self.uri}/{name} is not there.", hint=hint)

    def damaged(self, name: str, why: str, hint: str) -> Damaged:
        """The error for a file that is not as it was written."""
        return Damaged(f"Run {self.run_id}: {self.uri}/{name} is damaged: {why.rstrip('.')}.", hint=hint)
