"""Advice in two languages: for Python and for the command line."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Hint(str):  # noqa: SLOT000  it has a second text
    """A text with advice in Python; ``command`` is the same text with the advice in commands."""

    command: str

    def __new__(cls, python: str, command: str) -> Hint:
        """A text in both languages."""
        made = super().__new__(cls, python)
        made.command = command
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """What pickle and copy make a copy of."""
        return str(self), self.command


def as_command(text: str) -> str:
    """A text as the command line prints it."""
    return text.command if isinstance(text, Hint) else text


def joined(*texts: str, by: str = " ") -> Hint:
    """Texts with something between them, in both languages."""
    return Hint(by.join(filter(None, texts)), by.join(filter(None, map(as_command, texts))))


_COMMAND: ContextVar[bool] = ContextVar("shardkit_command", default=False)


@contextmanager
def in_a_command() -> Iterator[None]:
    """While the block runs, the library leaves the closing words to the command, which has its own."""
    token = _COMMAND.set(True)
    try:
        yield
    finally:
        _COMMAND.reset(token)


def is_command() -> bool:
    """Whether a command of the command line is running."""
    return _COMMAND.get()
