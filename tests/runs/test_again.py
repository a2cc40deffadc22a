"""A run that is asked for by its id again: it goes on with its own files, and begins anew if the function is another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from crashing import Project

import shardkit as sk
from shardkit.runs.again import start_or_go_on

if TYPE_CHECKING:
    from pathlib import Path

FIRST = """
def features(record):
    text = open(record).read()
    if text == "bad":
        raise ValueError("bad")
    return {"text": text, "by": 1}
"""


def pipeline(project: Project, **fields: object) -> sk.Pipeline:
    fields = {"workers": 1, "source_dir": project.root, "max_failures": 0} | fields
    return sk.Pipeline(function="work:features", input=str(project.data), output=str(project.out), **fields)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write_function(FIRST)
    made.write_records({"a.txt": "a", "b.txt": "bad"})
    return made


@pytest.mark.whole
def test_it_goes_on_although_files_have_come_since_and_limits_are_others(project: Project) -> None:
    with pytest.raises(sk.BudgetExceeded):
        start_or_go_on(pipeline(project), "nightly", quiet=True)
    project.write_records({"c.txt": "c"})
    run = start_or_go_on(pipeline(project, max_failures=1), "nightly", quiet=True)
    assert run.run_id == "nightly"
    assert [row["text"] for row in project.rows()] == ["a"]
    assert run.summary().records == {"listed": 2, "done": 1, "quarantined": 1, "skipped": 0}
    before = run.folder.result()
    again = start_or_go_on(pipeline(project, max_failures=1), "nightly", quiet=True)
    assert again.folder.result() == before  # nothing was done


def test_with_another_function_it_begins_anew(project: Project) -> None:
    with pytest.raises(sk.BudgetExceeded):
        start_or_go_on(pipeline(project), "nightly", quiet=True)
    project.write_function(FIRST.replace("raise ValueError", "text = str").replace('"by": 1', '"by": 2'))
    run = start_or_go_on(pipeline(project), "nightly", quiet=True)
    assert run.run_id == "nightly.2"
    assert [row["by"] for row in project.rows()] == [2, 2]
    assert start_or_go_on(pipeline(project), "nightly", quiet=True).run_id == "nightly.2"
    refused = project.command("run", "--go-on", *project.run_arguments()[1:], expect=2)
    assert "--go-on is about the run of an id" in refused.stderr
    done = project.command(*project.run_arguments(), "--run-id", "nightly", "--go-on", "--json")
    assert done.summary["run_id"] == "nightly.2"
