"""What is wrong with a workflow, as an error that names the file, the line, the field and the cure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from shardkit.spec.yaml import Lines

Place = tuple[str | int, ...]
MOST_NAMES = 10


@dataclass(frozen=True)
class Problem:
    """Something that will not do: the path of the field that it is about, and why, with the cure."""

    at: Place
    why: str


def near(name: str, names: Iterable[str]) -> str:
    """The rest of a sentence that says which name was meant, or which there are."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    if not known:
        return "there are none."
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"there are {', '.join(known[:MOST_NAMES])}{more}."


def raise_for(problems: Iterable[Problem], *, file: Path | None, lines: Lines) -> None:
    """Raise all problems as one error, in the order of their lines; none if there are none.

    Raises:
        PipelineError: there are some.
    """
    found: dict[str, int] = {}
    for problem in problems:
        line = next((lines[problem.at[:i]] for i in range(len(problem.at), 0, -1) if problem.at[:i] in lines), 0)
        where = f"{file}, line {line}: " if file and line else f"{file}: " if file else ""
        found.setdefault(f"{where}{'.'.join(map(str, problem.at))}: {problem.why}", line)
    if found:
        raise PipelineError("\n".join(sorted(found, key=lambda text: found[text])))
