"""Functions that raise, die, hang and worse: they cost their own record and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from crashing import LINUX, TESTS, Project, check_ledger, rows_of
from zoo import HOARD_MIB, RECORD_BYTES, content

import shardkit as sk

pytestmark = LINUX
Rows = list[dict[str, Any]]

# What each of the zoo's functions that fail is quarantined with: error, signal, a part of the message.
EXCEPTIONS = {
    "raises": ("ValueError", "cannot make sense of"),
    "exits": ("SystemExit", "the function wanted to leave"),
    "recurses": ("RecursionError", "maximum recursion depth"),
    "interrupts": ("KeyboardInterrupt", ""),
    "raises_unprintable": ("Unprintable", ""),
    "raises_bytes": ("ValueError", "caf"),
    "returns_unusable": ("TypeError", "the function returned int; it must return a DataFrame"),
    "returns_unstorable": ("TypeError", "column 'value' cannot be stored"),
    "raises_when_converted": ("TypeError", "column 'time' cannot be stored: a tzinfo subclass must"),
    "yields_then_raises": ("RuntimeError", "the second half is damaged"),
    "runs_out_of_memory": ("MemoryError", ""),
}
UNSTORABLE = ("returns_unstorable", "raises_when_converted")  # found when several records' rows are converted
DEATHS = {
    "leaves": (None, "exited with code 9"),
    "segfaults": ("SIGSEGV", "SIGSEGV"),
    "is_killed": ("SIGKILL", "out of memory"),
}
HANGS = ("sleeps", "hangs_in_c")
RUDE = ("prints", "closes_stdout", "closes_descriptor", "forks_and_returns_twice", "forks_and_leaves")
TIMEOUT_S = 5.0  # also where somebody else keeps the machine busy


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def run_zoo(project: Project, contents: list[str], **fields: Any) -> sk.Run:
    project.write_records(contents)
    fields = {"max_failures": "100%", "workers": 2} | fields
    return project.run(function="zoo:features", source_dir=TESTS, **fields)


def peaceful(folder: Path, count: int, **fields: Any) -> Rows:
    """The rows of an undisturbed run over as many records, in as many chunks."""
    return rows_of(run_zoo(Project(folder), [content()] * count, **fields))


def without(rows: Rows, contents: list[str]) -> Rows:
    """Those of a run's rows that are not of bad records."""
    bad = {f"r{i:03d}.txt" for i, text in enumerate(contents) if text.strip() not in {"good", *RUDE}}
    return [row for row in rows if row["key"] not in bad]


def quarantine(run: sk.Run) -> dict[str, dict[str, Any]]:
    return {entry["key"]: entry for entry in run.quarantine()}


WHOLE = pytest.mark.whole


# Each rule once: with several workers those in which they share the records, each by an order of its own.
@WHOLE
@pytest.mark.parametrize(("chunks", "workers"), [("dynamic", 3), ("balanced", 3), ("even", 1)])
def test_the_dataset_is_that_of_an_undisturbed_run_without_the_bad_records(
    project: Project, tmp_path: Path, chunks: str, workers: int
) -> None:
    contents = [content()] * 90
    kinds = [*EXCEPTIONS, *RUDE, *DEATHS, *HANGS]
    bad = [0, 1, 2, 9, 11, 30, 31, 45, 47, 49, 50, *range(60, 68), 88, 89]  # the first, the last, neighbours
    assert len(kinds) == len(bad)
    for position, kind in zip(bad, kinds, strict=True):
        contents[position] = content(kind)
    run = run_zoo(project, contents, chunks=chunks, workers=workers, timeout=TIMEOUT_S)
    undisturbed = peaceful(tmp_path / "peace", len(contents), chunks=chunks, workers=workers)
    assert rows_of(run) == without(undisturbed, contents)
    summary = check_ledger(run)
    assert summary.status == "done"
    assert summary.records == {"listed": 90, "done": 74, "quarantined": 16, "skipped": 0}
    entries = quarantine(run)
    assert {contents[int(key[1:4])].strip() for key in entries} == {*EXCEPTIONS, *DEATHS, *HANGS}
    for key, entry in entries.items():
        check_entry(contents[int(key[1:4])].strip(), entry)


