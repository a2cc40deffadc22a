"""The advice of a run that failed or has set records aside: in Python as Python, on the command line as commands."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from crashing import Project, rows_of

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.cli.run_lines import failure_lines, grouped_failure_lines
from shardkit.hints import Hint, as_command

if TYPE_CHECKING:
    from pathlib import Path

WORK = """
def features(record):
    if open(record).read() == "bad":
        raise ValueError(f"{record.key} is bad")
    return {"key": record.key}

def other(record):
    return {"other": record.key}
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run that has too much in quarantine, its function sent by value."""
    project = Project(tmp_path_factory.mktemp("project") / "the user's")
    project.write_records(["good", "bad", "good"])
    project.write_function(WORK)
    with pytest.raises(sk.BudgetExceeded):
        sk.run(by_value("features"), project.data, project.out, workers=1, quiet=True, run_id="first", max_failures=0)
    return project.root


@pytest.fixture
def project(failed: Path, tmp_path: Path) -> Project:
    made = Project(tmp_path)
    shutil.copytree(failed, tmp_path, dirs_exist_ok=True)
    return made


def by_value(name: str, source: str = WORK) -> Any:
    """A function as a notebook has it: of no module that a worker could import."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)
    return names[name]


MENDED = WORK.replace('== "bad"', "is None")


@pytest.mark.whole
def test_an_error_has_the_run_and_says_in_python_how_to_go_on(project: Project) -> None:
    with pytest.raises(sk.BudgetExceeded) as caught:
        sk.open_run(project.out).resume(quiet=True)
    error = caught.value
    assert error.run is not None
    assert error.run.run_id == "first"
    again = next(line for line in str(error).splitlines() if "retry" in line)
    code = again.partition(": ")[2]
    assert code == f"sk.open_run({str(project.out)!r}, 'first').retry(function=features)"
    assert "shardkit " not in str(error)
    features, run = by_value("features", MENDED), None
    run = eval(code, {"sk": sk, "features": features})
    assert sorted(row["key"] for row in rows_of(run)) == ["r000.txt", "r001.txt", "r002.txt"]
    known = pickle.loads(pickle.dumps(error.hint))
    assert (known, as_command(known)) == (error.hint, as_command(error.hint))


@pytest.mark.whole
def test_the_command_line_says_it_in_commands(project: Project) -> None:
    done = CliRunner().invoke(cli, ["resume", str(project.out), "--json", "--quiet"])
    assert done.exit_code == 1
    assert "sk.open_run" not in done.stderr
    assert f"shardkit retry {project.out} --run-id first --function MODULE:NAME" in done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["run_id"]) == ("failed", "first")
    assert told["reason"].startswith("Run first: 1 of 3 records are quarantined")
    told = json.loads(CliRunner().invoke(cli, ["status", str(project.out), "--json"]).stdout)
    assert told["reason"].startswith("Run first: 1 of 3 records are quarantined")
    shown = CliRunner().invoke(cli, ["status", str(project.out)]).stdout
    assert "shardkit retry" in shown
    assert "sk.open_run" not in shown
    assert "sk.open_run" in str(sk.open_run(project.out).summary())


@pytest.mark.whole
def test_an_error_without_a_hint_of_its_own_names_the_run(project: Project) -> None:
    with pytest.raises(sk.CombineError) as caught:
        sk.open_run(project.out).resume(quiet=True, max_failures=1, combine=lambda _: 1 / 0)
    assert str(caught.value).splitlines()[-1] == f"The run: sk.open_run({str(project.out)!r}, 'first')"
    assert "sk." not in caught.value.command_text


@pytest.mark.whole
def test_before_there_is_a_run_an_error_has_none(tmp_path: Path) -> None:
    with pytest.raises(sk.InputError) as caught:
        sk.run(by_value("features"), tmp_path / "nowhere", tmp_path / "out", quiet=True)
    assert caught.value.run is None
    done = CliRunner().invoke(
        cli,
        ["run", "--function", "json:loads", "--input", f"{tmp_path}/nowhere", "--output", f"{tmp_path}/o", "--json"],
    )
    assert (done.exit_code, json.loads(done.stdout)["status"]) == (2, "failed")
    assert "does not exist" in json.loads(done.stdout)["reason"]


