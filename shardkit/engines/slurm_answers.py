"""What Slurm's own words mean: the errors of its commands, and its reasons for letting a job wait."""

from __future__ import annotations

import re

UNAVAILABLE, FULL, REFUSED, NO_CLUSTER = "unavailable", "full", "refused", "no cluster"

_NO_CLUSTER = re.compile(r"could not establish a configuration source|unable to process configuration", re.IGNORECASE)
# The controller cannot be asked now; a submission may have got through all the same.
_UNAVAILABLE = re.compile(
    r"unable to (contact|connect)|connection (refused|timed out|failure|reset)|timed out|zero bytes|not connected"
    r"|unexpected message|authentication (error|credential)|munge|temporarily unable|temporarily unavailable"
    r"|rate limit|retry momentarily|try again|backup (mode|controller)|standby mode|I/O error|no space left",
    re.IGNORECASE,
)
# The user, or the site, has as many jobs in the queue as may be there.
_FULL = re.compile(r"submit limit|MaxJobCount|MaxJobsPer|MaxSubmit", re.IGNORECASE)
# A limit that Slurm names: only those on submissions are ever over by themselves.
_LIMIT = re.compile(r"\b(?:QOS|Assoc)[A-Z]\w+")
# No job that asks for this will ever be taken; others may be refused only because nodes are down at the moment.
_NEVER = re.compile(
    r"invalid (partition|account|qos|feature|generic resource|node name|wckey|reservation)|not permitted"
    r"|job violates|time limit is invalid|unrecognized option|invalid option|unrecognized argument",
    re.IGNORECASE,
)

_CURES = (
    (r"invalid partition", "sinfo lists the partitions. Give one as engine.partition."),
    (
        r"invalid account|invalid qos",
        "sacctmgr show associations user=$USER lists what is yours. Give engine.account and engine.qos.",
    ),
    (r"generic resource|gres", "sinfo -o '%P %G' lists the GPUs of each partition. Change engine.gpus."),
    (r"feature", "sinfo -o '%P %f' lists the features of the nodes. Change engine.options."),
    (
        r"time limit is invalid|MaxWall",
        "sinfo -o '%P %l' lists the partitions' time limits, and sacctmgr show qos those of a qos. Lower engine.time.",
    ),
    (
        r"node configuration|memory specification|cpu count|PerJob|PerNode|PerUser",
        "sinfo -o '%P %c %m' lists the nodes' CPUs and memory (MB). Change engine.cpus, memory_gb or partition.",
    ),
    (r"option", "Change engine.options."),
    (r"munge", "Slurm's commands need munge: is munged running on this machine? Jobs that run go on."),
)

_REASONS = (
    (r"PartitionTimeLimit", "engine.time is longer than the partition allows"),
    (r"PartitionConfig|PartitionNodeLimit|BadConstraints", "no node of the partition has what the jobs ask for"),
    (r"PartitionDown|PartitionInactive", "the partition starts no jobs at present"),
    (r"ReqNodeNotAvail|NodeDown", "nodes that the jobs need are down or reserved"),
    (r"InvalidAccount|AccountNotAllowed", "engine.account may not be used there"),
    (r"InvalidQOS|QOSNotAllowed", "engine.qos may not be used there"),
    (r"(QOS|Assoc)\w*WallDuration\w*", "engine.time is longer than the qos or the account allows"),
    (r"(QOS|Assoc)(Max|Min)\w*Per(Job|Node)\w*", "the jobs ask for more than the qos or the account allows a job"),
    (r"JobHeldUser|JobHeldAdmin|JobHoldMaxRequeue", "somebody holds the jobs back: scontrol release"),
    (r"JobArrayTaskLimit", "the site starts only so many jobs of an array at once"),
)


def meaning_of(said: str) -> str:
    """What an error of sbatch means: one of the four words above."""
    if _NO_CLUSTER.search(said):
        return NO_CLUSTER
    if limits := _LIMIT.findall(said):
        return FULL if any("submit" in name.lower() for name in limits) else REFUSED
    if _FULL.search(said):
        return FULL
    return UNAVAILABLE if _UNAVAILABLE.search(said) else REFUSED


def is_for_ever(said: str) -> bool:
    """Whether Slurm will never take such a job, whatever its nodes do meanwhile."""
    return meaning_of(said) == REFUSED and _NEVER.search(said) is not None


def cure_of(said: str) -> str:
    """What to do about an error; empty if nothing is known."""
    return next((cure for words, cure in _CURES if re.search(words, said, re.IGNORECASE)), "")


def with_cure(said: str) -> str:
    """An error, and what to do about it."""
    cure = cure_of(said)
    return f"{said.rstrip('.')}. {cure}" if cure else said


def explained(reason: str) -> str:
    """The reason for which a job waits, with what it means if that is not just a matter of time."""
    text = next((text for words, text in _REASONS if re.fullmatch(words, reason.partition(",")[0].strip("() "))), "")
    return f"{reason} ({text})" if text else reason