def check_entry(kind: str, entry: dict[str, Any]) -> None:
    assert entry["bytes"] == RECORD_BYTES
    assert entry["seconds"] is None if kind in UNSTORABLE else entry["seconds"] >= 0
    if kind in EXCEPTIONS:
        assert (entry["error"], entry["signal"]) == (EXCEPTIONS[kind][0], None)
        assert EXCEPTIONS[kind][1] in entry["message"]
        assert "shardkit/" not in entry["traceback"]
    elif kind in DEATHS:
        assert (entry["error"], entry["signal"]) == ("WorkerDied", DEATHS[kind][0])
        assert DEATHS[kind][1] in entry["message"]
        assert entry["peak_memory_bytes"] > (HOARD_MIB << 20 if kind == "is_killed" else 10 << 20)
    else:
        assert (entry["error"], entry["signal"]) == ("TimeoutError", "SIGKILL")
        assert f"longer than {TIMEOUT_S:g} s" in entry["message"]
        assert TIMEOUT_S <= entry["seconds"] < 4 * TIMEOUT_S
        assert entry["peak_memory_bytes"] > 10 << 20


@pytest.mark.whole
@pytest.mark.parametrize("kinds", [[*EXCEPTIONS], [*DEATHS]], ids=["exceptions", "deaths"])
def test_bad_records_beside_each_other_in_one_chunk(project: Project, kinds: list[str]) -> None:
    contents = [content()] * 4 + [content(kind) for kind in kinds] + [content()] * 4
    run = run_zoo(project, contents, chunks="even", workers=1)
    assert len({path.name.partition("-")[0] for path in project.markers()}) == 1
    entries = run.quarantine()
    assert [contents[entry["record"]].strip() for entry in entries] == kinds
    for kind, entry in zip(kinds, entries, strict=True):
        check_entry(kind, entry)
    good = [f"r{i:03d}.txt" for i, text in enumerate(contents) if text == content() for _ in range(i % 4)]
    assert [row["key"] for row in rows_of(run)] == good
    check_ledger(run)


@WHOLE
@pytest.mark.parametrize("kind", HANGS)
def test_a_record_that_hangs_is_ended_after_the_timeout(project: Project, kind: str) -> None:
    run = run_zoo(
        project, [content(), content(), content(kind), content()], chunks="even", workers=1, timeout=TIMEOUT_S
    )
    (entry,) = run.quarantine()
    check_entry(kind, entry)
    assert [row["key"] for row in rows_of(run)] == ["r001.txt"] + ["r003.txt"] * 3


@pytest.mark.whole
def test_a_traceback_shows_the_users_frames_only(project: Project) -> None:
    run = run_zoo(project, [content("raises"), content()])
    (entry,) = run.quarantine()
    frames = [line for line in entry["traceback"].splitlines() if line.startswith("  File ")]
    assert [frame.rpartition(" ")[2] for frame in frames] == ["features", "raises", "_deep_inside"]
    assert all("zoo.py" in frame for frame in frames)
    assert entry["traceback"].rstrip().endswith("ValueError: cannot make sense of r000.txt")


@pytest.mark.parametrize("kind", ["raises", pytest.param("segfaults", marks=WHOLE)])
def test_every_record_bad(project: Project, kind: str) -> None:
    with pytest.raises(sk.NothingMade, match="all 4 records are quarantined") as caught:
        run_zoo(project, [content(kind)] * 4, chunks="even")
    assert caught.value.run is not None
    assert check_ledger(caught.value.run).records == {"listed": 4, "done": 0, "quarantined": 4, "skipped": 0}
    assert project.data_files() == []


def test_no_row_of_a_record_that_fails_half_way_remains(project: Project) -> None:
    run = run_zoo(project, [content("yields_then_raises"), content()] * 3, chunks="even", workers=1)
    assert len(run.quarantine()) == 3
    assert not [row for row in rows_of(run) if row["value"] == -1.0]


