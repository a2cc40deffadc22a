"""What a field of a pipeline says of itself beside its type, by ``Annotated[type, trait]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardkit.plugins import Registry


@dataclass(frozen=True)
class Kinds:
    """The field holds one of several models, which are in a table; its annotation names what they have in common."""

    registry: Registry[type[Any]]
