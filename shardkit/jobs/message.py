"""What a notice says: as data for machines, as text for people, as Slack shows it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import iso
from shardkit.jobs.job import COMPLETED, ENDED, FAILED
from shardkit.jobs.wording import CAUSES_IN_WORDS, log_group, log_url, ran_s, waited_s
from shardkit.masking import masked
from shardkit.printable import printable
from shardkit.units import human_seconds

if TYPE_CHECKING:
    from shardkit.jobs.job import Job
    from shardkit.jobs.store import Store

REASON_CHARACTERS = 1500  # the service's reasons for a failure are shorter
FAILED_SHOWN = 5
SUBJECT_CHARACTERS = 99  # an SNS subject has fewer than 100
_ICONS = {COMPLETED: ":white_check_mark:", FAILED: ":x:"}

Notice = dict[str, Any]


def notice_of(store: Store, job: Job, *, place: str = "", region: str = "") -> Notice:
    """The notice of a job that has ended, as plain data.

    The job that ends a run has the run's output among its tags; its notice is about the run.

    Args:
        store: The jobs.
        job: The job.
        place: Where the store is, as the command line takes it.
        region: The service's region; without it there is no link to the log.
    """
    last = job.attempts[-1] if job.attempts else {}
    output = job.tags.get("output", "") if job.run else ""
    notice: Notice = {
        "about": "run" if output else "job",
        "job_id": job.job_id,
        "run": job.run,
        "kind": job.kind,
        "owner": job.owner,
        "tags": dict(job.tags),
        "status": job.status,
        "cause": job.cause,
        "cause_in_words": CAUSES_IN_WORDS.get(job.cause, ""),
        "reason": shortened(job.reason),
        "attempts": len(job.attempts),
        "waited_s": waited_s(job),
        "ran_s": ran_s(last),
        "instance_type": last.get("instance_type") or job.instance_type,
        "instances": last.get("instances") or job.instances,
        "submitted_at": iso(job.submitted_at),
        "ended_at": iso(job.changed_at),
        "log_group": log_group(job),
        "log_stream_prefix": f"{last['name']}/" if last.get("created_at") else "",
        "log_url": log_url(job, region),
        "again": _again(job, output, place),
    }
    if output:
        counts, failed = store.counts(run=job.run), store.jobs(run=job.run, status=FAILED, limit=FAILED_SHOWN)
        notice["output"] = output
        notice["run_jobs"] = {status: counts[status] for status in (*ENDED, *sorted(set(counts) - set(ENDED)))}
        notice["run_failed"] = [
            {"job_id": each.job_id, "cause": each.cause, "reason": shortened(each.reason, 300)} for each in failed
        ]
    return notice


def _again(job: Job, output: str, place: str) -> str:
    """The command that tries it again; empty if there is nothing to try."""
    if job.status == COMPLETED:
        return ""
    if output:
        return f"shardkit resume {shlex.quote(output)}"
    return f"shardkit jobs again {job.job_id}" + (f" --store {shlex.quote(place)}" if place else "")


def shortened(text: str, most: int = REASON_CHARACTERS) -> str:
    """A text, or its beginning, without secrets or control characters."""
    text = printable(masked(text))
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def subject_of(notice: Notice) -> str:
    """One line, in characters that an SNS subject may have."""
    what = f"run {notice['run']}" if notice["about"] == "run" else f"job {notice['job_id']}"
    cause = f" ({notice['cause']})" if notice["cause"] else ""
    text = f"shardkit: {what} {notice['status']}{cause}"
    plain = "".join(each if " " <= each <= "~" else "?" for each in text)
    return plain if len(plain) <= SUBJECT_CHARACTERS else f"{plain[: SUBJECT_CHARACTERS - 3]}..."


def headline(notice: Notice) -> str:
    """What happened, in a sentence."""
    who = f"Run {notice['run']}" if notice["about"] == "run" else f"Job {notice['job_id']}"
    tries = notice["attempts"]
    after = f" after {tries} attempt{'' if tries == 1 else 's'}" if tries else " before its first attempt"
    why = f": {notice['cause_in_words']}" if notice["cause_in_words"] and notice["status"] == FAILED else ""
    if notice["about"] == "run":
        after = f" with job {notice['job_id']}{after}"
    return f"{who} {notice['status']}{after}{why}."


def lines_of(notice: Notice) -> list[tuple[str, str]]:
    """The particulars that there are, each with its name."""
    instances = f"{notice['instances']} x " if notice["instances"] > 1 else ""
    particulars = [
        ("Jobs", _counts(notice.get("run_jobs", {}))),
        ("Owner", notice["owner"]),
        ("Run", notice["run"] if notice["about"] == "job" else ""),
        ("Instance", f"{instances}{notice['instance_type']}" if notice["instance_type"] else ""),
        ("Waited", "" if notice["waited_s"] is None else human_seconds(notice["waited_s"])),
        ("Ran", "" if notice["ran_s"] is None else human_seconds(notice["ran_s"])),
        ("Output", notice.get("output", "")),
        ("Log", notice["log_url"]),
        ("Log group", f"{notice['log_group']} {notice['log_stream_prefix']}" if _needs_group(notice) else ""),
        ("Try again", notice["again"]),
    ]
    return [(name, text) for name, text in particulars if text]


def _needs_group(notice: Notice) -> bool:
    return bool(notice["log_stream_prefix"]) and not notice["log_url"]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {status}" for status, number in counts.items() if number)


def text_of(notice: Notice) -> str:
    """The notice as an e-mail."""
    parts = [headline(notice)]
    if notice["reason"]:
        parts.append(notice["reason"])
    parts.append("\n".join(f"{name:<10} {text}" for name, text in lines_of(notice)))
    if notice.get("run_failed"):
        failed = [f"  {each['job_id']}: {each['reason'] or each['cause']}" for each in notice["run_failed"]]
        parts.append("\n".join(["Jobs that failed, the first of them:", *failed]))
    return "\n\n".join(part for part in parts if part) + "\n"


def slack_of(notice: Notice) -> dict[str, Any]:
    """The notice as Slack's incoming webhooks take it."""
    title = f"{_ICONS.get(notice['status'], ':black_square_for_stop:')} {_escaped(headline(notice))}"
    blocks = [_section(title)]
    if notice["reason"]:
        blocks.append(_section(f"```{_escaped(shortened(notice['reason'], 1000))}```"))
    lines = [f"*{name}*  {_in_slack(name, text)}" for name, text in lines_of(notice)]
    blocks += [_section("\n".join(lines))] if lines else []
    if notice.get("run_failed"):
        failed = [f"• `{each['job_id']}` {_escaped(each['reason'] or each['cause'])}" for each in notice["run_failed"]]
        blocks.append(_section("\n".join(["*Failed, the first of them*", *failed])))
    return {"text": _escaped(headline(notice)), "blocks": blocks}


def _in_slack(name: str, text: str) -> str:
    if name == "Log":
        return f"<{_escaped(text)}|CloudWatch>"
    return f"`{_escaped(text)}`" if name == "Try again" else _escaped(text)


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": shortened(text, 3000)}}  # Slack's limit


def _escaped(text: str) -> str:
    """The text with the three characters escaped that have a meaning in Slack."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