@WHOLE
def test_a_record_whose_rows_kill_the_worker_only_when_they_are_converted(project: Project, tmp_path: Path) -> None:
    contents = [content()] * 12
    contents[5] = content("dies_when_converted")
    run = run_zoo(project, contents, chunks="even", workers=1)
    (entry,) = run.quarantine()
    assert (entry["key"], entry["error"]) == ("r005.txt", "WorkerDied")
    assert "exited with code 7" in entry["message"]
    assert rows_of(run) == without(peaceful(tmp_path / "peace", 12, chunks="even", workers=1), contents)


@WHOLE
def test_rows_for_which_there_is_no_memory(project: Project) -> None:
    project.write_records([content(kind) for kind in ("good", "good", "returns_too_much", "good")])
    arguments = project.run_arguments(
        function="zoo:features", source_dir=TESTS, max_failures=1, workers=1, chunks="even"
    )
    assert "Traceback" not in project.command(*arguments).stderr
    run = sk.open_run(project.out)
    (entry,) = run.quarantine()
    assert (entry["key"], entry["error"]) == ("r002.txt", "MemoryError")
    assert "not enough memory to store the rows" in entry["message"]
    assert [row["key"] for row in rows_of(run)] == ["r001.txt"] + ["r003.txt"] * 3


@pytest.mark.whole
def test_a_worker_whose_child_lives_on_is_known_to_be_dead(project: Project) -> None:
    try:
        run = run_zoo(project, [content(), content("forks_and_dies"), content()])
        children = list(project.root.glob("child-of-*"))
        assert children
        (entry,) = run.quarantine()
        assert (entry["key"], entry["signal"]) == ("r001.txt", "SIGABRT")
    finally:
        for note in project.root.glob("child-of-*"):
            note.unlink()


@pytest.mark.whole
def test_stdout_stays_clean_whatever_the_function_prints(project: Project) -> None:
    kinds = [*RUDE, "good", "raises", *RUDE, "good", "prints"]
    project.write_records([content(kind) for kind in kinds])
    done = project.command(
        *project.run_arguments(
            function="zoo:features", source_dir=TESTS, max_failures="100%", workers=1, chunks="even"
        ),
        "--json",
    )
    assert done.summary["records"] == {"listed": 14, "done": 13, "quarantined": 1, "skipped": 0}
    assert "from the user's function, to stdout" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.whole
def test_no_traceback_of_the_program_itself_reaches_the_terminal(project: Project) -> None:
    project.write_records([content(kind) for kind in ("raises", "good", "leaves", "segfaults")])
    arguments = project.run_arguments(function="zoo:features", source_dir=TESTS, max_failures="100%", workers=6)
    done = project.command(*arguments)  # with two workers for which there is no work
    assert "just before the segfault" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.whole
def test_failures_are_shown_whatever_bytes_their_messages_hold(project: Project) -> None:
    run_zoo(project, [content("raises_bytes"), content("raises_unprintable"), content()])
    shown = project.command("failures", project.out, "--traceback")
    assert "caf" in shown.stdout
    lines = project.command("failures", project.out, "--json").stdout.splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["r000.txt", "r001.txt"]


LEAKY = """
import os, signal
calls = 0
def features(record):
    # The worker dies at every 3rd record that it works on, whichever that is.
    global calls
    calls += 1
    if calls % 3 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"key": record.key}
"""


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=WHOLE)])
def test_a_record_is_not_to_blame_for_what_others_left_behind(project: Project, workers: int) -> None:
    project.write_records([content()] * 6)
    project.write_function(LEAKY)
    run = project.run(workers=workers, chunks="even", max_failures=0)
    assert [row["key"] for row in rows_of(run)] == [f"r{i:03d}.txt" for i in range(6)]
    assert not run.quarantine()


LOADING = {
    "an import that raises": ("import no_such_module_anywhere", sk.PipelineError, "no_such_module_anywhere"),
    "an import that exits": ("raise SystemExit('no licence found')", sk.PipelineError, "no licence found"),
    "an import that kills": ("import os; os._exit(5)", sk.RunFailed, "while it loaded the function.*code 5"),
    "a class that raises": ("class features:\n    def __init__(self):\n        1 / 0", sk.PipelineError, "division"),
}


