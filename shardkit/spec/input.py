"""The section ``input``: one place with files, or several, and which of their files are input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from shardkit.engines.values import Names  # noqa: TC001  pydantic reads it
from shardkit.spec.section import Section, Uri
from shardkit.storage.base import ACCESS_FIELDS, Access, scheme_of
from shardkit.storage.schemes import access_fields
from shardkit.traits import Expected, IsPath, MayChange

LISTS = ("include_list", "exclude_list")
# Fields that only stand in a pipeline's document if they are given: earlier versions have not known them.
IF_GIVEN = (*ACCESS_FIELDS, *LISTS, "manifest", "parts")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MISSING = object()
A_LIST = Expected("a file with keys or URIs: .csv, .jsonl, .parquet or .txt")


class _Place(Section):
    """One place with files."""

    manifest: Annotated[Uri | None, IsPath(), A_LIST] = None
    pattern: Annotated[Names, Expected("a glob or a list of globs")] = ("*",)
    exclude: Annotated[Names, Expected("a glob or a list of globs")] = ()
    include_list: Annotated[Uri | None, IsPath(), A_LIST] = None
    exclude_list: Annotated[Uri | None, IsPath(), A_LIST] = None
    uri: Annotated[Uri | None, IsPath()] = None
    requester_pays: Annotated[bool, Expected("true or false"), MayChange(), Field(strict=True)] = False
    anonymous: Annotated[bool, Expected("true or false"), MayChange(), Field(strict=True)] = False

    @model_validator(mode="before")
    @classmethod
    def _somewhere(cls, given: Any) -> Any:
        nowhere = isinstance(given, Mapping) and not any(given.get(name) for name in ("uri", "manifest", "parts"))
        return {**given, "uri": given.get("uri") or MISSING} if nowhere and given.get("uri") != "" else given

    @field_validator("uri", mode="before")
    @classmethod
    def _is_there(cls, value: Any) -> Any:
        if value is MISSING:
            raise PydanticCustomError("missing", "Field required")
        return value

    @field_validator("requester_pays", "anonymous")
    @classmethod
    def _of_a_store(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001  a validator's argument
        uri, name = info.data.get("uri"), info.field_name
        if value and uri is not None and name not in access_fields(scheme_of(uri)):
            raise ValueError(f"this is for buckets of S3; input.uri is {uri}.")
        if value and info.data.get("requester_pays"):
            raise ValueError("who pays must sign: requester_pays and anonymous exclude each other.")
        return value

    @model_serializer(mode="wrap")
    def _given(self, serialize: Any) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {name: value for name, value in content.items() if name not in IF_GIVEN or value}

    def access(self) -> Access:
        """How the store is entered, except for the session."""
        return Access(requester_pays=self.requester_pays, anonymous=self.anonymous)

    @property
    def text(self) -> str:
        """Where the files are, for messages."""
        return self.uri or f"the files in {self.manifest}"


class InputPart(_Place):
    """One of several places; its name is the first part of its files' keys."""

    name: Annotated[str | None, Expected("a name of letters, digits, '.', '_' and '-'")] = None

    def named(self) -> InputPart:
        """The same part with its name, by default that of its folder or list.

        Raises:
            ValueError: that cannot be one.
        """
        given = self.name or (self.uri or self.manifest or "").rstrip("/").rpartition("/")[2].partition(".")[0]
        if not NAME.fullmatch(given):
            raise ValueError(
                f"{given!r} cannot be the name of an input: give a name of letters, digits, '.', '_', '-'."
            )
        return self.model_copy(update={"name": given})


class Input(_Place):
    """Where the files are, and which of them are input."""

    parts: Annotated[tuple[InputPart, ...], Expected("a list of inputs, each with its uri or manifest")] = ()

    @field_validator("pattern")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise PydanticCustomError("too_short", "must not be empty")
        return value

    @field_validator("parts")
    @classmethod
    def _named(cls, value: tuple[InputPart, ...], info: ValidationInfo) -> tuple[InputPart, ...]:
        parts = tuple(part.named() for part in value)
        names = [str(part.name) for part in parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"two inputs are named {twice}: give each a name of its own, which begins its files' keys."
            )
        given = [name for name in ("uri", "manifest", *LISTS) if info.data.get(name)]
        if parts and given:
            raise ValueError(f"with several inputs, {given[0]} is a field of each of them.")
        return parts

    def places(self) -> tuple[Input | InputPart, ...]:
        """The parts, or the input itself if it is the only one."""
        return self.parts or (self,)

    def uris(self) -> list[str]:
        """Where files are read from: the places, and the manifests and lists."""
        fields = ("uri", "manifest", *LISTS)
        return [uri for part in self.places() for name in fields if (uri := getattr(part, name)) is not None]

    def globs(self, kind: Literal["pattern", "exclude"]) -> tuple[str, ...]:
        """The patterns for the keys of the whole input."""
        own: tuple[str, ...] = getattr(self, kind)
        if not self.parts:
            return own
        within = [_within(str(part.name), glob) for part in self.parts for glob in getattr(part, kind)]
        return (*(own if own != ("*",) else ()), *within)


def _within(name: str, glob: str) -> str:
    """A glob for the keys of one of several inputs."""
    if glob in {"*", "**"}:
        return f"{name}/**"
    return f"{name}/{glob}" if "/" in glob else f"{name}/**/{glob}"
