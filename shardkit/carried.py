"""Functions that travel by value: with the lines of their source, for tracebacks, and a warning if they are large."""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import os
import warnings
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    UsedBy: TypeAlias = Callable[[Any], Iterable[tuple[str, Any]]]

LARGE_BYTES = 50_000_000
MOST_VALUES = 10_000


@dataclass
class Carried:
    """A function, and the text of each source that is not a file, such as the cells of a notebook.

    ``names`` has the source of each function, by its name and first line, because pickling may lose that.
    """

    function: Any
    sources: dict[str, str]
    names: dict[tuple[str, int], str]

    @classmethod
    def of(cls, function: Any, used_by: UsedBy) -> Carried:
        """A function with its source and those of the functions that it uses, which ``used_by`` gives."""
        carried = cls(function, {}, {})
        for each in _functions(function, used_by):
            code = each.__code__
            name = code.co_filename
            if not os.path.isfile(name) and (lines := linecache.getlines(name)):
                carried.sources[name] = "".join(lines)
                carried.names[each.__qualname__, code.co_firstlineno] = name
        return carried

    def unpack(self, used_by: UsedBy) -> Any:
        """The function itself; its sources are put where tracebacks look for them."""
        for name, text in self.sources.items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        if self.sources:
            for each in _functions(self.function, used_by):
                name = self.names.get((each.__qualname__, each.__code__.co_firstlineno), "")
                if name and name != each.__code__.co_filename:
                    each.__code__ = _named(each.__code__, name)
        return self.function


def _named(code: CodeType, name: str) -> CodeType:
    """The same code, as if it came from a source of that name."""
    inner = tuple(_named(each, name) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_filename=name, co_consts=inner)


def _functions(function: Any, used_by: UsedBy) -> Iterator[Any]:
    """A function, and those that it uses, unless they are in modules."""
    queue = [function]
    seen: set[int] = set()
    while queue and len(seen) < MOST_VALUES:
        value = queue.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if inspect.isfunction(value):
            if not os.path.isfile(value.__code__.co_filename):
                yield value
                queue += [each for _, each in used_by(value)]
            queue += [value.__wrapped__] if hasattr(value, "__wrapped__") else []
        elif inspect.isclass(value):
            queue += [each for each in vars(value).values() if inspect.isfunction(each)]
        elif isinstance(value, functools.partial):
            queue.append(value.func)
        elif inspect.ismethod(value):
            queue += [value.__func__, type(value.__self__)]
        elif callable(value) and not inspect.isbuiltin(value):
            queue.append(type(value))


def warn_if_large(name: str, size_bytes: int, used: Iterable[tuple[str, Any]]) -> None:
    """Say which variable makes a function large, and what to do about it."""
    if size_bytes < LARGE_BYTES:
        return
    import cloudpickle

    sizes = {}
    for variable, value in used:
        with contextlib.suppress(Exception):  # it has been pickled before, but values of users' classes may differ
            sizes[variable] = getattr(value, "nbytes", None) or len(cloudpickle.dumps(value))
    largest = max(sizes, key=lambda variable: sizes[variable], default="a variable")
    warnings.warn(
        f"{name} takes {size_bytes / 1e6:,.0f} MB with it to every worker, most of it {largest!r} "
        f"({sizes.get(largest, size_bytes) / 1e6:,.0f} MB). Load that in the __init__ of a class instead, which each "
        "worker calls once, or read it from a file.",
        UserWarning,
        stacklevel=4,
    )
