"""The report of a run: a page with everything that its folder and its dataset say, and nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from crashing import Project, wait_for
from old_folders import FOLDERS, KINDS, bring
from pages import LIBRARY, charts_of, headlines_of, opened_in_chromium

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.jobs.prices import KnownPrices

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.whole
BAD = "<script>alert('taken')<b>&.txt"
DATASET = '<h2 class="headline">The dataset'
WORK = """
import datetime, time
from pathlib import Path

def check(text):
    if text.startswith("bad"):
        raise ValueError(f"cannot make sense of {text!r}")
    if text.startswith("none"):
        raise KeyError("lead II")

def features(record):
    text = Path(record).read_text()
    check(text)
    while text.startswith("wait") and not Path("go").exists():
        time.sleep(0.01)
    n = int(text.split()[1])
    record.count("odd", n % 2)
    if n == 5:
        record.log("five <i>is here</i>")
    day = datetime.date(2026, 1, 1 + n % 28)
    yield {"key": record.key, "n": n, "x": None if n % 4 == 0 else n / 3, "kind": "<b>" if n % 2 else "plain", "day": day}
    if n % 2:
        yield {"key": record.key, "n": n, "x": 0.5, "kind": "second", "day": day}

def wider(record):
    for row in features(record):
        yield {**row, "new": True, "x": row["x"] if row["n"] > 20 else None}

def nothing(record):
    return None
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("report"))
    made.write_function(WORK)
    content = {f"r{i:03d}.txt": f"good {i}" for i in range(40)}
    bad = {"r007.txt": "bad <b>7</b>", "r019.txt": "bad 19", "r023.txt": "none 23"}
    made.write_records(content | bad | {BAD: "good 40"})
    return made


@pytest.fixture(scope="module")
def run(project: Project) -> sk.Run:
    return project.run(max_failures=5, workers=2)


