"""The command line: help, exit codes, what goes to stdout and to stderr, and that it does the same as the library."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pyarrow.parquet as pq
import pytest
import warm
from in_process import InProcess
from terminal import said_in_terminal

import shardkit as sk
from shardkit.cli.app import cli

if TYPE_CHECKING:
    from conftest import RunCommand, WriteFiles

COMMANDS = ["try", "run", "plan", "status", "report", "logs", "stop", "failures", "checks", "replay", "query"]
COMMANDS += ["snapshots", "retry", "resume", "clean", "check", "origin", "verify", "diff", "pass1", "pass2", "init"]
COMMANDS += ["schedule", "workflow", "deploy", "jobs", "engine"]
MODULE = """
import sys
print("module imported")

def rows(record):
    print("printed by the function")
    if record.key.startswith("bad"):
        raise ValueError(f"no good: {record.key}")
    return {"key": record.key, "bytes": record.bytes, "group": record.key[0]}

def slow(record):
    import time
    time.sleep(0.12)  # the bar, on a busy machine, moves when it gets its turn
    print(f"seen {record.key}")
    return {"key": record.key}

def rule(key):
    print("printed by the rule")
    return key

def combine(batches):
    print("printed by combine")
    yield from batches

def broken_combine(batches):
    raise RuntimeError("combine is broken")
"""
YAML = """\
name: made-up
input: {uri: data/, pattern: "*.txt"}
function: module_of_cli:rows
max_failures: 1
workers: 1
output: {uri: out/}
"""
KEYS = {
    *("run_id", "status", "records", "rows", "files", "bytes_in", "bytes_out", "seconds", "output", "run_folder"),
    *("repeated", "quarantined_elsewhere", "counts", "log", "logged"),
}


def written(folder: Path) -> Path:
    """A folder with a pipeline: nine files that are good, one that is bad."""
    (folder / "data").mkdir()
    for name, text in {f"{letter}{n}": "x" * n for letter in "abc" for n in range(3)}.items() | {("bad", "x")}:
        (folder / "data" / f"{name}.txt").write_text(text)
    (folder / "module_of_cli.py").write_text(MODULE)
    (folder / "pipeline.yaml").write_text(YAML)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return written(tmp_path)


@dataclass
class Finished:
    """A project with two runs that have ended, for tests that only look at them, and what the commands said."""

    folder: Path
    quiet: str
    latest: str

    @property
    def latest_id(self) -> str:
        (run_id,) = re.findall(r"Run (\d{8}-\d{6}-\w{4}): done\.", self.latest)
        return str(run_id)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = written(tmp_path_factory.mktemp("finished"))
    said = []
    for words in (["--run-id", "first", "--quiet"], []):
        command = ["-m", "shardkit", "run", "pipeline.yaml", *words]
        done = warm.run(command, cwd=folder, env=os.environ | {"COLUMNS": "120"}, timeout_s=120)
        assert (done.returncode, done.stdout) == (0, "")
        said.append(done.stderr)
    return Finished(folder, *said)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    return InProcess(monkeypatch, "module_of_cli")


# ---- help ------------------------------------------------------------------------------------------------------


def test_the_commands() -> None:
    assert list(cli.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_says_what_every_option_is(tmp_path: Path, in_process: InProcess, command: str) -> None:
    text = in_process(tmp_path, command, "--help").stdout
    assert f"shardkit {command}" in text.split("Examples:")[1]
    itself = command_itself(command)
    for parameter in itself.params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.name
            assert max(parameter.opts, key=len) in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_of_each_what_its_own_help_begins_with(command: str) -> None:
    itself = command_itself(command)
    assert itself.name == command
    assert cli.commands[command].help == itself.get_short_help_str(limit=1000)


def command_itself(name: str) -> click.Command:
    """A command, and not only what the list of commands knows of it."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


# Forks for each command once Python and the list of commands are there, and prints the CPU seconds that it has then.
HELP_OF_EACH = """
import json, os, resource, sys
from shardkit.cli import app

began = sum(os.times()[:2])
seconds = {}
for command in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv[1:] = [command, "--help"] if command else ["--help"]
        from shardkit.__main__ import main
        main()
    _, status, used = os.wait4(pid, 0)
    assert not status, command
    seconds[command] = began + used.ru_utime + used.ru_stime
print(json.dumps(seconds))
"""


