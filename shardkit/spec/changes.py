"""Which fields of a pipeline may change between a run and its resumption."""

from __future__ import annotations

from shardkit.explain import fields_of, models_of
from shardkit.spec.spec import Spec
from shardkit.traits import MayChange, fields_with


def may_change(section: str, field: str = "") -> bool:
    """Whether a field may change: one of the pipeline, or the ``field`` of a section."""
    whole = fields_with(Spec, MayChange).get(section)
    if whole is not None:
        return field not in whole.but if field else not whole.but
    return any(field in fields_with(model, MayChange) for model in models_of(fields_of(Spec)[section]))


def changeable() -> list[str]:
    """The fields that may change, in words."""
    texts = []
    for name, field in fields_of(Spec).items():
        sections = models_of(field)
        whole = fields_with(Spec, MayChange).get(name)
        if whole is None:
            texts += [f"{name}.{each}" for model in sections for each in fields_with(model, MayChange)]
        else:
            but = f" (but not {', '.join(f'{name}.{each}' for each in whole.but)})" if whole.but else ""
            texts.append(f"{name}{'.*' if sections else ''}{but}")
    return texts
