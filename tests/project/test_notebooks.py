"""The examples' notebooks run from beginning to end, the drivers on the local engine, and have a plot to show."""

from __future__ import annotations

import base64
import functools
import io
import os
import re
import runpy
import shutil
import socket
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import in_process
import loaded
import notebooks
import pandas as pd
import pytest
import warm
import warm_jobs
from notebooks import needs_notebooks

import shardkit as sk
from shardkit import templates
from shardkit.runs.requests import check_engine

pytestmark = [
    needs_notebooks,
    pytest.mark.skipif(
        find_spec("matplotlib") is None or find_spec("wfdb") is None, reason="matplotlib and wfdb are not installed"
    ),
]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LARGEST_BYTES = 15_000
NOTEBOOKS = sorted(EXAMPLES.glob("*/driver.ipynb"))
DAYS = EXAMPLES / "talent_jsonl/days.ipynb"
JOBS_AS_FORKS = f"__import__('runpy').run_path({warm_jobs.__file__!r})['use_those_of']"
# What the examples' functions import; those of the other example need nothing.
SCIENCE = ("pandas", "scipy.signal", "wfdb.processing", "pip._vendor.packaging.requirements")
drivers = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.parent.name)


def copied(path: Path, folder: Path) -> Path:
    """A copy of a notebook's example, as a user has it, without what runs beside the tests may have left there."""
    made = shutil.ignore_patterns("__pycache__", "data", "out", "week")
    return Path(shutil.copytree(path.parent, folder / "mine", ignore=made))


def executed(folder: Path, book: Any, forks: warm.Server) -> Any:
    """A notebook in ``folder``, run from top to bottom, with jobs from ``forks``; a cell that fails fails the test."""
    book.cells.insert(0, notebooks.cell(f"{JOBS_AS_FORKS}({forks.address!r})", "forks"))
    return notebooks.run(book, folder)


def said(book: Any, cell_id: str) -> str:
    """What a cell printed and showed, as text."""
    outputs = next(cell for cell in book.cells if cell["id"] == cell_id)["outputs"]
    texts = (out["text"] if "text" in out else out.get("data", {}).get("text/plain", "") for out in outputs)
    return "\n".join(texts)


def pictures(book: Any) -> list[Any]:
    """The images that its cells showed, as arrays of pixels."""
    from matplotlib.image import imread

    outputs = [out for cell in book.cells for out in cell.get("outputs", ())]
    shown = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    return [imread(io.BytesIO(base64.b64decode(data)), format="png") for data in shown]


def is_drawn(plot: Any) -> bool:
    """Whether there is more on a picture than its background."""
    colours = {tuple(pixel) for row in (plot[::4, ::4, :3] * 16).astype(int) for pixel in row}
    return bool(min(plot.shape[:2]) > 200 and len(colours) > 10)


def in_order(folder: Path, *columns: str) -> pd.DataFrame:
    return pd.read_parquet(folder).sort_values(list(columns), ignore_index=True)


def on_one_machine(folder: Path, forks: warm.Server, *options: str) -> None:
    """Run the example's pipeline without jobs."""
    words = ["-m", "shardkit", "run", "pipeline.yaml", "--quiet", *options]
    with Path(folder / "said").open("w") as said:
        run = forks.fork(words, cwd=str(folder), env=os.environ, output=[said.fileno()] * 2, session=False)
    assert run.wait(120) == 0, Path(said.name).read_text()


# ---- as they are kept ------------------------------------------------------------------------------------------


def test_both_examples_have_one() -> None:
    assert [path.parent.name for path in NOTEBOOKS] == ["mimic_waveforms", "talent_jsonl"]


