"""The store in a SQLite file: for one machine, any number of processes and threads."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from shardkit.jobs.errors import JobNotFound
from shardkit.jobs.job import COMPLETED, ENDED, FAILED, IN_PROGRESS, LAUNCHED, NEW, STATUSES, STOPPED, Job
from shardkit.jobs.sqlite_file import SQLiteFile
from shardkit.jobs.store import Flying, Ready, Submission, Submitting, Waiting, batches, check_statuses

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shardkit.jobs.clock import Clock

BATCH = 500  # ids in one query: fewer than the variables that every SQLite allows
PLAIN = (
    "job_id, status, attempt, reason, cause, kind, owner, run, instance_type, instances, known, submitted_at, "
    "changed_at, launched_at, not_before, lease_until, stop_asked_at, stop_sent_at, missing_since, base, notice_at, "
    "notice_tries, version"
)
COLUMNS = f"{PLAIN}, needs, instance_types, notify, notified, tags, attempts"
_FIELDS = tuple("exists" if name == "known" else name for name in PLAIN.split(", "))
_LIVE = f"status IN ('{LAUNCHED}', '{IN_PROGRESS}')"
_READY = f"status = '{NEW}' AND blocked = 0"
_FLYING = (
    "job_id, status, kind, owner, instance_type, instances, known, launched_at, changed_at, lease_until, stop_asked_at"
)
_CHANGING = (
    *("status", "attempt", "reason", "cause", "instance_type", "exists", "changed_at", "launched_at", "not_before"),
    *("lease_until", "stop_asked_at", "stop_sent_at", "missing_since", "base", "notice_at", "notice_tries", "version"),
)
_SET = ", ".join(f"{'known' if name == 'exists' else name}=?" for name in _CHANGING)
_UPDATE = f"UPDATE jobs SET {_SET}, notified=?, attempts=? WHERE job_id=? AND version=?"  # noqa: S608  columns of this module
_UNBLOCK = "UPDATE jobs SET blocked = blocked - 1 WHERE job_id IN (SELECT job_id FROM dependencies WHERE needs = ?)"
_COUNT_BLOCKED = """
UPDATE jobs SET blocked = (
    SELECT COUNT(*) FROM dependencies d JOIN jobs n ON n.job_id = d.needs
    WHERE d.job_id = jobs.job_id AND n.status != ?
) WHERE needs > 0
"""


class SQLiteStore(SQLiteFile, Submitting):
    """Jobs in a SQLite file on a local disk; the file is created if it is missing.

    Any number of processes and threads may use the same file, and threads may share a store.

    Args:
        path: The file.
        clock: Gives the times of submissions.
        private: Whether only the user may read a file that is created.

    Raises:
        StoreError: The file cannot be opened, is not such a store, or was written by a later version.
    """

    lag_s = 0.0

    # ---- adding -----------------------------------------------------------------------------------------------------

    def submit_many(self, submissions: Iterable[Submission]) -> list[Job]:
        """Add jobs, all or none; raises what submit() does."""
        prepared = [(each, each.job(self._clock.time())) for each in submissions]
        with self._writing() as db:
            return [self._add(db, each, job) for each, job in prepared]

    def _add(self, db: sqlite3.Connection, submission: Submission, job: Job) -> Job:
        row = db.execute("SELECT request FROM requests WHERE job_id = ?", (job.job_id,)).fetchone()
        if row is not None:
            existing = self._one(db, job.job_id)
            submission.check_same(existing, row[0])
            return existing
        blocked = 0
        for number, needs in enumerate(job.depends_on):
            needed = db.execute("SELECT status FROM jobs WHERE job_id = ?", (needs,)).fetchone()
            if needed is None:
                raise JobNotFound(
                    f"Job {job.job_id} depends on {needs}, which was not submitted.", hint=f"Submit {needs} first."
                )
            blocked += needed[0] != COMPLETED
            db.execute("INSERT INTO dependencies VALUES (?, ?, ?)", (job.job_id, number, needs))
        db.execute("INSERT INTO requests VALUES (?, ?)", (job.job_id, submission.text()))
        values = (*_values(job), blocked)
        db.execute(f"INSERT INTO jobs ({COLUMNS}, blocked) VALUES ({_marks(values)})", values)  # noqa: S608
        return job

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """The job with that id.

        Raises:
            JobNotFound: There is none.
        """
        with self._reading() as db:
            return self._one(db, job_id)

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs with those ids; those that do not exist are left out."""
        jobs: dict[str, Job] = {}
        with self._reading() as db:
            for batch in batches(job_ids, BATCH):
                jobs |= {job.job_id: job for job in self._select(db, f"job_id IN ({_marks(batch)})", batch)}
        return jobs

    def requests(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The requests of those jobs; jobs that do not exist are left out."""
        requests: dict[str, dict[str, Any]] = {}
        with self._reading() as db:
            for batch in batches(job_ids, BATCH):
                query = f"SELECT job_id, request FROM requests WHERE job_id IN ({_marks(batch)})"  # noqa: S608
                requests |= {job_id: json.loads(text) for job_id, text in db.execute(query, batch)}
        return requests

    def jobs(
        self,
        *,
        status: str | Iterable[str] | None = None,
        run: str = "",
        owner: str = "",
        limit: int | None = None,
        latest: bool = False,
    ) -> list[Job]:
        """Jobs in the order of their submission, as `Store.jobs` says."""
        where, values = ["1"], list[Any]()
        if status is not None:
            wanted = check_statuses(status)
            where.append(f"status IN ({_marks(wanted)})")
            values += wanted
        for column, value in (("run", run), ("owner", owner)):
            if value:
                where.append(f"{column} = ?")
                values.append(value)
        with self._reading() as db:
            return self._select(db, " AND ".join(where), values, order="seq DESC" if latest else "seq", limit=limit)

    def counts(self, *, run: str = "") -> dict[str, int]:
        """How many jobs there are, in all or in that run, by status; every status is named."""
        where, values = ("WHERE run = ? ", (run,)) if run else ("", ())
        with self._reading() as db:
            rows = db.execute(f"SELECT status, COUNT(*) FROM jobs {where}GROUP BY status", values).fetchall()  # noqa: S608
        return dict.fromkeys(STATUSES, 0) | dict(rows)

    def waiting(self, now: float, *, most: int, longest_s: float = math.inf) -> Waiting:
        """The ``New`` jobs, in short; ``ready`` has at most ``most`` for each owner and instance type.

        A job that would wait for longer than ``longest_s`` counts as ready: the clock that set its time was ahead.
        """
        with self._reading() as db:
            blocked = self._count(db, f"status = '{NEW}' AND blocked > 0")
            waits, until = "not_before > ? AND not_before <= ?", (now, now + longest_s)
            query = f"SELECT COUNT(*), MIN(not_before) FROM jobs WHERE {_READY} AND {waits}"  # noqa: S608
            later, next_at = db.execute(query, until).fetchone()
            ready = [each for line in self._lines(db) for each in self._ready(db, line, until, most)]
            everything = self._count(db, _READY)
        ready.sort(key=lambda each: each.order)
        return Waiting(tuple(ready), everything - later, later, next_at, blocked)

    def _lines(self, db: sqlite3.Connection) -> Iterator[tuple[str, str]]:
        """Every owner and instance type that jobs wait for; each takes one step through the index."""
        query = (
            f"SELECT owner, instance_type FROM jobs WHERE {_READY} AND (owner, instance_type) > (?, ?) "  # noqa: S608
            "ORDER BY owner, instance_type LIMIT 1"
        )
        row = db.execute(f"SELECT MIN(owner) FROM jobs WHERE {_READY}").fetchone()  # noqa: S608
        if row[0] is None:
            return
        first = (
            f"SELECT owner, instance_type FROM jobs WHERE {_READY} AND owner = ? "  # noqa: S608
            "ORDER BY instance_type LIMIT 1"
        )
        line = db.execute(first, (row[0],)).fetchone()
        while line is not None:
            yield line
            line = db.execute(query, line).fetchone()

    def _ready(
        self, db: sqlite3.Connection, line: tuple[str, str], waits: tuple[float, float], most: int
    ) -> list[Ready]:
        query = (
            f"SELECT job_id, owner, instance_type, instances, seq FROM jobs WHERE {_READY} AND owner = ? "  # noqa: S608
            "AND instance_type = ? AND (not_before <= ? OR not_before > ?) ORDER BY seq LIMIT ?"
        )
        return [Ready(*row) for row in db.execute(query, (*line, *waits, most))]

    def _count(self, db: sqlite3.Connection, where: str) -> int:
        return int(db.execute(f"SELECT COUNT(*) FROM jobs WHERE {where}").fetchone()[0])  # noqa: S608

    def unblock(self, limit: int = 100) -> list[tuple[Job, str]]:
        """``New`` jobs that wait for one that failed or was stopped, each with the id of that one.

        Jobs whose needs are met were unblocked when the last one that they need completed.
        """
        query = (
            "SELECT j.job_id, MIN(d.needs) FROM jobs j JOIN dependencies d ON d.job_id = j.job_id "
            "JOIN jobs n ON n.job_id = d.needs WHERE j.status = ? AND j.blocked > 0 AND n.status IN (?, ?) "
            "GROUP BY j.job_id LIMIT ?"
        )
        with self._reading() as db:
            any_blocked = self._count(db, f"status = '{NEW}' AND blocked > 0")
            rows = db.execute(query, (NEW, FAILED, STOPPED, limit)).fetchall() if any_blocked else []
            return [(self._one(db, job_id), needs) for job_id, needs in rows]

    def dependents(self, job_id: str) -> list[Job]:
        """The jobs that wait for that one, or failed because it did not complete."""
        with self._reading() as db:
            return self._select(
                db, "job_id IN (SELECT job_id FROM dependencies WHERE needs = ?)", [job_id], order="seq"
            )

    def flight(self) -> list[Flying]:
        """All live jobs, in short."""
        with self._reading() as db:
            return [Flying(*row) for row in db.execute(f"SELECT {_FLYING} FROM jobs WHERE {_LIVE} ORDER BY seq")]  # noqa: S608

    def notices(self, now: float, *, limit: int = 100, longest_s: float = math.inf) -> list[Job]:
        """Ended jobs whose notice is due, the longest overdue first, and any put off for over ``longest_s``."""
        with self._reading() as db:
            due, values = "notice_at > 0 AND (notice_at <= ? OR notice_at > ?)", [now, now + longest_s]
            return self._select(db, due, values, order="notice_at", limit=limit)

    def ended(self, since: float, until: float) -> Iterator[Job]:
        """The jobs that ended at ``since`` or later and before ``until``, in the order of their ends."""
        where = f"status IN ({_marks(ENDED)}) AND (changed_at, seq) > (?, ?) AND changed_at < ?"
        after: tuple[float, int] = (since, -1)
        while True:
            with self._reading() as db:
                page = self._select(db, where, [*ENDED, *after, until], order="changed_at, seq", limit=BATCH)
                if page:
                    last = page[-1]
                    row = db.execute("SELECT seq FROM jobs WHERE job_id = ?", (last.job_id,)).fetchone()
                    after = (last.changed_at, row[0])
            yield from page
            if len(page) < BATCH:
                return

    # ---- changing ---------------------------------------------------------------------------------------------------

    def update(self, job: Job) -> Job | None:
        """Write a changed job, unless somebody has changed it since it was read.

        Returns:
            The job as it is now; None if somebody else was faster, and nothing was written.
        """
        return self.update_many([job])[0]

    def update_many(self, jobs: Iterable[Job]) -> list[Job | None]:
        """The same for several jobs, each on its own, in one transaction."""
        changed = list(jobs)
        if not changed:
            return []
        with self._writing() as db:
            return [self._write(db, job) for job in changed]

    def _write(self, db: sqlite3.Connection, job: Job) -> Job | None:
        before = db.execute("SELECT status FROM jobs WHERE job_id = ?", (job.job_id,)).fetchone()
        if before is None:
            raise self._missing(job.job_id)
        written = job.written()
        values = tuple(getattr(written, name) for name in _CHANGING)
        texts = json.dumps(job.notified), json.dumps(job.attempts)
        if not db.execute(_UPDATE, (*values, *texts, job.job_id, job.version)).rowcount:
            return None
        if job.status == COMPLETED != before[0]:
            db.execute(_UNBLOCK, (job.job_id,))
        return written

    def take_over(self, jobs: Iterable[Job]) -> int:
        """Replace the jobs with the same ids, if these are later versions; their requests stay.

        Returns:
            How many were replaced.
        """
        replaced = 0
        with self._writing() as db:
            for job in jobs:
                current = self._one(db, job.job_id)
                if job.version > current.version:
                    self._write(db, dataclasses.replace(job, version=current.version))
                    replaced += 1
                if job.version >= current.version:
                    values = (job.submitted_at, job.changed_at, job.version, job.job_id)
                    db.execute("UPDATE jobs SET submitted_at=?, changed_at=?, version=? WHERE job_id=?", values)
            db.execute(_COUNT_BLOCKED, (COMPLETED,))
        return replaced

    # ---- what launchers and monitors share --------------------------------------------------------------------------

    def state(self, key: str) -> tuple[dict[str, Any], int]:
        """What is shared under that key, and its version; empty and 0 if nothing is."""
        with self._reading() as db:
            row = db.execute("SELECT value, version FROM states WHERE key = ?", (key,)).fetchone()
        return (json.loads(row[0]), row[1]) if row else ({}, 0)

    def put_state(self, key: str, value: Mapping[str, Any], version: int) -> bool:
        """Write it, if its version is still that one; returns whether it was written."""
        text = json.dumps(value)
        with self._writing() as db:
            if version:
                query = "UPDATE states SET value = ?, version = version + 1 WHERE key = ? AND version = ?"
                return bool(db.execute(query, (text, key, version)).rowcount)
            return bool(db.execute("INSERT OR IGNORE INTO states VALUES (?, ?, 1)", (key, text)).rowcount)

    def _one(self, db: sqlite3.Connection, job_id: str) -> Job:
        jobs = self._select(db, "job_id = ?", [job_id])
        if not jobs:
            raise self._missing(job_id)
        return jobs[0]

    def _missing(self, job_id: str) -> JobNotFound:
        return JobNotFound(f"{self.path} has no job {job_id!r}.")

    def _select(
        self, db: sqlite3.Connection, where: str, values: Sequence[Any], *, order: str = "", limit: int | None = None
    ) -> list[Job]:
        query = f"SELECT {COLUMNS} FROM jobs WHERE {where}"  # noqa: S608  conditions of this module
        query += f" ORDER BY {order}" if order else ""
        query += f" LIMIT {int(limit)}" if limit is not None else ""
        return [self._job(db, row) for row in db.execute(query, values).fetchall()]

    def _job(self, db: sqlite3.Connection, row: Sequence[Any]) -> Job:
        *plain, needs, types, notify, notified, tags, attempts = row
        query = "SELECT needs FROM dependencies WHERE job_id = ? ORDER BY place"
        depends_on = tuple(each for (each,) in db.execute(query, (row[0],))) if needs else ()
        return Job(
            **dict(zip(_FIELDS, plain, strict=True)),
            depends_on=depends_on,
            instance_types=tuple(json.loads(types)),
            notify=tuple(json.loads(notify)),
            notified=tuple(json.loads(notified)),
            tags=json.loads(tags),
            attempts=tuple(json.loads(attempts)),
        )


def _values(job: Job) -> tuple[Any, ...]:
    """The job in the order of the columns."""
    texts = (job.instance_types, job.notify, job.notified, dict(job.tags), job.attempts)
    return (*(getattr(job, name) for name in _FIELDS), len(job.depends_on), *map(json.dumps, texts))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def open_file(place: str, *, session: Any = None, clock: Clock | None = None) -> SQLiteStore:  # noqa: ARG001  a file needs no session
    """The store in a file, as `open_store` opens it."""
    return SQLiteStore(place, clock=clock)
