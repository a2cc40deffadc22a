"""The kinds of engines, and what a pipeline's `engine` may say of one.

A further engine is a subclass of `Settings` in a module of its own, and a line here; one of another package is an
entry point in the group ``shardkit.engines``, by the name that `engine: {kind: NAME}` has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from shardkit.engines.settings import Settings
from shardkit.errors import PipelineError, ShardkitError
from shardkit.plugins import Registry
from shardkit.traits import Kinds

ENGINES: Registry[type[Settings]] = Registry(
    "shardkit.engines",
    {
        "local": "shardkit.engines.local_settings:Local",
        "sagemaker": "shardkit.engines.sagemaker:SageMaker",
        "slurm": "shardkit.engines.slurm_settings:Slurm",
    },
    error=PipelineError,
    fits=lambda kind: isinstance(kind, type) and issubclass(kind, Settings),
    wanted="a subclass of shardkit.engines.settings.Settings",
)
NO_ENGINE = "none"  # the passes run in this process and its workers


def engine_kind(name: object) -> type[Settings]:
    """The settings' class of a kind of engines.

    Raises:
        PipelineError: there is no such kind.
    """
    kind = ENGINES.find(name) if isinstance(name, str) else None
    if kind is None:
        expected = " or ".join(map(repr, ENGINES.names()))
        raise PipelineError(f"engine.kind: expected {expected}, not {name!r}{ENGINES.near(name) or '.'}")
    return kind


def settings_from(data: Mapping[str, Any], **more: Any) -> Settings:
    """Settings from plain data, as ``to_dict`` gives it; ``more`` goes over it, such as a ``boto_session``.

    Raises:
        PipelineError: a field is unknown, mistyped or missing.
    """
    fields = dict(data) | more
    return engine_kind(fields.get("kind"))(**fields)


def _engine(value: Any) -> Any:
    """Settings from what a user may give: a kind, a mapping, a Processor, or an engine that is there already.

    Errors keep their places, so that a pipeline's YAML file can tell the lines.
    """
    if value is None or isinstance(value, Settings):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return _adopted(value)
    if value.get("kind") == NO_ENGINE:
        return None
    if value.get("kind") not in ENGINES:
        raise ValueError(_expected(value.get("kind")))
    try:
        return settings_from(value)
    except ShardkitError as error:
        if isinstance(error.__cause__, ValidationError):
            raise error.__cause__ from None
        raise


def _adopted(value: Any) -> Settings:
    if isinstance(value, bool | int | float | list | tuple):
        raise ValueError(_expected())  # noqa: TRY004  for pydantic
    adopting = (kind.adopted(value) for kind in ENGINES.loaded())
    return next((settings for settings in adopting if settings is not None), None) or engine_kind("sagemaker")(
        processor=value
    )


def _expected(given: Any = None) -> str:
    names = [*ENGINES.names(), NO_ENGINE]
    text = f"expected {', '.join(names[:-1])} or {names[-1]}, or a mapping with its kind"
    return text + ((ENGINES.near(given) if given is not None else "") or ".")


EngineSettings = Annotated[Settings | None, Kinds(ENGINES), BeforeValidator(_engine)]