@pytest.fixture(scope="module")
def page(run: sk.Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = run.report(tmp_path_factory.mktemp("page") / "run.html")
    return file.read_text("utf-8")


def percent(share: float) -> str:
    return f"{share:.1%}".replace(".0%", "%")


def own(page: str) -> str:
    """What of a page is ours."""
    return LIBRARY.sub("", page)


def chart(page: str, title: str) -> dict[str, Any]:
    """The specification of the chart with that title."""
    found = re.search(rf'<h3>{title}</h3>\s*<div class="chart" data-chart="(\w+)">', page)
    assert found is not None, title
    return dict(charts_of(page)[found[1]])


def table(page: str, title: str) -> list[list[str]]:
    """The texts of the rows of the table with that title."""
    rest = page.split(f"<h3>{title}</h3>")[1].split("</table>", maxsplit=1)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", rest.split("<tbody>")[1], re.DOTALL)
    cells = (re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows)
    return [[unescape(re.sub(r"<svg.*?</svg>", "", cell, flags=re.DOTALL)) for cell in row] for row in cells]


@pytest.mark.whole
def test_the_page_asks_nobody_and_obeys_no_text_of_the_data(page: str) -> None:
    assert not re.search(r"https?:|\bsrc=|href=|url\(|@import", own(page))
    assert "default-src &#39;none&#39;" in page and len(page) < 2_000_000
    assert own(page).count("<script") == 2 and BAD not in page and "bad <b>7" not in page


@pytest.mark.whole
def test_progress_and_throughput_add_up(page: str, run: sk.Run) -> None:
    progress = chart(page, "Records against the plan")["data"]["values"]
    counts = {state: sum(v["n"] for v in progress if v["of"] == state) for state in ("done", "quarantined", "open")}
    assert counts == {"done": 38, "quarantined": 3, "open": 0}
    rates = chart(page, "Records a second")["data"]["values"]
    width = run.timings()
    assert sum(value["n"] for value in rates) > 0 and len(width) == 41
    spans = chart(page, "Chunks by worker")["data"]["values"]
    assert sum(span["records"] for span in spans) == 41
    assert {span["of"] for span in spans} == {"first attempt", "with failures"}
    assert all(0 <= span["b"] <= span["e"] for span in spans)
    lanes = {span["lane"] for span in spans}
    assert lanes == set(width["worker"])


def test_extremes_are_those_of_the_timings(page: str, run: sk.Run) -> None:
    seconds = run.timings().set_index("record")["seconds"]
    slowest = [row[0] for row in table(page, "The slowest records")]
    assert len(slowest) == 20 and seconds[slowest].min() >= seconds.drop(slowest).max()
    assert seconds[slowest].is_monotonic_decreasing
    largest = table(page, "The largest records")
    assert len(largest) == 20 and largest[0][0] == "r007.txt"
    assert BAD in {value["name"] for value in chart(page, "Seconds by bytes")["data"]["values"]}


def test_failures_are_grouped_by_error_and_place(page: str) -> None:
    first, second = table(page, "Records in quarantine")
    assert first[0] == "ValueError: cannot make sense of 'bad <b>7</b>'" and first[1] == "2"
    assert re.fullmatch(r"work\.py:\d+, in check", first[2]) and first[3] == "r007.txt, r019.txt"
    assert "in features" in first[4] and first[4].endswith("ValueError: cannot make sense of 'bad <b>7</b>'")
    assert second[:2] == ["KeyError: 'lead II'", "1"] and second[3] == "r023.txt"


def test_what_the_function_has_counted_and_logged(page: str) -> None:
    assert table(page, "Counted") == [["odd", "17"]]
    assert table(page, "Logged") == [["r005.txt", "five <i>is here</i>"]] and "<i>" not in page


def test_columns_have_nulls_ranges_and_distributions(page: str, run: sk.Run) -> None:
    frame = run.dataset().to_table().to_pandas()
    rows = {row[0]: row for row in table(page, "Columns")}
    assert list(rows) == ["key", "n", "x", "kind", "day"]
    assert rows["n"][1:5] == ["int64", "0", "0", "40"]
    assert rows["x"][2] == percent(frame["x"].isna().mean())
    assert rows["day"][1] == "date32[day]" and rows["day"][3] == "2026-01-01"
    plain = int((frame["kind"] == "plain").sum())
    assert f"plain ({plain})" in rows["kind"][5] and "<b> (" in rows["kind"][5]
    assert rows["key"][5].startswith(f"{frame['key'].nunique()} different")
    assert page.count('<svg class="bars"') == 3


def test_a_run_that_goes_on_is_shown_and_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path / "project")
    project.write_function(WORK.replace('Path("go")', f"Path({str(tmp_path / 'go')!r})"))
    project.write_records(["good 0", "good 1", *(f"wait {n}" for n in range(2, 5))])
    running = threading.Thread(target=lambda: project.run(workers=1, run_id="r1"))
    running.start()
    wait_for(lambda: list(project.out.glob("_shardkit/runs/r1/markers/*/*.json")))
    live = sk.open_run(project.out)
    text = live.report().read_text("utf-8")
    assert (tmp_path / "report-r1.html").exists() and "run r1, running" in text and 'http-equiv="refresh"' not in text
    progress = {v["of"]: v["n"] for v in chart(text, "Records against the plan")["data"]["values"]}
    assert progress["open"] >= 3 and sum(progress.values()) == 5 and DATASET not in text
    pages: list[str] = []

    def written(file: Path) -> None:
        pages.append(file.read_text("utf-8"))
        (tmp_path / "go").touch()

    last = live.report(tmp_path / "live.html", watch_s=1, written=written).read_text("utf-8")
    running.join()
    assert 'http-equiv="refresh" content="1"' in pages[0] and "run r1, running" in pages[0]
    assert 'http-equiv="refresh"' not in last and "run r1, done" in last and DATASET in last


