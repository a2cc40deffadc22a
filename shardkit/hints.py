"""What to do next with a run, in two languages: as Python has it, and as the command line has it."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.runfolder import RunFolder


class Hint(str):  # noqa: SLOT000  it has a second text
    """A text with advice in Python; ``command`` is the same text with the advice in commands."""

    command: str

    def __new__(cls, python: str, command: str) -> Hint:
        """A text in both languages."""
        made = super().__new__(cls, python)
        made.command = command
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """What a copy is made of, in another process too."""
        return str(self), self.command


def as_command(text: str) -> str:
    """A text as the command line prints it."""
    return text.command if isinstance(text, Hint) else text


def joined(*texts: str, by: str = " ") -> Hint:
    """Texts with something between them, in both languages."""
    return Hint(by.join(filter(None, texts)), by.join(filter(None, map(as_command, texts))))


class Steps:
    """Steps with one run in one of the languages: ``steps("resume", max_failures="100%")``."""

    def __init__(self, folder: RunFolder, *, in_python: bool) -> None:
        self._folder = folder
        self.in_python = in_python

    def __call__(self, what: str, **settings: Any) -> str:
        """The step as code, or as a command; settings that are true of themselves are its options."""
        if self.in_python:
            given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            return f"sk.open_run({self._folder.output.uri!r}, {self._folder.run_id!r}).{what}({given})"
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

    def logs(self) -> str:
        """Print what the run's jobs have said."""
        return f"print(*{self('logs')}, sep='\\n')" if self.in_python else self("logs")

    def retry(self) -> str:
        """Retry with the function mended: one that was sent by value must be given again."""
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
    """What ``text`` makes of a run's steps, in both languages."""
    return Hint(text(Steps(folder, in_python=True)), text(Steps(folder, in_python=False)))


_COMMAND: ContextVar[bool] = ContextVar("shardkit_command", default=False)


@contextmanager
def in_a_command() -> Iterator[None]:
    """Have the library leave the closing words to a command, which has its own."""
    token = _COMMAND.set(True)
    try:
        yield
    finally:
        _COMMAND.reset(token)


def is_command() -> bool:
    """Whether a command of the command line is at work."""
    return _COMMAND.get()
