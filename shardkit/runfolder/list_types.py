"""What a plan notes of the manifests of its input."""

from __future__ import annotations

from typing import TypedDict


class PlannedList(TypedDict):
    """A manifest of the input: its ``rows``, and those that name files ``outside`` of the input.

    The store was ``asked`` for what it does not say of some files, of which so many are ``missing``.
    """

    manifest: str
    rows: int
    outside: int
    asked: int
    missing: int
    missing_sample: list[str]
