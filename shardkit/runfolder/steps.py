"""The possible next steps with a run, as code and as commands."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from shardkit.hints import Hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.runfolder.folder import RunFolder


class Steps:
    """Steps with one run in one of the languages: ``steps("resume", max_failures="100%")``."""

    def __init__(self, folder: RunFolder, *, in_python: bool) -> None:
        self._folder = folder
        self.in_python = in_python

    def __call__(self, what: str, **settings: Any) -> str:
        """The step as code, or as a command; settings that are ``True`` become flags."""
        if self.in_python:
            arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            return f"sk.open_run({self._folder.output.uri!r}, {self._folder.run_id!r}).{what}({arguments})"
        options = [
            f"--{name.replace('_', '-')}" if value is True and name not in AS_FIELDS else f"--set {_field(name, value)}"
            for name, value in settings.items()
        ]
        return " ".join(["shardkit", what, self._folder.arguments, *options])

    def other_function(self, what: str, name: str) -> str:
        """Go on with a function of another name."""
        if not self.in_python:
            return f"{self(what)} --function {shlex.quote(name)} --changed-function"
        return f"{self(what)[:-1]}function={name.rpartition(':')[2]}, changed_function=True)"

    def other_engine(self) -> str:
        """Go on with other settings of the engine."""
        return f"{self('resume')[:-1]}engine=...)" if self.in_python else f"{self('resume')} --set engine.FIELD=VALUE"

    def logs(self) -> str:
        """Print what the run's jobs have said."""
        return f"print(*{self('logs')}, sep='\\n')" if self.in_python else self("logs")

    def retry(self) -> str:
        """Retry with the mended function: one that was sent by value must be passed again."""
        if not self._folder.files.exists("function.pkl"):
            return self("retry")
        if not self.in_python:
            return f"{self('retry')} --function MODULE:NAME"
        name = self._folder.plan()["pipeline"]["function"].rpartition(":")[2].rpartition(".")[2]
        return f"{self('retry')[:-1]}function={name if name.isidentifier() else 'f'})"


AS_FIELDS = ("allow_empty",)


def _field(name: str, value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return shlex.quote(f"{name}={text}")


def advice(folder: RunFolder, text: Callable[[Steps], str]) -> Hint:
    """The hint that ``text`` makes from a run's steps, in both languages."""
    return Hint(text(Steps(folder, in_python=True)), text(Steps(folder, in_python=False)))
