"""Commands as real processes, paused before one of their steps while another command did their work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from crashing import LEASE_S, LINUX, check_ledger, dying, go_on, start_pausing, wait_until_paused
from test_paused import WHOLE, made, output, short  # noqa: F401  fixtures too

import shardkit as sk
from shardkit.storage import lease

if TYPE_CHECKING:
    from crashing import Command
    from test_paused import Output

pytestmark = pytest.mark.whole
RETRY_STEPS = ["create", "confirm", "publish", "result", "current", "remove", "tidy"]
# At least, and at most: there may be a heartbeat more. On disk files go one by one, and what remains is looked for.
CLEAN_STEPS = {"disk": (24, 29), "s3": (10, 13)}


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
    "step",
    [
        pytest.param(number, id=name, marks=() if name == "publish" else WHOLE)
        for number, name in enumerate(RETRY_STEPS, start=1)
    ],
)
def test_a_retry_is_paused_while_another_does_its_work(output: Output, step: int) -> None:  # noqa: F811
    bad = output.project.root / "bad"
    bad.write_text("r003")
    output.run("second", max_failures=1)
    bad.unlink()
    with dying(start_pausing(output.project, "switch", step, "retry", output.uri, "--quiet")) as command:
        assert wait_until_paused(command), command.stderr.read_text()
        output.break_locks()
        sk.open_run(output.uri, "second").retry(quiet=True)
        check_end(command, may_be_done=step > RETRY_STEPS.index("current") + 1)
    output.check_is("second")
    assert check_ledger(sk.open_run(output.uri, "second")).records["quarantined"] == 0


@LINUX
@pytest.mark.usefixtures("ends_soon")
@pytest.mark.parametrize(
    ("output", "step"),
    [
        pytest.param(place, step, marks=() if step == 5 else WHOLE)
        for place, (_, most) in CLEAN_STEPS.items()
        for step in range(1, most + 2)
    ],
    indirect=["output"],
)
def test_clean_is_paused_while_a_run_of_that_name_begins_anew(output: Output, step: int) -> None:  # noqa: F811
    (output.project.root / "bad").touch()
    with pytest.raises(sk.BudgetExceeded):
        output.run("second", max_failures=0)
    (output.project.root / "bad").unlink()
    output.run("third")
    with dying(start_pausing(output.project, "clean", step, "clean", output.uri, "--unfinished")) as command:
        least, most = CLEAN_STEPS["s3" if output.uri.startswith("s3") else "disk"]
        if not wait_until_paused(command):
            assert step > least and command.wait().code == 0, command.stderr.read_text()
            return
        assert step <= most, "it has more steps than are tried"
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
