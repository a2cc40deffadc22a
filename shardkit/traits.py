"""What a field of a pipeline says of itself beside its type, by ``Annotated[type, trait]``.

Whoever needs the fields of some sort asks the models for them, so that a new field is told of in one place alone.
"""

from __future__ import annotations

import functools
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
    """What the field takes, in words, where it takes several kinds of values; pydantic tells of the first kind only."""

    text: str


@dataclass(frozen=True)
class Short:
    """The field holds a section that may be given as one word, which is then this field of it."""

    field: str


@dataclass(frozen=True)
class Flat:
    """The field holds a section whose fields may be given without its name, as `shardkit.run` and options have them."""


@dataclass(frozen=True)
class IsPath:
    """The field is a path, which counts from a YAML file's folder; ``words`` may stand there that are no paths."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class MayChange:
    """The field may change between a run and its resumption; of a section, all but the fields ``but``."""

    but: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecidesWork:
    """The field decides which records there are, and what is computed from each."""


@dataclass(frozen=True)
class Kinds:
    """The field holds one of several models, which are in a table; its annotation names what they have in common.

    ``field`` is the one that tells them apart, by their names in the table.
    """

    registry: Registry[type[Any]]
    field: str = "kind"


def trait_of(field: FieldInfo, kind: type[T]) -> T | None:
    """The trait of that kind which a field has; None if it has none."""
    return next((trait for trait in field.metadata if isinstance(trait, kind)), None)


@functools.lru_cache(maxsize=256)
def fields_with(model: type[BaseModel], kind: type[T]) -> Mapping[str, T]:
    """The fields of a model that have a trait of that kind, by the names that users give them; and the traits."""
    traits = ((field.alias or name, trait_of(field, kind)) for name, field in model.model_fields.items())
    return {name: trait for name, trait in traits if trait is not None}