@pytest.mark.whole
def test_help_comes_at_once() -> None:
    """CPU seconds do not depend on what else runs."""
    slow = ["", *COMMANDS]
    for _ in range(3):
        words = [sys.executable, "-c", HELP_OF_EACH, json.dumps(slow)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        slow = [command for command, seconds in json.loads(done.stdout).items() if seconds >= 0.3]
        if not slow:
            break
    assert not slow


def test_version(shardkit: RunCommand) -> None:
    assert shardkit("--version").stdout.split() == ["shardkit,", "version", sk.__version__]


# ---- run -------------------------------------------------------------------------------------------------------


def test_run(finished: Finished) -> None:
    assert finished.latest_id
    assert "10 listed = 9 done + 1 quarantined + 0 skipped" in finished.latest
    assert "within max_failures" in finished.latest
    assert "bad.txt: ValueError: no good: bad.txt" in finished.latest
    assert f"shardkit retry {finished.folder / 'out'}" in finished.latest
    assert "printed by the function" in finished.latest
    assert len(pq.read_table(finished.folder / "out")) == 9


def test_run_json(project: Path, shardkit: RunCommand) -> None:
    done = shardkit(
        "run",
        "pipeline.yaml",
        "--json",
        "--quiet",
        "--set",
        "records=module_of_cli:rule",
        "--set",
        "combine=module_of_cli:combine",
    )
    assert done.stdout.count("\n") == 1  # whatever the user's own code prints
    found = json.loads(done.stdout)
    assert set(found) == KEYS
    run = sk.open_run(project / "out")
    assert found == run.summary().to_dict()
    assert found["records"] == {"listed": 10, "done": 9, "quarantined": 1, "skipped": 0}
    assert (found["status"], found["rows"], found["files"], found["bytes_in"]) == ("done", 9, 1, 10)
    assert found["bytes_out"] == sum(p.stat().st_size for p in (project / "out").glob("*.parquet"))
    assert found["output"] == str(project / "out")
    assert found["run_folder"] == str(run.path)
    for text in ("printed by the rule", "printed by combine", "printed by the function", "module imported"):
        assert text in done.stderr


def test_run_without_a_file(project: Path, shardkit: RunCommand) -> None:
    done = shardkit(
        "run", "--function", "module_of_cli:rows", "--input", "data", "--output", "other", "--pattern", "a*", "--pattern", "b*",
        "--exclude", "bad*", "--workers", "1", "--rows-per-file", "4", "--format", "jsonl", "--name", "mine", "--run-id", "my-run", "--json", "-q",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["run_id"], found["rows"], found["files"]) == ("my-run", 6, 2)
    assert sorted(p.suffix for p in (project / "other").iterdir() if p.is_file()) == [".jsonl", ".jsonl"]


@pytest.mark.whole
def test_a_run_that_fails(project: Path, shardkit: RunCommand, in_process: InProcess) -> None:
    done = shardkit("run", "pipeline.yaml", "--json", "--set", "max_failures=0", code=1)
    assert "1 of 10 records is quarantined" in done.stderr or "1 of 10 records are quarantined" in done.stderr
    assert "Error: Run " in done.stderr
    assert "ValueError: no good: bad.txt" in done.stderr
    assert "shardkit failures" in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {*KEYS, "reason"}
    assert "no good: bad.txt" in found["reason"]
    assert found["status"] == "failed"
    assert found["records"]["quarantined"] == 1
    assert "failed" in in_process(project, "status", "out").stdout


@pytest.mark.whole
def test_a_broken_combine_shows_the_users_own_traceback_only(project: Path, shardkit: RunCommand) -> None:
    done = shardkit("run", "pipeline.yaml", "-q", "--combine", "module_of_cli:broken_combine", code=1)
    assert "Error: combine: module_of_cli:broken_combine raised RuntimeError: combine is broken" in done.stderr
    assert "in broken_combine" in done.stderr
    assert "shardkit/pass2_combine.py" not in done.stderr
    done = shardkit("resume", "out", "-q", "--set", "combine=null", "--json")
    assert json.loads(done.stdout)["rows"] == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Give a PIPELINE.yaml, or --function, --input, --output"),
        (["run", "--function", "a:b", "--input", "data"], "Give a PIPELINE.yaml, or --output"),
        (
            ["run", "absent.yaml"],
            "Error: Cannot read the pipeline absent.yaml: No such file or directory. shardkit init",
        ),
        (["run", "pipeline.yaml", "--nonsense"], "No such option"),
        (["run", "pipeline.yaml", "--run-id", "a/b"], "run id 'a/b' is not allowed"),
        (
            ["run", "pipeline.yaml", "--workers", "many"],
            "Error: workers: expected 'auto' or a number of 1 or more, not \"many\"",
        ),
        (["run", "pipeline.yaml", "--set", "input.uri=absent"], "absent does not exist"),
        (["run", "pipeline.yaml", "--set", "input.uri=ftp://host/x"], "knows no storage of kind ftp"),
        (["run", "pipeline.yaml", "--set", "function=module_of_cli:row"], "Did you mean module_of_cli:rows?"),
        (["run", "pipeline.yaml", "--set", "combine=module_of_cli:combin"], "Did you mean module_of_cli:combine?"),
        (["run", "pipeline.yaml", "--set", "output.uri=."], "holds the input"),
        (["plan", "pipeline.yaml", "--sample", "0"], "The sample is to have 0 records: expected 1 or more"),
        (["plan", "pipeline.yaml", "--sample", "x"], "'x' is not a valid integer"),
        (["status", "absent"], "holds no run of shardkit"),
        (["status", "data"], "holds no run of shardkit"),
        (["status"], "Missing argument 'OUTPUT'"),
        (["failures", "pipeline.yaml"], "holds no run of shardkit"),
        (["retry", "out"], "holds no run of shardkit"),
        (["resume", "out"], "holds no run of shardkit"),
        (["pass1", "--input", "data", "--output", "p"], "--function"),
        (["pass1", "--function", "module_of_cli:rows", "--output", "p"], "Give --input and --output"),
        (["pass2", "--output", "p"], "Give --input and --output"),
        (["pass2", "--input", "data", "--output", "p"], "data holds no Parquet files"),
        (["pass2", "--input", "absent", "--output", "p"], "absent does not exist"),
        (["init", "nonsense", "d"], "'nonsense' is not one of 'mimic', 'talent', 'blank'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
    ids=" ".join,
)
def test_usage_errors(project: Path, in_process: InProcess, arguments: list[str], message: str) -> None:
    done = in_process(project, *arguments, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (project / "out").exists()


# ---- plan ------------------------------------------------------------------------------------------------------


def tree(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*") if "__pycache__" not in p.parts)


@pytest.mark.whole
def test_plan_leaves_nothing_behind(
    project: Path, shardkit: RunCommand, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = tree(project)
    text = shardkit("plan", "pipeline.yaml").stdout
    assert "10 listed, 0 in no record" in text
    assert "10 of 10 B in 1 group" in text
    assert str(project / "out") in text
    assert tree(project) == before
    done = shardkit("plan", "pipeline.yaml", "--json", "--set", "records=module_of_cli:rule")
    found = json.loads(done.stdout)
    assert found["totals"]["records"] == 10
    assert "printed by the rule" in done.stderr
    assert tree(project) == before


@pytest.mark.whole
def test_plan_sample(project: Path, shardkit: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = project / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = tree(project)
    done = shardkit("plan", "pipeline.yaml", "--sample", "4")
    assert "From a sample of 4 of 10 records" in done.stdout
    for word in ("time", "memory", "output", "a worker"):
        assert word in done.stdout
    assert tree(project) == before
    found = json.loads(shardkit("plan", "pipeline.yaml", "--sample", "100", "--json").stdout)
    assert found["estimate"]["sampled"] == 10
    assert found["estimate"]["rows"] == 9
    assert [entry["key"] for entry in found["estimate"]["failures"]] == ["bad.txt"]
    assert found["estimate"]["memory_bytes"] > 20_000_000
    assert tree(project) == before


def test_plan_shows_groups(project: Path, files: WriteFiles, shardkit: RunCommand) -> None:
    files({f"p{n % 3:02d}/{n}.txt": "x" * 1000 * n for n in range(12)})
    text = shardkit("plan", "pipeline.yaml", "--set", "shards={depth: 1}", "--set", "input.exclude=*[a-c]*.txt").stdout
    assert "12 of 66.0 kB in 3 groups" in text
    assert re.search(r"p02 +4 records +26\.0 kB", text)


# ---- status, failures, retry, resume ----------------------------------------------------------------------------


def test_looking_at_a_run(finished: Finished, in_process: InProcess) -> None:
    folder, latest = finished.folder, finished.latest_id
    for target in ("out", "pipeline.yaml", folder / "out"):  # the YAML file will do too
        text = in_process(folder, "status", target).stdout
        assert f"Run {latest}: done." in text  # the latest by default
        assert "9 rows in 1 file" in text
    assert json.loads(in_process(folder, "status", "out", "--run-id", "first", "--json").stdout)["run_id"] == "first"
    done = in_process(folder, "status", "out", "--run-id", "frist", code=2)
    assert "holds no run frist. Did you mean first?" in done.stderr
    done = in_process(folder, "status", "out", "--run-id", "another", code=2)
    assert f"Its latest is {latest}." in done.stderr

    done = in_process(folder, "failures", "pipeline.yaml")
    assert done.stdout == "bad.txt (1 B, shard 0): ValueError: no good: bad.txt\n"
    assert f"1 record of run {latest} is in quarantine" in done.stderr
    done = in_process(folder, "failures", "out", "--traceback")
    assert 'raise ValueError(f"no good: {record.key}")' in done.stdout
    entry = json.loads(in_process(folder, "failures", "out", "--json").stdout)
    assert (entry["key"], entry["error"], entry["bytes"]) == ("bad.txt", "ValueError", 1)
    assert "in rows" in entry["traceback"]


@pytest.mark.whole
def test_retry_and_resume(project: Path, shardkit: RunCommand, in_process: InProcess) -> None:
    shardkit("run", "pipeline.yaml", "-q")
    (project / "module_of_cli.py").write_text(MODULE.replace('startswith("bad")', 'startswith("never")'))
    done = in_process(project, "resume", "pipeline.yaml", "--set", "output.rows_per_file=5", code=2)
    assert "The source of module_of_cli:rows has changed" in done.stderr
    found = json.loads(shardkit("retry", "pipeline.yaml", "--json", "-q").stdout)
    assert found["records"] == {"listed": 10, "done": 10, "quarantined": 0, "skipped": 0}
    assert found["rows"] == 10
    done = shardkit("resume", "out", "--set", "output.rows_per_file=5", "--changed-function", "--json", "-q")
    assert json.loads(done.stdout)["files"] == 2
    done = in_process(project, "resume", "out", "--set", "records=stem", code=2)
    assert "records cannot change between a run and its resumption" in done.stderr
    done = in_process(project, "resume", "out", "--set", "output.rows=5", "--changed-function", code=2)
    assert "output.rows: unknown field" in done.stderr


# ---- pass 1 and pass 2 alone -------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_two_passes_alone(project: Path, files: WriteFiles) -> None:
    """Each is a command and a module, which do the same."""
    files({f"g{n}/{i}.txt": "x" for n in range(2) for i in range(6)}, "groups")
    commands = ["shardkit pass1", "shardkit pass2"]
    modules = ["shardkit.pass1_preprocessing", "shardkit.pass2_combine"]

    def call(program: str, arguments: str) -> subprocess.CompletedProcess[str]:
        words = ["-m", *program.split(), *arguments.split()]
        done = warm.run(words, cwd=project, env=os.environ, timeout_s=60)
        assert done.returncode == 0, done.stderr
        return done

    for n, pass1 in enumerate((commands[0], modules[0])):
        done = call(pass1, f"--input groups/g{n} --output parts/g{n} --function module_of_cli:rows --json -q")
        assert json.loads(done.stdout)["rows"] == 6
        assert sum(len(pq.read_table(p)) for p in (project / "parts" / f"g{n}").glob("*.parquet")) == 6
    found = json.loads(call(commands[1], "--input parts/g0 parts/g1 --output all --rows-per-file 5 --json -q").stdout)
    assert (found["rows"], found["files"], found["status"]) == (12, 3, "done")
    assert found["records"] == {"listed": 12, "done": 12, "quarantined": 0, "skipped": 0}
    assert found["bytes_in"] > 0
    assert "--help" in call(modules[0], "--help").stdout
    found = json.loads(call(modules[1], "--input parts/g1 --output all --partition-by group --json -q").stdout)
    assert found["rows"] == 6
    assert not list((project / "all").glob("*.parquet"))  # the earlier dataset is gone
    assert list((project / "all" / "group=0").glob("*.parquet"))


@pytest.mark.whole
def test_looking_at_a_run_of_pass2(project: Path, shardkit: RunCommand, in_process: InProcess) -> None:
    command = "pass1 --input data --output parts --function module_of_cli:rows --max-failures 1 -q"
    shardkit(*command.split())
    shardkit("pass2", "--input", "parts", "--output", "all", "-q")
    assert "10 listed = 9 done + 1 quarantined" in in_process(project, "status", "all").stdout
    assert in_process(project, "failures", "all").stdout == ""
    for command in ("resume", "retry"):
        assert "Give the pass2 command again." in in_process(project, command, "all", code=2).stderr


@pytest.mark.whole
def test_pass2_waits_for_pass1(project: Path, shardkit: RunCommand, in_process: InProcess) -> None:
    command = "pass1 --input data --output parts --function module_of_cli:rows --max-failures 0 -q"
    assert "max_failures" in shardkit(*command.split(), code=1).stderr
    done = in_process(project, "pass2", "--input", "parts", "--output", "all", code=2)
    assert re.search(r"Run \S+ in .*parts is not finished", done.stderr)


# ---- init --------------------------------------------------------------------------------------------------------


def test_init_writes_what_runs(shardkit: RunCommand, tmp_path: Path) -> None:
    """Those of the examples are in tests/project/test_notebooks.py, as parts of what their notebooks need."""
    done = shardkit("init", "blank", "new/place")
    assert done.stdout == ""
    assert "Run it: cd new/place && shardkit run pipeline.yaml" in done.stderr
    result = json.loads(shardkit("run", "pipeline.yaml", "--json", "-q", cwd=tmp_path / "new" / "place").stdout)
    assert result["status"] == "done"
    assert result["rows"] > 0
    assert "Traceback" not in shardkit("plan", "new/place/pipeline.yaml").stderr


def test_init_touches_nothing_that_is_there(in_process: InProcess, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pipeline.yaml").write_text("my own")
    done = in_process(tmp_path, "init", "blank", "mine", code=2)
    assert "mine/pipeline.yaml exists already. Choose another folder." in done.stderr
    assert os.listdir(tmp_path / "mine") == ["pipeline.yaml"]

    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data" / "file-001.txt").write_text("precious")
    done = in_process(tmp_path, "init", "blank", "other", code=2)
    assert "other/data exists already" in done.stderr
    assert (tmp_path / "other" / "data" / "file-001.txt").read_text() == "precious"

    (tmp_path / "file").write_text("x")
    done = in_process(tmp_path, "init", "blank", "file", code=2)
    assert "file is a file" in done.stderr
    assert (tmp_path / "file").read_text() == "x"

    (tmp_path / "harmless").mkdir()
    (tmp_path / "harmless" / ".git").mkdir()
    in_process(tmp_path, "init", "blank", "harmless")


# ---- seeing it ---------------------------------------------------------------------------------------------------


def test_quiet(finished: Finished) -> None:
    assert "records/s" not in finished.quiet
    assert "merging" not in finished.quiet
    assert "Run " in finished.quiet  # how it ended is printed all the same


def test_plain_lines_where_stderr_is_no_terminal(project: Path, shardkit: RunCommand) -> None:
    done = shardkit("run", "pipeline.yaml", "--set", "function=module_of_cli:slow")
    lines = done.stderr.splitlines()
    assert any(
        re.match(r"10/10 records \| 0 quarantined \| 10 B \| .*records/s, .*B/s \| .* s$", line) for line in lines
    )
    assert any(re.match(r"merging: 10/10 rows", line) for line in lines)
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def in_terminal(words: list[str], cwd: Path, **environment: str) -> str:
    """What the program writes to its terminal."""
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120"} | environment
    return said_in_terminal(["-m", "shardkit", *words], cwd=cwd, env=env)


@pytest.mark.whole
def test_a_live_bar_on_a_terminal(project: Path, files: WriteFiles) -> None:
    files({f"more-{n:02d}.txt": "x" for n in range(30)})
    command = ["run", "pipeline.yaml", "--set", "function=module_of_cli:slow"]
    seen = in_terminal(command, project)
    assert "\x1b[" in seen
    assert "━" in seen
    updates = re.findall(r"(\d+)/40 records", seen)
    assert len(set(updates)) >= 3  # it moves
    assert updates[-1] == "40"
    assert "ETA" in seen
    assert "quarantined" in seen
    assert "40 listed = 40 done" in seen
    assert seen.count("\r\x1b[2Kseen ") == 40  # each print takes the bar's line, and the bar comes below
    assert "\x1b[?25h" in seen  # the cursor is back
    command += ["--set", "input.pattern=more-0*.txt"]
    plain = in_terminal([*command, "--run-id", "dumb"], project, TERM="dumb")
    assert "\x1b" not in plain
    assert plain.count("seen ") == 10
    quiet = in_terminal([*command, "--run-id", "quiet", "--quiet"], project)
    assert "records/s" not in quiet


LATE_DISPLAY = """
import json, sys, threading
import shardkit as sk
from shardkit.runfolder.display import Quiet

class LateDisplay(Quiet):
    begun = moved = threading.Event()
    early, lines = [], []

    def start(self, total):
        self.begun, self.moved = threading.Event(), threading.Event()
        self.moved.wait(0.7)  # it does not come, or too early
        self.begun.set()

    def update(self, done, line):
        (self.lines if self.begun.is_set() else self.early).append(line)
        self.moved.set()

display = LateDisplay()
import shardkit.runs.here
shardkit.runs.here.make_progress = lambda **_: display
sk.run(lambda record: {"key": record.key}, "data", "out", workers=1)
print(json.dumps({"early": display.early, "lines": display.lines}))
"""


def test_a_display_is_not_moved_before_it_is_there(tmp_path: Path) -> None:
    """One that takes its time to begin, as on a busy machine."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("x")
    done = warm.run(["-c", LATE_DISPLAY], cwd=tmp_path, env=os.environ, timeout_s=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not told["early"]
    assert any("1/1 records" in line for line in told["lines"])
    assert any("merging: 1/1 rows" in line for line in told["lines"])


# ---- the package in other hands ------------------------------------------------------------------------------------


def test_the_console_script_is_the_module(shardkit: RunCommand) -> None:
    script = Path(sys.executable).with_name("shardkit")
    if not script.exists():
        pytest.skip("the package is not installed")
    done = subprocess.run(
        [str(script), "plan", "--help"], capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"}
    )
    assert done.stdout == shardkit("plan", "--help").stdout


@pytest.mark.whole
def test_a_closed_pipe_is_no_traceback(finished: Finished) -> None:
    done: Any = subprocess.run(
        f"{sys.executable} -m shardkit failures out --traceback | head -c 1",
        shell=True,
        cwd=finished.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("moment", ["loading", "tidying up"])
def test_ctrl_c_before_and_after_the_work_shows_no_traceback(tmp_path: Path, moment: str) -> None:
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    if moment == "loading":
        (tmp_path / "pydantic.py").write_text(interrupt)
        (tmp_path / "click.py").write_text(interrupt)
        start = "from shardkit.__main__ import main"
    else:
        start = f"import weakref; from shardkit.__main__ import main; weakref.finalize(main, exec, {interrupt!r})"
    code = f"import sys; sys.argv[1:] = ['status', '--help']; {start}; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 or moment == "tidying up"
    assert "Traceback" not in done.stderr