@pytest.mark.whole
@pytest.mark.parametrize("command", ["retry", "resume"])
def test_another_function_is_not_mixed_in_by_mistake(
    project: Project, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(project.root)
    run, other = sk.open_run(project.out), by_value("other")
    with pytest.raises(sk.PlanMismatch, match=r"is of the function features, not of other.*changed_function=True"):
        getattr(run, command)(function=other, quiet=True)
    done = CliRunner().invoke(cli, [command, str(project.out), "--function", "work:other", "--set", "max_failures=9"])
    assert (done.exit_code, "--changed-function" in done.stderr) == (2, True)
    mixed = getattr(run, command)(function=other, quiet=True, changed_function=True, max_failures=9)
    assert rows_of(mixed)[0] == ({"key": "r000.txt", "other": None} if command == "retry" else {"key": "r000.txt"})


@pytest.mark.whole
def test_the_same_function_in_a_module_needs_no_word(project: Project) -> None:
    project.write_function(MENDED)
    assert "3 done" in project.command("retry", project.out, "--function", "work:features").stderr


@pytest.mark.whole
def test_who_runs_in_python_hears_of_records_set_aside(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run = sk.run(by_value("features"), project.data, project.out, workers=1, max_failures=1)
    told = capsys.readouterr().err
    assert re.search(r"1 record failed and is not in the dataset.* r001.txt: ValueError: r001.txt is bad\n", told)
    assert f"sk.open_run({str(project.out)!r}, {run.run_id!r}).retry(function=features)" in told
    assert "1 record failed and is not in the dataset" in str(run.summary())
    run.resume(quiet=True)
    assert capsys.readouterr().err == ""
    done = CliRunner().invoke(cli, ["resume", str(project.out)])
    assert done.stderr.count("1 record failed and is not") == 1
    assert "sk.open_run" not in done.stderr


@pytest.mark.whole
def test_a_hint_is_a_text() -> None:
    hint = Hint("run.retry()", "shardkit retry")
    assert (f"{hint}", as_command(hint), as_command("plain")) == ("run.retry()", "shardkit retry", "plain")


# ---- a run whose dataset a later one has replaced ---------------------------------------------------------------


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with two runs of other rows, one after the other."""
    root = tmp_path_factory.mktemp("replaced")
    project = Project(root)
    project.write_records(["a", "bb"])
    for name, key in (("old", "key"), ("new", "other")):
        work = by_value("features", f"def features(record):\n    return {{{key!r}: record.key}}\n")
        sk.run(work, project.data, project.out, workers=1, quiet=True, run_id=name, incremental=True)
    return root


@pytest.mark.whole
def test_a_replaced_run_says_by_which_and_comes_back_when_asked(replaced: Path, tmp_path: Path) -> None:
    shutil.copytree(replaced, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    old = sk.open_run(out, "old")
    says = r"of run old was replaced by run new\. .*sk.open_run\(.*'old'\).resume\(make_current=True\)"
    for go_on in (old.resume, old.retry, old.dataset):
        with pytest.raises(sk.RunReplaced, match=says):
            go_on()
    told = CliRunner().invoke(cli, ["status", str(out), "--run-id", "old"]).stdout
    assert "dataset  replaced by run new; it had 2 rows" in told
    command = next(line for line in told.splitlines() if "shardkit resume" in line).partition(": ")[2]
    assert CliRunner().invoke(cli, command.split()[1:-1]).exit_code == 2
    assert CliRunner().invoke(cli, command.split()[1:]).exit_code == 0
    assert [set(row) for row in rows_of(sk.open_run(out, "old"))] == [{"key"}] * 2


@pytest.mark.whole
def test_a_replaced_run_comes_back_although_its_function_has_changed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_records(["a"])
    for name in ("old", "new"):
        project.write_function(f"def features(record):\n    return {{{name!r}: 1}}\n")
        project.run(workers=1, run_id=name)
    sk.open_run(project.out, "old").resume(quiet=True, make_current=True)
    assert project.rows("old") == [{"old": 1}]


@pytest.mark.whole
def test_both_runs_say_how_they_are(replaced: Path, tmp_path: Path) -> None:
    shutil.copytree(replaced, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    sk.open_run(out, "old").resume(quiet=True, make_current=True)
    assert (sk.open_run(out).run_id, sk.open_run(out, "new").summary().replaced_by) == ("old", "old")
    assert sk.open_run(out, "old").resume(quiet=True).summary().replaced_by is None


@pytest.mark.whole
def test_a_run_that_was_cleaned_away_says_so(replaced: Path, tmp_path: Path) -> None:
    shutil.copytree(replaced, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out/_shardkit/runs/old/plan.json").unlink()
    with pytest.raises(sk.RunNotFound, match="only remains of run old: it was cleaned away.*The latest is new"):
        sk.open_run(tmp_path / "out", "old")


# ---- what failed, where it is much ------------------------------------------------------------------------------


def entry(number: int, error: str, message: str) -> dict[str, Any]:
    return {
        "key": f"r{number:03d}.txt",
        "bytes": 9,
        "shard": 0,
        "error": error,
        "message": message,
        "traceback": "at x",
    }


@pytest.mark.whole
def test_failures_alike_share_a_line() -> None:
    many = [entry(i, "ValueError", f"r{i:03d}.txt: line {i} of '/data/{i}' is bad\nand more") for i in range(30)]
    some = [entry(90 + i, "KeyError", f"'{i}'") for i in range(2)]
    lines = list(grouped_failure_lines([*some, *many, entry(99, "ValueError", "another")], traceback=False))
    assert lines == [
        "30 records, such as r000.txt: ValueError: r000.txt: line 0 of '/data/0' is bad ...",
        "2 records, such as r090.txt: KeyError: '0'",
        "1 record: r099.txt: ValueError: another",
    ]
    assert "    at x" in list(grouped_failure_lines(many, traceback=True))
    (line,) = failure_lines(entry(1, "ValueError", "x" * 500), traceback=False)
    assert len(line) < 250
