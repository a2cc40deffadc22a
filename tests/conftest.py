"""Fixtures of many tests: made-up input files, and the command line."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aws_models
import pytest
import warm
import warm_jobs
from emulators import locked, shared
from seconds import too_long
from slurm_cluster import Cluster, cluster

from shardkit.engines.local import LocalEngine
from shardkit.workers import forkserver

if TYPE_CHECKING:
    import subprocess

pytest_plugins = ["forks"]
START_JOB = LocalEngine._supervise
aws_models.share()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell; programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # otherwise its threads spin while NumPy is imported, in each process
# Workers of the tests' own processes end at once, with all that Python does at its end but to take modules apart: of
# what a worker takes that is half, for it copies what was shared until then. And they find loaded what modules of tests
# import, which is most of what a run with a function of such a module takes.
BOOTSTRAP = "import sys; sys.path[:] = {{path}}; import {}; from shardkit.workers.forks import main; "
BOOTSTRAP += "warm.run_to_the_end(lambda: main({{control}}))"
forkserver.BOOTSTRAP = BOOTSTRAP.format("pandas, pytest, warm")
# What most files of tests import when they begin.
LOADED = ("pandas", "pyarrow.dataset", "pyarrow.parquet", "shardkit.runs.start", "click.testing")
WriteFiles = Callable[..., Path]
RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


# The files whose tests take longest begin first, so that the end need not wait for one of them.
LONGEST = (
    *("deployed_queue", "docs", "notebooks", "object_store", "queue_scale", "jobs", "conformance"),
    *("examples", "stealing", "paused", "paused_commands", "history", "run", "manifests"),
    *("crash_safety", "jobs_crash", "merging", "iceberg", "s3_access", "cluster", "resume"),
    *("example", "days", "rows", "storm", "paused_servers", "provenance", "increments"),
    *("interrupted_store", "async", "plugins", "job_environments", "planning", "forecast"),
    *("webhook", "kept_aside", "data_checks", "computed_again", "training_jobs", "engine_contract"),
    *("strange_answers", "query", "catalog", "memory", "training_carriers", "random_pipelines"),
    *("storage_errors", "s3_faults", "report", "cleaning", "typing", "looking", "cli"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slurm" not in config.option.markexpr:  # scripts/test-slurm asks for these
        items[:] = [item for item in items if "slurm" not in item.keywords]
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collectstart() -> None:
    """There is no garbage among the million objects that are made until all tests are collected."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load what forks share, and let the garbage collector pass over it and over thousands of tests until the end.

    It looks less often than it would by itself.
    """
    if session.config.option.forks and not session.config.option.collectonly:
        for name in LOADED:
            importlib.import_module(name)
        warm.server()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Collect garbage once; in the end pytest does so five times more, each time with all that thousands of tests are."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that takes too long fails, unless it is marked as slow."""
    cpu_s, clock = _cpu_s(), time.monotonic()
    yield
    waiting = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    complaint = too_long(
        _cpu_s() - cpu_s,
        time.monotonic() - clock,
        programs=max(waiting, os.getloadavg()[0]) / (os.cpu_count() or 1),
    )
    if complaint and not set(item.keywords) & {"slow", "alone"}:
        pytest.fail(complaint)


def _cpu_s() -> float:
    return sum(os.times()[:4]) + warm.Forked.cpu_s


@pytest.fixture
def files(tmp_path: Path) -> WriteFiles:
    """Write files under ``tmp_path / root``: names, or names with their content; returns that folder."""

    def write(content: Iterable[str] | Mapping[str, str | bytes], root: str = "data") -> Path:
        texts = content if isinstance(content, Mapping) else dict.fromkeys(content, "x")
        folder = tmp_path / root
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        return folder

    return write


@pytest.fixture
def shardkit(tmp_path: Path) -> RunCommand:
    """Run ``python -m shardkit ...`` in ``tmp_path``; ``code`` is the exit code that is expected."""

    def run(*arguments: str | Path, code: int = 0, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        words = ["-m", "shardkit", *arguments]
        done = warm.run(words, cwd=cwd, env=os.environ | {"COLUMNS": "120"}, timeout_s=120)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder through which all processes of a test run find the servers that they share."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "servers"


@pytest.fixture(autouse=True, scope="session")
def _charts_made_once(servers: Path) -> Iterator[None]:
    """Have the first process that needs the library of charts put it together for all: it takes two seconds."""
    if not importlib.util.find_spec("vl_convert"):
        yield
        return
    import vl_convert

    make = vl_convert.javascript_bundle

    def bundle(*arguments: Any) -> str:
        file = servers / "charts.json"
        with locked(servers / "charts"):
            made = json.loads(file.read_text()) if file.exists() else {}
            if (about := json.dumps(arguments)) not in made:
                made[about] = make(*arguments)
                file.write_text(json.dumps(made))
        return made[about]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vl_convert, "javascript_bundle", bundle)
        yield


@pytest.fixture(scope="session")
def s3_url(servers: Path) -> Iterator[str]:
    """The URL of moto's S3, in which every test has a bucket of its own."""
    with shared("moto", servers / "moto") as url:
        yield url


@pytest.fixture(scope="session")
def ministack_url(servers: Path) -> Iterator[str]:
    """The URL of ministack: its DynamoDB is fast, its conditional writes are atomic, and its Athena runs queries."""
    with shared("ministack", servers / "ministack") as url:
        yield url


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    """A Slurm cluster of two nodes."""
    with cluster() as made:
        yield made


@pytest.fixture(autouse=True, scope="module")
def _jobs_as_forks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Local engines start their jobs as forks, but in the tests of engines."""
    with pytest.MonkeyPatch.context() as patched:
        if request.path.parent.name != "engines":
            patched.setattr(warm_jobs, "are_forks", True)
            patched.setattr(LocalEngine, "_supervise", LocalEngine._supervise)
            warm_jobs.use(lambda *words, **about: warm_jobs.asked(warm.address(), *words, **about))
        yield


@pytest.fixture
def jobs_as_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local engines start their jobs as they do for users, for a test that measures what a job takes."""
    monkeypatch.setattr(LocalEngine, "_supervise", START_JOB)


@pytest.fixture
def bare_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers find loaded what the program loads for them, and nothing else."""
    monkeypatch.setattr(forkserver, "BOOTSTRAP", BOOTSTRAP.format("warm"))
    forkserver.end_server()
    yield
    forkserver.end_server()
