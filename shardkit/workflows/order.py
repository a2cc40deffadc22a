"""The order of a workflow's steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardkit.workflows.parts import Step


def needs(steps: Iterable[Step], name: str) -> set[str]:
    """The steps that must have ended before a step: those that it comes after, and theirs."""
    after = {step.name: step.after for step in steps}
    found: set[str] = set()
    left = list(after.get(name, ()))
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += after.get(each, ())
    return found


def levels(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps by when they may begin: first those that need none, then those that need only these, and so on.

    Steps of a circle are left out.
    """
    left, done = list(steps), set[str]()
    found: list[list[Step]] = []
    while ready := [step for step in left if set(step.after) <= done]:
        found.append(ready)
        done |= {step.name for step in ready}
        left = [step for step in left if step.name not in done]
    return found


def circle(steps: Sequence[Step]) -> list[str]:
    """Steps that wait for each other, each after the next; none if there are none."""
    names = {step.name for step in steps}
    after = {step.name: [each for each in step.after if each in names and each != step.name] for step in steps}
    free = {step.name for level in levels([_known(step, names) for step in steps]) for step in level}
    stuck = [name for name in after if name not in free]
    if not stuck:
        return []
    way = [stuck[0]]
    while (following := next(each for each in after[way[-1]] if each not in free)) not in way:
        way.append(following)
    return way[way.index(following) :]


def _known(step: Step, names: set[str]) -> Step:
    """A step without the steps that there are not, which are an error of their own."""
    return step.model_copy(update={"after": tuple(each for each in step.after if each in names and each != step.name)})