@pytest.mark.whole
@pytest.mark.parametrize("path", [*NOTEBOOKS, DAYS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_is_kept_clean(path: Path) -> None:
    """Valid, small, without outputs or counters, so that a change to it can be read."""
    nbformat = notebooks.nbformat()
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert path.stat().st_size < LARGEST_BYTES
    ids = [cell["id"] for cell in book.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z-]+", name) for name in ids)
    for cell in book.cells:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert path.read_text("utf-8") == nbformat.writes(book, indent=1) + "\n"


def initiated(example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an example to ``folder``, as `init` does, with its notebooks, but with little data."""
    kind, few, more = {
        "mimic_waveforms": ("mimic", {"records": 9}, []),
        "talent_jsonl": ("talent", {"files": 9}, ["days.ipynb", "s3_server.py"]),
    }[example]

    def run_path(path: str) -> dict[str, Any]:
        return {"generate": functools.partial(runpy.run_path(path)["generate"], **few)}

    monkeypatch.chdir(folder.parent)
    with monkeypatch.context() as patched:
        patched.setattr(templates, "runpy", types.SimpleNamespace(run_path=run_path))
        done = in_process.command("init", kind, folder.name)
    assert done.stdout == ""
    assert f"Run it: cd {folder.name} && shardkit run pipeline.yaml" in done.stderr
    for name in ["driver.ipynb", *more]:
        assert name in done.stderr
        assert (folder / name).read_bytes() == (EXAMPLES / example / name).read_bytes()


# ---- run -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@drivers
def test_it_runs_whole(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `init` writes it: jobs, a plot, what it claims, and in the end the dataset that one machine makes."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    is_mimic = path.parent.name.startswith("mimic")
    folder = tmp_path / "mine"
    initiated(path.parent.name, folder, monkeypatch)
    forks = loaded.server(*SCIENCE) if is_mimic else warm.server()
    book = executed(folder, notebooks.read(folder / "driver.ipynb"), forks)
    if is_mimic:
        assert "30 records in " in said(book, "data")
        assert "records  30 of" in said(book, "plan")
    listed, broken = (30, 1) if is_mimic else (60, 2)
    assert f"{listed} listed = {listed - broken} done + {broken} quarantined" in said(
        book, "wait" if is_mimic else "run"
    )
    assert "ValueError" in said(book, "failures")
    assert f"{listed} done + 0 quarantined" in said(book, "retry")
    assert "Completed" in said(book, "jobs") and "Failed" not in said(book, "jobs")
    assert "0 quarantined." in said(book, "logs")

    (plot,) = pictures(book)
    assert is_drawn(plot)

    run = sk.open_run(folder / "out")
    assert run.has_jobs and run.summary().status == "done"
    function = run.folder.plan()["pipeline"]["function"]
    on_one_machine(folder, forks, "--function", function, "--set", "output.uri=one-machine/")
    keys = ("record", "name", "signal") if path.parent.name.startswith("mimic") else ("id",)
    on_one = in_order(folder / "one-machine", *keys)
    pd.testing.assert_frame_equal(
        in_order(folder / "out", *keys)[list(on_one)],  # which has its days, where they are the shards, as a column
        on_one,
        check_exact=False,
        rtol=1e-9,  # a job has an environment of its own, in which numpy may add up in another order
    )


KEEP = """
table = sk.open_run("s3://talent/impressions/").dataset().to_table()
table.to_pandas().to_parquet("kept.parquet")
print(server.url)
"""


@pytest.mark.slow
def test_a_week_of_days_runs_whole(tmp_path: Path) -> None:
    """From and to its own S3; one day redone; at its end the very dataset that a local run makes, and no server."""
    pytest.importorskip("duckdb")
    pytest.importorskip("moto.server")
    folder = copied(DAYS, tmp_path)
    book = notebooks.read(folder / DAYS.name)
    end = next(i for i, cell in enumerate(book.cells) if cell["id"] == "end")
    book.cells.insert(end, notebooks.cell(KEEP, "keep"))
    book = executed(folder, book, warm.server())

    assert "records  27 of" in said(book, "plan") and "7 partitions to be rebuilt" in said(book, "plan")
    assert "27 listed = 27 done" in said(book, "run")
    assert said(book, "run").count("talent/impressions/day_partition=2020-01-0") == 7
    late = said(book, "late")
    assert "1 partition to be rebuilt, 6 as they are" in late
    assert re.search(r"2020-01-04 +1 new, 3 unchanged", late)
    redone = said(book, "redo")
    assert "4 listed = 1 done + 0 quarantined + 3 skipped" in redone
    for kind in ("gone", "new"):
        assert re.search(rf"{kind} +\S+/day_partition=2020-01-04/\S+$", redone, re.MULTILINE)
    assert "as it was 6 files" in redone and "nothing has changed in 28 records" in redone
    assert re.findall(r"2020-01-\d\d", said(book, "range")) == ["2020-01-03", "2020-01-04", "2020-01-05"]
    (plot,) = pictures(book)
    assert is_drawn(plot)

    days = ["--set", "shards={by: date, path: '{Y}/{m}/{d}'}", "--set", "output.uri=here/"]
    on_one_machine(folder, warm.server(), "--set", "input.uri=week/", *days)
    here = sk.open_run(folder / "here").dataset().to_table().to_pandas()
    kept = pd.read_parquet(folder / "kept.parquet")
    assert len(kept) == 28 * 40
    pd.testing.assert_frame_equal(
        kept.sort_values("id", ignore_index=True), here.sort_values("id", ignore_index=True), check_exact=True
    )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(said(book, "keep").rpartition(":")[2])))


def test_the_server_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    start = runpy.run_path(str(DAYS.with_name("s3_server.py")))["start"]
    monkeypatch.setitem(start.__globals__, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'moto\[server\]'"):
        start()


# ---- what is only shown ----------------------------------------------------------------------------------------


class Processor:
    """What a pipeline reads of the ScriptProcessors of both SDKs."""

    volume_size_in_gb, max_runtime_in_seconds = 30, None

    def __init__(self, *, role: str, image_uri: str, command: list[str], instance_type: str, **more: Any) -> None:
        known = {"instance_count", "volume_size_in_gb", "max_runtime_in_seconds"}
        assert set(more) <= known, set(more) - known
        self.__dict__ |= {"role": role, "image_uri": image_uri, "command": command, "instance_type": instance_type}
        self.__dict__ |= more | {"sagemaker_session": None}


class Opened:
    """A run that was opened elsewhere."""

    def jobs(self) -> list[Any]:
        return []

    def wait(self) -> None:
        pass


@pytest.mark.whole
@drivers
def test_the_code_for_sagemaker_fits(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes a pipeline that would be taken; only the SDK, and the call that starts jobs, are stood in for."""
    monkeypatch.chdir(copied(path, tmp_path))
    for name in ("sagemaker", "sagemaker.core", "sagemaker.core.processing", "sagemaker.processing"):
        module = types.ModuleType(name)
        module.ScriptProcessor = Processor  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    started: list[sk.Pipeline] = []
    monkeypatch.setattr(sk.Pipeline, "run", lambda self, engine: started.append(self.replace(engine=engine)))
    monkeypatch.setattr(sk, "open_run", lambda output: Opened())

    text = notebooks.read(path).cells[-1]["source"]
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    namespace: dict[str, Any] = {"sk": sk, "pipeline": sk.Pipeline.from_yaml("pipeline.yaml")}
    for block in blocks:
        exec(block, namespace)
    (pipeline,) = started
    check_engine(pipeline)
    assert pipeline.engine is not None and pipeline.engine.kind == "sagemaker"
    assert f"s3://{pipeline.output.uri.split('/')[2]}/" in text


@pytest.mark.whole
def test_the_pipeline_for_aws_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied(DAYS, tmp_path))
    text = notebooks.read(DAYS).cells[-1]["source"]
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    Path("impressions.yaml").write_text(block)
    pipeline = sk.Pipeline.from_yaml("impressions.yaml")
    check_engine(pipeline)
    pipeline.function_ref()
    assert pipeline.engine is not None and pipeline.engine.kind == "sagemaker"
    assert pipeline.catalog is not None and pipeline.catalog.glue.table == pipeline.name
    assert pipeline.schedule is not None and pipeline.schedule.every == "3h"
