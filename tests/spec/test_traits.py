"""The traits of fields: the lists of fields that follow from them, and those that rooms below keep themselves."""

from __future__ import annotations

import os
from collections.abc import Callable  # noqa: TC003  pydantic reads it
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import yaml

import shardkit as sk
from shardkit.explain import fields_of
from shardkit.plan.digests import WORK_FIELDS
from shardkit.runs.planning import planned_pipeline
from shardkit.spec.changes import changeable, may_change
from shardkit.spec.fields import dotted_names, flat_fields
from shardkit.spec.input import Input
from shardkit.spec.sections import Output, Queue
from shardkit.spec.spec import Spec
from shardkit.storage.base import ACCESS_FIELDS
from shardkit.traits import DecidesWork, Expected, Flat, IsPath, MayChange, Short, fields_with

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = [
    *("workers", "memory", "batch", "concurrency", "rate", "gpus", "timeout", "max_failures", "allow_empty", "combine"),
    *("checks", "catalog"),
    *("source_dir", "engine", "parallel", "max_cost", "input_mode", "requirements", "requirements_mode"),
]


def test_lists_below_say_what_the_fields_say() -> None:
    assert set(WORK_FIELDS) == set(fields_with(Spec, DecidesWork))
    assert set(ACCESS_FIELDS) == set(fields_with(Input, MayChange))
    assert not set(WORK_FIELDS) & set(fields_with(Spec, MayChange))


def test_what_may_change_between_a_run_and_its_resumption() -> None:
    assert [name for name in fields_of(Spec) if may_change(name)] == [n for n in fields_of(Spec) if n in SETTINGS]
    assert may_change("engine", "volume_gb")
    assert may_change("input", "anonymous")
    assert not may_change("input", "pattern")
    assert {name for name in fields_of(Output) if not may_change("output", name)} == {"uri", "origin"}
    assert {"output.* (but not output.uri, output.origin)", "engine.*", "input.requester_pays", "timeout"} <= set(
        changeable()
    )


def test_fields_that_need_no_section() -> None:
    by_section: dict[str, list[str]] = {}
    for name, section in flat_fields(Spec).items():
        by_section.setdefault(section, []).append(name)
    assert by_section == {
        "input": ["manifest", "pattern", "exclude", "include_list", "exclude_list", "requester_pays", "anonymous"],
        "output": [
            "format",
            "rows_per_file",
            "target_bytes",
            "partition_by",
            "schema",
            "widen_ints",
            "origin",
            "shuffle",
        ],
    }
    assert not set(flat_fields(Spec)) & set(Spec.model_fields), "a field would have two meanings"
    assert dotted_names(Spec)["output"] == "output.uri"
    assert dotted_names(Spec)["format"] == "output.format"
    assert "engine" not in dotted_names(Spec)


class Longer(Output):
    """An output that can do more."""

    note: Annotated[str, IsPath(words=("none",)), Expected("a file with notes")] = "none"


class More(Spec):
    """A pipeline with a field more in a section, and one of its own."""

    output: Annotated[Longer, Short("uri"), Flat()]
    extra: Annotated[str | None, IsPath()] = None
    several: tuple[str, ...] = ()
    how: Callable[..., Any] | None = None


@pytest.mark.parametrize(
    ("given", "expected"), [("notes.txt", "HERE/notes.txt"), ("none", "none"), ("s3://b/k", "s3://b/k"), ("/x", "/x")]
)
def test_a_new_field_is_told_of_in_its_model_alone(tmp_path: Path, given: str, expected: str) -> None:
    content: dict[str, Any] = {"function": "a:b", "input": "in", "output": {"uri": "out", "note": given}, "extra": "x"}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    made = More.from_yaml(tmp_path / "p.yaml")
    assert made.output.note == expected.replace("HERE", str(tmp_path))
    assert made.extra == str(tmp_path / "x")
    assert More.flat("a:b", "in", "out", note=given).output.note == given
    plain = More.flat("a:b", "in", "out", note=given, extra="x", several=("a", "b"), how=len).to_dict()
    assert plain["output"]["note"] == (os.path.abspath(given) if given == "notes.txt" else given)
    assert (plain["extra"], plain["several"], plain["how"]) == (os.path.abspath("x"), ["a", "b"], "builtins:len")
    assert made.replace(output={"note": "other"}).output.uri == str(tmp_path / "out")
    with pytest.raises(sk.PipelineError, match="output.note: expected a file with notes, not 5"):
        More.flat("a:b", "in", "out", note=5)


def test_every_path_of_a_pipeline_counts_from_its_file(tmp_path: Path) -> None:
    content = {
        "function": "a:b",
        "input": "in",
        "output": {"uri": "out"},
        "requirements": "req.txt",
        "engine": {"kind": "local", "root": "engine"},
        "queue": "jobs.sqlite",
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    made = sk.Pipeline.from_yaml(tmp_path / "p.yaml")
    assert made.engine is not None
    assert made.queue is not None
    paths = [made.input.uri, made.output.uri, made.requirements, made.engine.to_dict()["root"], made.queue.place]
    assert paths == [str(tmp_path / name) for name in ("in", "out", "req.txt", "engine", "jobs.sqlite")]
    assert made.source_dir == str(tmp_path)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content | {"queue": "dynamodb"}))
    assert sk.Pipeline.from_yaml(tmp_path / "p.yaml").queue == Queue(place="dynamodb")


def test_a_change_that_is_refused_names_those_that_are_not() -> None:
    plan = {"pipeline": sk.Pipeline(function="a:b", input="in", output="out").to_dict()}
    with pytest.raises(
        sk.PlanMismatch, match=r"shards cannot change.*takes input\.requester_pays.*output\.\* \(but not"
    ):
        planned_pipeline(plan, {"shards": None})
    assert planned_pipeline(plan, {"input.anonymous": False, "timeout": 7}).timeout == 7
