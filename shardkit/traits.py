"""Traits of a pipeline's fields, which stand beside the field's type: ``Annotated[type, trait]``.

Code that needs the fields with a certain trait asks the models for them, so that a new field is written in one place.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from shardkit.plugins import Registry

T = TypeVar("T")


@dataclass(frozen=True)
class Expected:
    """What the field takes, in words, if it takes several kinds of values; pydantic names only the first kind."""

    text: str


@dataclass(frozen=True)
class Short:
    """The field holds a section that may be given as one word, which is the value of this field in it.

    Where ``several`` names a field, it may be given as a list as well, which is the value of that one. With ``numbers``
    the one word may be a number, which leaves the other fields of a section as they are.
    """

    field: str
    several: str = ""
    numbers: bool = False

    def section(self, value: Any) -> Any:
        """The section as a mapping, whichever of these ways it was given in; anything else as it is."""
        if isinstance(value, str | os.PathLike) or self.is_number(value):
            return {self.field: value}
        if self.several and isinstance(value, list | tuple):
            return {self.several: [self.section(each) for each in value]}
        return value

    def is_number(self, value: Any) -> bool:
        """Whether it is a number in place of the section."""
        return self.numbers and isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Flat:
    """The field holds a section whose fields may be given without its name, in `shardkit.run` and as options."""


@dataclass(frozen=True)
class IsPath:
    """The field is a path, relative to the YAML file's folder; ``words`` are other values that it may have."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class MayChange:
    """The field may change between a run and its resumption; in a section, all its fields except ``but``."""

    but: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecidesWork:
    """The field decides which records there are, and what is computed from each."""


@dataclass(frozen=True)
class Kinds:
    """The field holds one of several models, which are in a table; its annotation is their common base.

    ``field`` has the model's name in the table.
    """

    registry: Registry[type[Any]]
    field: str = "kind"


def trait_of(field: FieldInfo, kind: type[T]) -> T | None:
    """A field's trait of that kind; None if it has none."""
    return next((trait for trait in field.metadata if isinstance(trait, kind)), None)


@functools.lru_cache(maxsize=256)
def fields_with(model: type[BaseModel], kind: type[T]) -> Mapping[str, T]:
    """The fields of a model that have a trait of that kind, by the names that users give them; and the traits."""
    traits = ((field.alias or name, trait_of(field, kind)) for name, field in model.model_fields.items())
    return {name: trait for name, trait in traits if trait is not None}
