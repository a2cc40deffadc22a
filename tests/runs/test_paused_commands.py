"""Commands as real processes, paused before one of their steps while another command did their work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from crashing import LEASE_S, LINUX, check_ledger, dying, go_on, start_pausing, stops
from test_paused import at, first, output, unfinished, worlds  # noqa: F401  fixtures too

import shardkit as sk
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import LOCK
from shardkit.storage import lease
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from crashing import Command
    from test_paused import Output

pytestmark = pytest.mark.whole
RETRY_STEPS = ["create", "confirm", "publish", "result", "current", "remove", "tidy"]


def quarantined(output: Output) -> None:  # noqa: F811
    """Have a run replace the first version that can make nothing of one record."""
    output.run("first")
    bad = output.project.root / "bad"
    bad.write_text("r003")
    output.run("second", max_failures=1)
    bad.unlink()


@pytest.fixture
def ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that end as soon in this process as in those that it pauses."""
    monkeypatch.setattr(lease, "LEASE_S", LEASE_S)
    monkeypatch.setattr(lease, "LEASE_RENEWAL_S", LEASE_S / 5)


def check_end(command: Command, *, may_be_done: bool) -> None:
    """Let a paused command go on; it must say that it has lost its lock, unless it had done its work."""
    done = go_on(command)
    assert "Traceback" not in done.stderr
    if done.code == 0:
        assert may_be_done, done.stderr
    else:
        assert done.code == 1
        assert "lost its l" in done.stderr or "was paused" in done.stderr, done.stderr


@LINUX
@pytest.mark.usefixtures("ends_soon")
@pytest.mark.parametrize(
    ("output", "step"),
    # In S3 where a write has its condition; in `test_paused.py` each step of a switch is tried there.
    [at("disk", quarantined, step) for step in RETRY_STEPS]
    + [at("s3", quarantined, step) for step in ("publish", "current")],
    indirect=["output"],
)
def test_a_retry_is_paused_while_another_does_its_work(output: Output, step: str) -> None:  # noqa: F811
    number = RETRY_STEPS.index(step) + 1
    with dying(start_pausing(output.project, "switch", number, "retry", output.uri, "--quiet")) as command:
        assert stops(command), command.stderr.read_text()
        until = RETRY_STEPS[: min(number, RETRY_STEPS.index("current") + 1)]  # from there on they go side by side
        assert (output.project.root / "steps").read_text().split()[: len(until)] == until
        output.break_locks()
        sk.open_run(output.uri, "second").retry(quiet=True)
        check_end(command, may_be_done=number > RETRY_STEPS.index("current") + 1)
    output.check_is("second")
    assert check_ledger(sk.open_run(output.uri, "second")).records["quarantined"] == 0


# Where `clean` is paused, which removes the folder of the first run and then that of the second. On disk files go one by
# one, and what remains is looked for.
CLEAN_STEPS = ("look", "begin", "the plan", "a file", "the last file", "the note", "the lock", "what remains")
CLEANED = [at("disk", unfinished, step) for step in ("the first run", *CLEAN_STEPS)]
CLEANED += [at("s3", unfinished, step) for step in ("the first run", *CLEAN_STEPS[:3], *CLEAN_STEPS[4:7])]


def steps_until(step: str, output: Output) -> list[str]:  # noqa: F811
    """The steps of `clean` up to this one of the second run's folder, or up to one in the first run's."""
    on_disk = isinstance(output.folder, LocalFolder)
    first_s, second_s = (
        ["look", "begin", "remove", *["remove"] * (files if on_disk else 1), "remove", "remove", *["remains"] * on_disk]
        for files in (len(files_of(output, run_id)) for run_id in ("first", "second"))
    )
    if step == "the first run":
        return first_s[:5]
    end = len(second_s) - on_disk
    numbers = (1, 2, 3, 4, end - 2, end - 1, end, end + 1)
    return first_s + second_s[: dict(zip(CLEAN_STEPS, numbers, strict=True))[step]]


def files_of(output: Output, run_id: str) -> list[str]:  # noqa: F811
    """The files of a run's folder but for its plan and its lock."""
    entries = RunFolder(output.folder, run_id).files.entries()
    return [entry.key for entry in entries if entry.key not in {"plan.json", LOCK}]


@LINUX
@pytest.mark.usefixtures("ends_soon")
@pytest.mark.parametrize(("output", "step"), CLEANED, indirect=["output"])
def test_clean_is_paused_while_a_run_of_that_name_begins_anew(output: Output, step: str) -> None:  # noqa: F811
    steps = steps_until(step, output)
    with dying(start_pausing(output.project, "clean", len(steps), "clean", output.uri, "--unfinished")) as command:
        assert stops(command), command.stderr.read_text()
        assert (output.project.root / "steps").read_text().split() == steps
        output.break_locks()
        try:
            output.run("second")
        except sk.PlanMismatch as error:
            assert "sk.clean(" in error.hint and "shardkit clean" in error.command_text  # noqa: PT017  it may run as well
            check_end(command, may_be_done=True)
            sk.clean(output.uri, unfinished=True)
            output.run("second")
        else:
            check_end(command, may_be_done=True)
    run = sk.open_run(output.uri, "second")
    if check_ledger(run).records["quarantined"]:  # it was there still, and has gone on
        run.retry(quiet=True)
    output.check_is("second")
    assert check_ledger(run).status == "done"