@pytest.mark.parametrize("name", LOADING)
def test_a_function_that_cannot_be_loaded_ends_the_run_with_its_reason(project: Project, name: str) -> None:
    source, kind, tells = LOADING[name]
    project.write_records([content()] * 3)
    project.write_function(source if "features" in source else f"{source}\ndef features(record):\n    return None\n")
    with pytest.raises(kind, match=tells) as caught:
        project.run(workers=2)
    assert "shardkit/" not in str(caught.value)
    failed = sk.open_run(project.out)
    assert failed.summary().status == "failed"
    if name == "a class that raises":  # as every other, the run goes on once the function is mended
        # Of another length: Python takes a module of the same second and length for the one that it has compiled.
        project.write_function("def features(record):\n    return {'name': record.key}\n")
        failed.resume(quiet=True, changed_function=True)
        assert len(project.rows()) == 3


def test_an_import_that_kills_is_tried_three_times(project: Project) -> None:
    project.write_records([content()] * 3)
    loads = project.root / "loads"
    project.write_function(f"import os\nopen({str(loads)!r}, 'a').write('+')\nos._exit(5)\ndef features(record): ...\n")
    with pytest.raises(sk.RunFailed, match="A worker died 3 times while it loaded the function"):
        project.run(workers=1)
    assert loads.read_text() == "+++"


@WHOLE
def test_workers_that_cannot_be_started(project: Project) -> None:
    project.write_records([content()] * 4)
    arguments = project.run_arguments(function="zoo:features", source_dir=TESTS, workers=16)
    few_files = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)); "
    program = few_files + "from shardkit.cli.app import main; main(sys.argv[1:])"
    (line,) = project.command(*arguments, "--quiet", expect=1, code=program).stderr.splitlines()
    assert line.startswith("Error: Cannot start a worker process: Too many open files. Use fewer workers")


def test_nothing_is_left_in_shared_memory(project: Project) -> None:
    before = {path.name for path in Path("/dev/shm").glob("shardkit-*")}
    run_zoo(project, [content("segfaults"), content()])
    assert {path.name for path in Path("/dev/shm").glob("shardkit-*")} <= before


# What is flushed to the disk, and what appears in a folder, in their order: in a worker, or in the program.
NOTED = """
import os
from pathlib import Path
LOG = Path(__file__).with_name("log")

def noted(what, call):
    def call_and_note(first, *more, **options):
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
        call(first, *more, **options)
        with LOG.open("a") as log:
            log.write(" ".join([what, path, *map(os.fspath, more)]) + "\\n")
    return call_and_note

CALLS = {what: noted(what, getattr(os, what)) for what in ("fsync", "replace", "link")}

def features(record):
    vars(os).update(CALLS)
    return {"key": record.key}
"""


def test_what_appears_is_on_the_disk_and_so_is_all_that_it_names(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure there is no marker, result or dataset that is empty or whose files are."""
    project.write_records(["x"] * 6)
    project.write_function(NOTED)
    namespace = {"__file__": str(project.root / "work.py")}
    exec(NOTED, namespace)
    for what, call in namespace["CALLS"].items():
        monkeypatch.setattr(os, what, call)
    project.run(workers=1, rows_per_file=3)
    monkeypatch.undo()

    appeared, flushed = [], set()
    for line in (project.root / "log").read_text().splitlines():
        what, source, *target = line.split()
        if what == "fsync":
            flushed.add(source)
        else:
            assert source in flushed, line
            flushed |= set(target)
            appeared.append(target[0])
        if "/markers/" in line and target:
            parts = json.loads(Path(target[0]).read_text())["parts"]
            assert parts and all(any(path.endswith(part["name"]) for path in flushed) for part in parts)
    (first, *_), files = project.markers(), project.data_files()
    assert str(first) in appeared and len(files) == 2 and {str(project.out / name) for name in files} <= flushed
    assert {Path(path).name for path in appeared} >= {"plan.json", "result.json", "current.json"}
