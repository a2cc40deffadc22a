"""In a real kernel: what notebooks show of pipelines, plans, runs, jobs and failures; trying, replaying and plotting."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX
from notebooks import cell, needs_notebooks, notebook, run

import shardkit as sk
from shardkit.pages.view import View
from shardkit.runfolder.folder import RunFolder
from shardkit.runs.views import JobList

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

SETUP = """
import shardkit as sk

def f(record):
    text = record.read_text()
    record.count("letters", len(text))
    if text == "bad":
        raise ValueError(f"<b>{record.key}</b>")  # the line that fails
    return {"key": record.key, "n": len(text)}

pipeline = sk.Pipeline(
    function=f, input="data/", output="out/", workers=1, max_failures="50%", name="<i>", shards={"by": "directory"}
)
"""
ALLOWED = {*("div", "style", "b", "p", "svg", "rect", "title", "path", "text", "table", "tr", "th", "td", "i", "span")}
ALLOWED |= {"details", "summary", "pre"}
CELLS = {
    "pipeline": SETUP + "pipeline",
    "plan": "pipeline.plan()",
    "run": "run = pipeline.run(quiet=True)\nrun",
    "summary": "run.summary()",
    "failures": "run.failures()",
    "selection": 'run.failures()[["key"]]',
    "try": 'pipeline.try_record("b/<script>.txt")',
    "tried": "pipeline.try_records(2)",
    "raises": 'pipeline.try_record("a/bad.txt")',
    "changed": 'def f(record):\n    return {"new": 1}\n\nrun.replay("b/<script>.txt").rows["n"].tolist()',
    "replay": 'run.replay("a/bad.txt")',
    "plot": "%matplotlib inline\nax = run.plot()",
}


class Elements(HTMLParser):
    """The elements and the text of a piece of HTML; every element that begins must end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)
        assert not any(name.startswith("on") or name in {"src", "href"} for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        if (self.get_starttag_text() or "").endswith("/>") and self.open[-1:] != [tag]:
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("notebook")
    for name, text in {"a/bad.txt": "bad", "a/1.txt": "x", "b/<script>.txt": "four", "c/2.txt": "yy"}.items():
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_text(text)
    book = run(notebook(cell(source, name) for name, source in CELLS.items()), folder, allow_errors=True)
    return {each["id"]: each["outputs"] for each in book.cells}


def html(outputs: dict[str, list[Any]], name: str) -> Elements:
    (shown,) = [out["data"]["text/html"] for out in outputs[name] if "text/html" in out.get("data", {})]
    return Elements(shown)


@LINUX
@needs_notebooks
@pytest.mark.whole
def test_a_notebook_shows_tables_and_pictures(outputs: dict[str, list[Any]]) -> None:
    wanted = {
        "pipeline": ["Pipeline <i>", "max_failures50%", "shards.bydirectory"],
        "plan": ["Bytes by shard", "4 listed"],
        "run": ["done", "4 listed = 3 done + 1 quarantined", "Chunks by worker"],
        "summary": ["dataset3 rows", "countedletters: 7"],
        "failures": ["1 record in quarantine", "ValueError: <b>a/bad.txt</b>", "# the line that fails"],
        "try": ["1 record tried", "b/<script>.txt", "1 row", "int64"],
        "tried": ["2 records tried", "All 4 records"],
    }
    for name, texts in wanted.items():
        page = html(outputs, name)
        assert page.names <= ALLOWED and "table" in page.names, name
        assert "svg" in page.names or name == "try", name  # one record is no picture
        for text in texts:
            assert text in page.text, (name, page.text)
    assert "shardkit-view" not in outputs["selection"][0]["data"]["text/html"]  # as pandas shows it
    plain = outputs["summary"][0]["data"]["text/plain"]
    assert "records  4 listed = 3 done" in plain
    assert "shards   3" in outputs["plan"][0]["data"]["text/plain"]


@LINUX
@needs_notebooks
@pytest.mark.whole
def test_errors_come_with_the_lines_of_the_cell(outputs: dict[str, list[Any]]) -> None:
    for name in ("raises", "replay"):
        (error,) = outputs[name]
        assert (error["ename"], error["evalue"]) == ("ValueError", "<b>a/bad.txt</b>")
        text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))
        assert "# the line that fails" in text
        assert "in Trial" not in text
    assert outputs["changed"][0]["data"]["text/plain"] == "[4]"  # by the function as it was sent


@LINUX
@needs_notebooks
@pytest.mark.whole
def test_the_timeline_is_drawn(outputs: dict[str, list[Any]]) -> None:
    pytest.importorskip("matplotlib")
    assert [list(out["data"]) for out in outputs["plot"]] == [["text/plain", "image/png"]] or any(
        "image/png" in out["data"] for out in outputs["plot"]
    )


@pytest.mark.whole
def test_the_timeline_says_what_it_lacks(tmp_path: Path, files: WriteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work.py").write_text("def rows(record):\n    return {'key': record.key}\n")
    run = sk.run("work:rows", files(["a"]), tmp_path / "out", source_dir=tmp_path, workers=1, quiet=True)
    for path in run.path.glob("markers/*/*.json"):
        path.unlink()
    pytest.importorskip("matplotlib")
    with pytest.raises(sk.RunNotFound, match="says when it was worked on"):
        run.plot()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(sk.PipelineError, match="pip install matplotlib"):
        run.plot()


def test_a_damaged_run_shows_its_error(tmp_path: Path, files: WriteFiles) -> None:
    (tmp_path / "work.py").write_text("def rows(record):\n    return {'key': record.key}\n")
    run = sk.run("work:rows", files(["a"]), tmp_path / "out", source_dir=tmp_path, workers=1, quiet=True)
    (run.path / "plan.json").write_text("{")
    looked_at_again = sk.Run(RunFolder(run.folder.output, run.run_id))
    assert "plan.json is damaged" in Elements(looked_at_again._repr_html_()).text


def test_views_are_no_more_than_a_screen() -> None:
    job = {"job": "j", "name": "<job>", "status": "Failed", "attempts": [], "cause": None, "reason": "<why>"}
    page = Elements(JobList([job | {"name": f"<job {i}>"} for i in range(5000)])._repr_html_())
    assert "5,000 jobs" in page.text and "<job 3>" in page.text and "<job 12>" not in page.text
    assert "... and 4,988 more" in page.text
    view = View("<title>", "<subtitle>")
    view.add_bars([("<tip>", 1.0)])
    view.add_lanes([[(0.0, 1.0, "red", "<tip>")]])
    view.add_flow([("<word>", "<text>")])
    view.add_folded("<summary>", "<text>")
    assert Elements(view.to_html()).names <= ALLOWED
