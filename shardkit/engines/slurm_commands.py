"""Slurm's commands: submit, look, cancel, ask for the site's limits; and what their errors mean.

The commands are the only way to Slurm that every site has. Each call is one short process; a look at all jobs of a user
is one ``squeue``.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from botocore.exceptions import ClientError

from shardkit.engines import slurm_answers
from shardkit.engines.validation import refuse
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CANCELLED_TOGETHER = 100  # jobs and arrays
PATIENCE_S = 60.0  # with a command: a controller that is down lets it fail after about 10 s
ELSEWHERE = "Run shardkit where Slurm's commands work, such as on a login node; or use another engine."
# Of the settings of a job that runs this very program, which would get in the way of those of another one.
_OWN = re.compile(r"SLURM_(?!CONF$|CLUSTERS$)|SBATCH_(ARRAY|REQUEUE|NO_REQUEUE|JOB_NAME|WAIT|OPEN_MODE|PARSABLE)")
_FORMAT = "%F|%K|%A|%T|%r|%N|%j"

WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"})


class Seen(NamedTuple):
    """What Slurm says of a job.

    Attributes:
        state: The state, in capitals.
        reason: Why it is so.
        number: The job's own number, by which its node knows it.
        node: Where it runs or ran.
    """

    state: str
    reason: str = ""
    number: str = ""
    node: str = ""


class Look(NamedTuple):
    """All jobs of the user that Slurm knows: by their ids, and the ids by the name of the submission."""

    jobs: dict[str, Seen]
    ids: dict[str, str]


def submit(words: Iterable[str], script: str) -> str:
    """Submit a batch script; returns its id.

    Raises:
        botocore.exceptions.ClientError: ServiceUnavailable (it may have been submitted), ResourceLimitExceeded or
            ValidationException.
    """
    done = _run(["sbatch", "--parsable", "--no-requeue", *words], "CreateProcessingJob", script)
    return done.strip().partition(";")[0]


def try_out(words: Iterable[str]) -> str:
    """Ask Slurm whether it would take such a job, without submitting one.

    Returns:
        Why it never will; empty if it may, or cannot be asked now.

    Raises:
        PipelineError: this machine belongs to no cluster.
    """
    try:
        _, said = _call(["sbatch", "--test-only", *words], "CreateProcessingJob", "#!/bin/sh\n")
    except ClientError:
        return ""
    return said if slurm_answers.is_for_ever(said) else ""


def look() -> Look:
    """Ask for all jobs of this user, those that ended some minutes ago too.

    Raises:
        botocore.exceptions.ClientError: ServiceUnavailable.
    """
    words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={_FORMAT}"]
    jobs: dict[str, Seen] = {}
    ids: dict[str, str] = {}
    for line in _run(words, "ListProcessingJobs").splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) < 7:  # the second line of a name that somebody has given another job
            continue
        first, task, number, state, reason, node, name = fields
        job_id = f"{first}_{task}" if task.isdigit() else first
        jobs[job_id] = Seen(state.partition(" ")[0], "" if reason == "None" else reason, number, node)
        ids[name] = first
    return Look(jobs, ids)


def cancel(job_ids: Iterable[str], *, runs: bool) -> None:
    """Cancel jobs; if they ``run``, let their scripts know that they are to end, and give them time.

    Jobs by their ids and nothing else: with a filter, such as ``--state``, all that waits of their arrays would go.
    """
    tasks: dict[str, list[str]] = {}
    for job_id in job_ids:
        first, _, task = job_id.partition("_")
        tasks.setdefault(first, []).append(task)
    words = ["--signal=TERM", "--batch"] if runs else []
    named = [f"{first}_[{','.join(numbers)}]" if numbers[0] else first for first, numbers in tasks.items()]
    for i in range(0, len(named), CANCELLED_TOGETHER):
        _run(["scancel", *words, *named[i : i + CANCELLED_TOGETHER]], "StopProcessingJob", may_fail=True)


@functools.lru_cache(maxsize=8)
def site_limits(_: str = "") -> dict[str, str]:
    """The settings of this site's Slurm."""
    lines = (line.partition("=") for line in _run(["scontrol", "show", "config"], "ListProcessingJobs").splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def largest_batch() -> int:
    """How many jobs one submission may have at this site."""
    limits = site_limits(os.environ.get("SLURM_CONF", ""))
    limits_set = [int(limits[name]) for name in ("MaxArraySize", "MaxJobCount") if limits.get(name, "").isdigit()]
    return max(1, min(limits_set, default=1))


def remembered(job_ids: Sequence[str]) -> dict[str, Seen]:
    """What the accounts say of jobs that the controller has forgotten; empty where there are none, or they are away."""
    limits = site_limits(os.environ.get("SLURM_CONF", ""))
    if not job_ids or limits.get("AccountingStorageType", "").rpartition("/")[2] in ("", "none", "(null)"):
        return {}
    words = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State,Reason"]
    by_id: dict[str, Seen] = {}
    printed, _ = _call([*words, f"--jobs={','.join(job_ids)}"], "ListProcessingJobs")
    for line in printed.splitlines():
        job_id, state, reason = line.split("|", 2)
        by_id[job_id] = Seen(state.partition(" ")[0], "" if reason == "None" else reason)
    return by_id


def _run(words: Sequence[str], operation: str, script: str = "", *, may_fail: bool = False) -> str:
    """Run a command; returns what it prints."""
    printed, said = _call(words, operation, script)
    if said and (not may_fail or slurm_answers.meaning_of(said) == slurm_answers.UNAVAILABLE):
        _refuse(operation, said)
    return printed


def _call(words: Sequence[str], operation: str, script: str = "") -> tuple[str, str]:
    """Run a command; returns what it prints and, if it fails, its error in a line."""
    around = {name: value for name, value in os.environ.items() if not _OWN.match(name)} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603  # Slurm's own programs, without a shell
            words, input=script, capture_output=True, text=True, env=around, check=False, timeout=PATIENCE_S
        )
    except FileNotFoundError:
        raise PipelineError(f"There is no {words[0]} on this machine.", hint=ELSEWHERE) from None
    except subprocess.TimeoutExpired:
        refuse(operation, "ServiceUnavailable", f"{words[0]} got no answer within {PATIENCE_S:.0f} s.", 503)
    if done.returncode == 0:
        return done.stdout, ""
    lines = [line.removeprefix(f"{words[0]}: ").removeprefix("error: ").strip() for line in done.stderr.splitlines()]
    said = f"{words[0]}: {'; '.join(line for line in lines if line) or f'exit code {done.returncode}'}"
    if slurm_answers.meaning_of(said) == slurm_answers.NO_CLUSTER:
        raise PipelineError(f"This machine belongs to no Slurm cluster: {said.rstrip('.')}.", hint=ELSEWHERE)
    return done.stdout, said


def _refuse(operation: str, said: str) -> NoReturn:
    """Raise the error that says what a command's error means."""
    meaning = slurm_answers.meaning_of(said)
    if meaning == slurm_answers.FULL:
        refuse(operation, "ResourceLimitExceeded", said)
    if meaning == slurm_answers.UNAVAILABLE or operation != "CreateProcessingJob":
        refuse(operation, "ServiceUnavailable", slurm_answers.with_cure(said), 503)
    refuse(operation, "ValidationException", slurm_answers.with_cure(said))
