"""How the files of an output's runs are named, and what of them is for whom.

    <output>/_shardkit/runs/<run id>/
        plan.json                                  immutable: the pipeline, its digests, the shards
        records.parquet                            immutable: every record with its shard and chunk
        function.pkl, combine.pkl                  the functions, where they travel by value
        taken_over.json                            markers of chunks that earlier runs have done
        parts/<shard>/<chunk>-<attempt>.parquet    rows
        markers/<shard>/<chunk>-<attempt>.json     commits a chunk: parts, rows, bytes, timings, records, quarantine
        claims/<shard>/<chunk>.json                a chunk that another job is at than that of its shard
        progress/<shard>-<attempt>.json            heartbeat of an attempt at a shard ("all": of every shard)
        dataset/generation-<number of the build>/  files that are to be the dataset's; those of jobs are beside that
        lock                                       held by the process that works on the run
        jobs.sqlite, jobs.json                     with an engine: the queue of its jobs, and a copy of it
        manifests/, settings/, stop.json           likewise: lists of objects, settings of a resumption, a stop request
        merged/<day>.json                          what a job has made of a day, for pass 2 to take
        nodes/<pass>/<node>.json                   on a cluster: each node's proof that it reads and writes here
        contents.json                              which rows of which parts the dataset's files hold
        result.json                                written last, by pass 2
        removed.json                               while `clean` removes the folder: no run goes on in it then

    <output>/_shardkit/
        latest.json                                which run was planned, or retried, last
        current.json                               the result of the run that the dataset is of now
        commit.json                                the dataset's switch in progress
        code/<digest>/, drivers/<digest>/          what jobs are sent: code; the pipeline of a driver that is a job
        iceberg.json, iceberg/                     the Iceberg tables that may name files of the dataset; their metadata
        days/<run id>.json, days/lock              the days that a run is making; held while one takes its days

Status, report, retry and resume are functions of these files alone.
"""

from __future__ import annotations

import re

from shardkit.storage.base import STATE_DIR

STOP = "stop.json"  # in a run folder: a request to stop the latest generation of jobs
ALL_SHARDS = "all"
RUNS = f"{STATE_DIR}/runs"
LATEST = f"{STATE_DIR}/latest.json"
CURRENT = f"{STATE_DIR}/current.json"
ICEBERG = f"{STATE_DIR}/iceberg.json"
GLUE = f"{STATE_DIR}/catalog.json"
RECORDS = "records.parquet"
LOCK = "lock"
REMOVED = "removed.json"
WHOLE = ""  # the partition that is all of a dataset without days
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def part_base(chunk: int, attempt: int, *, piece: int = 0, execution: str = "", alone: int | None = None) -> str:
    """The name, without suffix, of a chunk's parts.

    ``piece`` numbers what one attempt has committed of the chunk bit by bit; ``execution`` is a word of its own for
    each time that a cluster works on the chunk, and for each job that does, if it is not the shard's own; ``alone``
    marks the parts of one record that was run by itself.
    """
    of_piece = f"p{piece}" if piece else ""
    of_execution = f"x{execution}" if execution else ""
    return f"{chunk:06d}-{attempt:04d}{of_piece}{of_execution}" + (f"-{alone}" if alone is not None else "")


def node_file(call: str, name: str) -> str:
    """The file, in the run folder, of a node, or of the driver, in one pass over a run's chunks on a cluster."""
    return f"nodes/{call}/{name}.json"