@pytest.mark.whole
def test_what_differs_from_the_dataset_before(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields: dict[str, Any] = {"quiet": True, "source_dir": project.root, "max_failures": 5, "name": "rows"}
    first = sk.run("work:features", project.data, out, **fields)
    xs = [first.dataset().to_table()["x"]]
    second = sk.run("work:wider", project.data, out, **fields)
    text = second.report(tmp_path / "second.html").read_text("utf-8")
    assert f"which run {first.run_id} made" in text
    figures = {row[0]: row for row in table(text, "Figures")}
    assert figures["Rows"][1:] == ["55", "55", "0"] and figures["Records done"][1:3] == ["38", "38"]
    assert table(text.split("What differs")[1], "Columns") == [["new", "-", "bool"]]
    xs.append(second.dataset().to_table()["x"])
    assert table(text, "Nulls") == [["x", *(percent(x.null_count / len(x)) for x in xs)]]
    replaced = first.report(tmp_path / "first.html").read_text("utf-8")
    assert f"Run {second.run_id} has replaced this dataset." in replaced


@pytest.mark.slow
def test_jobs_on_an_engine_and_what_they_cost(project: Project, tmp_path: Path) -> None:
    shards = {"by": "size", "count": 2}
    fields: dict[str, Any] = {"source_dir": project.root, "max_failures": 5, "workers": 1}
    run = sk.Pipeline(
        function="work:features", input=project.data, output=tmp_path / "out", shards=shards, **fields
    ).run(sk.Local(root=tmp_path / "jobs"), quiet=True)
    prices = KnownPrices({"ml.m5.xlarge": 360.0})
    text = run.report(tmp_path / "jobs.html", prices=prices).read_text("utf-8")
    ((kind, attempts, failed, _, _, _, cost),) = table(text, "Instances")
    assert (kind, attempts, failed) == ("ml.m5.xlarge", "3", "0") and cost.startswith("$")
    lanes = {span["lane"] for span in chart(text, "Chunks by worker")["data"]["values"]}
    assert lanes == {"00000-1 0", "00001-1 0"} and "<b>2</b><span>workers" in text


def test_a_failed_run_and_one_without_rows(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields: dict[str, Any] = {"quiet": True, "source_dir": project.root}
    with pytest.raises(sk.ShardkitError):
        sk.run("work:features", project.data, out, **fields)
    text = sk.open_run(out).report(tmp_path / "failed.html").read_text("utf-8")
    assert ", failed</h1>" in text and DATASET not in text
    assert "more than max_failures" in text, re.findall("<p>(.*?)</p>", text)
    with pytest.raises(sk.NothingMade):
        sk.run("work:nothing", project.data, tmp_path / "none", max_failures=5, **fields)
    text = sk.open_run(tmp_path / "none").report(tmp_path / "none.html").read_text("utf-8")
    assert "gave no row" in text and len(table(text, "The slowest records")) == 20


@pytest.mark.parametrize("version", sorted(path.name for path in FOLDERS.iterdir()))
def test_folders_of_earlier_versions(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        bring(version, kind, tmp_path / kind)
        text = sk.open_run(tmp_path / kind / "out").report(tmp_path / f"{kind}.html").read_text("utf-8")
        assert "Records against the plan" in headlines_of(text)


def test_the_command(run: sk.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    monkeypatch.setattr("click.launch", lambda url: shown.append(url))
    done = CliRunner().invoke(cli, ["report", str(run.output), "--open"])
    assert done.exit_code == 0, done.output
    file = tmp_path / f"report-{run.run_id}.html"
    assert f"Wrote {file.name}." in done.output and shown == [str(file)]
    assert "shardkit failures" in file.read_text("utf-8") and "sk.open_run" not in own(file.read_text("utf-8"))
    done = CliRunner().invoke(cli, ["report", str(run.output), "--to", "no/such/folder.html"])
    assert done.exit_code == 2 and "no/such/folder.html cannot be written: No such file or directory" in done.output
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    from shardkit.pages.write import chart_library

    chart_library.cache_clear()
    done = CliRunner().invoke(cli, ["report", str(run.output)])
    assert done.exit_code == 2 and 'pip install "shardkit[report]"' in done.output


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_the_page_in_a_browser(page: str, tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    file.write_text(page)
    shown, console = opened_in_chromium(file, tmp_path)
    assert console == ""
    assert len(re.findall(r'<svg[^>]*class="marks"', shown)) == len(charts_of(page))
    assert own(shown).count("<script") == 2 and "<title>features: run" in shown
