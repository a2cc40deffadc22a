"""The document ``checks.json`` of a run: how the checks of its new files ended, and what is kept of those."""

from __future__ import annotations

from typing import Any, TypedDict

from shardkit.runfolder.document_types import Result  # noqa: TC001  documents are checked by their types


class CheckResult(TypedDict):
    """How one check ended.

    ``name`` is the field in the pipeline, for SQL with the query's name. ``offending`` counts what offends: rows of a
    query, nulls, keys, days or columns; ``sample`` has the first of these, as plain data.
    """

    name: str
    passed: bool
    message: str
    offending: int
    sample: list[dict[str, Any]]


class _HeldBuild(TypedDict):
    result: Result
    kept: list[str]
    of_jobs: list[str]
    columns: dict[str, str] | None
    widen_ints: bool
    switched: int


class HeldBuild(_HeldBuild, total=False):
    """The next state of a dataset, whose files stay staged: what the switch needs to know of it.

    ``kept`` and ``of_jobs`` are the files of the present dataset that stay, and those that jobs have staged;
    ``columns`` and ``widen_ints`` are the pipeline's. ``switched`` counts the switches of the dataset that the checks
    have seen. ``checks`` are those that were made, as the pipeline said them; earlier versions did not note them.
    """

    checks: dict[str, Any]


class ChecksDocument(TypedDict):
    """``checks.json``: the checks of the build with this number; ``held`` if the dataset was not switched to it.

    ``accepted`` is when somebody had the dataset switched all the same.
    """

    checked: str
    generation: int
    results: list[CheckResult]
    held: HeldBuild | None
    accepted: str | None
