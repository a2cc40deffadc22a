"""Kinds of things that are chosen by name: those of this package in a table, others from installed packages.

A package offers its own kind by an entry point in the table's group. Entry points are looked up only for a name that
the table does not have, so that users of none do not wait for them.
"""

from __future__ import annotations

import importlib
import operator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """The kinds of one thing, by name.

    Args:
        group: The group of entry points in which other packages offer theirs.
        own: The kinds of this package, as ``module:name``; a module is loaded when its kind is used.
        error: Makes an error of a message and a ``hint``, for a package whose kind cannot be used.
        fits: Whether an object that another package offers can be used.
        wanted: What such an object has to be, in words.
    """

    def __init__(
        self,
        group: str,
        own: Mapping[str, str],
        *,
        error: Callable[..., Exception],
        fits: Callable[[Any], bool],
        wanted: str,
    ) -> None:
        self.group = group
        self._own = own
        self._error = error
        self._fits = fits
        self._wanted = wanted
        self._loaded: dict[str, T] = {}

    def __contains__(self, name: object) -> bool:
        """Whether there is a kind of that name, which may never have been loaded."""
        return isinstance(name, str) and (name in self._own or name in self._loaded or _offered(self.group, name) != [])

    @property
    def own(self) -> tuple[str, ...]:
        """The names of this package's kinds."""
        return tuple(self._own)

    def names(self) -> tuple[str, ...]:
        """All names, with those of other packages; for these, all installed packages are looked at."""
        return tuple(dict.fromkeys([*self._own, *(point.name for point in _offered(self.group))]))

    def loaded(self) -> list[T]:
        """The kinds of this package, and those of others that have been used."""
        return [*map(self._get, self._own), *(kind for name, kind in self._loaded.items() if name not in self._own)]

    def find(self, name: str) -> T | None:
        """The kind of that name; None if there is none.

        Raises:
            Exception: the one that ``error`` makes, if a package offers the kind and it cannot be used.
        """
        if name in self._loaded or name in self._own:
            return self._get(name)
        points = _offered(self.group, name)
        if not points:
            return None
        self._loaded[name] = self._load(points[0])
        return self._loaded[name]

    def near(self, name: object) -> str:
        """``; did you mean NAME?`` if there is a similar name; else empty."""
        import difflib  # which the queue, whose functions are small, does not need

        names = difflib.get_close_matches(str(name), self.names(), n=1)
        return f"; did you mean {names[0]}?" if names else ""

    def _get(self, name: str) -> T:
        if name not in self._loaded:
            module, _, attribute = self._own[name].partition(":")
            self._loaded[name] = operator.attrgetter(attribute)(importlib.import_module(module))
        return self._loaded[name]

    def _load(self, point: EntryPoint) -> T:
        source = f"the package {point.dist.name} {point.dist.version}" if point.dist is not None else "a package"
        offer = f"{source} offers {point.value} as {point.name!r} of {self.group}"
        try:
            kind: T = point.load()
        except Exception as error:
            raise self._error(
                f"{offer}, which cannot be loaded: {type(error).__name__}: {error}.",
                hint="Mend or remove that package.",
            ) from error
        if not self._fits(kind):
            raise self._error(f"{offer}, which is not {self._wanted}.", hint="Mend or remove that package.")
        return kind


def _offered(group: str, name: str | None = None) -> list[EntryPoint]:
    """The entry points of installed packages in a group, all or those of one name; in the order of the path."""
    from importlib.metadata import entry_points  # which takes as long to load as a small command

    return list(entry_points(group=group) if name is None else entry_points(group=group, name=name))
