"""Checks plain data against a `TypedDict`.

A type is read once and made into functions, because there may be a hundred thousand markers to check.
"""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints, is_typeddict

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = {type(None): "null", bool: "true or false", str: "a text", list: "a list", dict: "an object"}
_ABSENT = object()


class Misfit(NamedTuple):
    """The dotted path of a field, and a description of what it holds; empty if the field is missing."""

    where: str
    holds: str

    def __str__(self) -> str:
        if not self.holds:
            return f"it has no field {self.where!r}"
        return f"its field {self.where!r} holds {self.holds}" if self.where else f"it holds {self.holds}"

    def below(self, name: str) -> Misfit:
        """The same misfit, seen from the object that holds the value in a field."""
        return Misfit(f"{name}.{self.where}" if self.where else name, self.holds)


_Check: TypeAlias = "Callable[[Any], Misfit | None]"


class _Field(NamedTuple):
    """A field: the plain types that need no further check, and the check for all others."""

    name: str
    plain: frozenset[type]
    check: _Check
    is_required: bool


def misfit(value: Any, kind: Any) -> Misfit | None:
    """The first misfit between data from JSON and a type; None if the data fits."""
    return _check_of(kind)(value)


@functools.cache
def _check_of(kind: Any) -> _Check:
    if kind is Any:
        return _anything
    if is_typeddict(kind):
        return _check_of_fields(kind)
    if get_origin(kind) in {list, dict}:
        return _check_of_items(get_origin(kind), get_args(kind)[-1])
    plain, others = _plain(kind), [each for each in _choices(kind) if not _plain(each)]

    def check(value: Any) -> Misfit | None:
        if type(value) in plain:
            return None
        wrong = [_check_of(other)(value) for other in others]
        return None if None in wrong else next((each for each in wrong if each and each.where), _wrong(value))

    return check


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in {Union, types.UnionType} else (kind,)


def _plain(kind: Any) -> frozenset[type]:
    """The types whose values always fit, without a look into them."""
    plain: set[type] = set()
    for each in _choices(kind):
        if each is float:
            plain |= {float, int}
        elif each in {int, str, bool, type(None), dict, list}:
            plain.add(each)
    return frozenset(plain)


def _anything(_: Any) -> None:
    return None


def _check_of_fields(kind: Any) -> _Check:
    fields = tuple(
        _Field(name, _plain(each), _check_of(each), name in kind.__required_keys__)
        for name, each in get_type_hints(kind).items()
        if each is not Any
    )

    def check(value: Any) -> Misfit | None:
        if type(value) is not dict:
            return _wrong(value)
        for name, plain, look, is_required in fields:
            held = value.get(name, _ABSENT)
            if type(held) in plain:
                continue
            if held is _ABSENT:
                if is_required:
                    return Misfit(name, "")
            elif (wrong := look(held)) is not None:
                return wrong.below(name)
        return None

    return check


def _check_of_items(container: type, kind: Any) -> _Check:
    plain, look = _plain(kind), _check_of(kind)

    def check(value: Any) -> Misfit | None:
        if type(value) is not container:
            return _wrong(value)
        items: Any = value
        if kind is Any or plain.issuperset(map(type, items.values() if container is dict else items)):
            return None
        for name, each in items.items() if container is dict else enumerate(items):
            if (wrong := look(each)) is not None:
                return wrong.below(str(name))
        return None

    return check


def _wrong(value: Any) -> Misfit:
    return Misfit("", kind_of(value))


def kind_of(value: Any) -> str:
    """The kind of a JSON value, in words."""
    return _KINDS.get(type(value), "a number")
