"""The store in a SQLite file: for one machine, any number of processes and threads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import Clock, RealClock
from shardkit.jobs.errors import JobConflict, JobError, JobNotFound, StoreError
from shardkit.jobs.job import COMPLETED, FAILED, IN_PROGRESS, LAUNCHED, MAYBE, NEW, STATUSES, STOPPED, Job
from shardkit.jobs.store import Live, Request, Submission

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SCHEMA_VERSION = 1
WAIT_FOR_LOCK_S = 60.0
BATCH = 500  # ids in one query: fewer than the variables that any SQLite allows
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    cause TEXT NOT NULL,
    owner TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    instances INTEGER NOT NULL,
    known TEXT NOT NULL,
    submitted_at REAL NOT NULL,
    changed_at REAL NOT NULL,
    launched_at REAL NOT NULL,
    not_before REAL NOT NULL,
    lease_until REAL NOT NULL,
    stop_asked_at REAL NOT NULL,
    stop_sent_at REAL NOT NULL,
    missing_since REAL NOT NULL,
    base INTEGER NOT NULL,
    version INTEGER NOT NULL,
    needs INTEGER NOT NULL,
    blocked INTEGER NOT NULL,
    instance_types TEXT NOT NULL,
    tags TEXT NOT NULL,
    attempts TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_waiting ON jobs (status, blocked, seq);
CREATE INDEX IF NOT EXISTS jobs_time ON jobs (status, blocked, not_before);
CREATE INDEX IF NOT EXISTS jobs_flight ON jobs (status, instance_type, instances);
CREATE INDEX IF NOT EXISTS jobs_uncertain ON jobs (seq) WHERE known = 'maybe';
CREATE INDEX IF NOT EXISTS jobs_stopping ON jobs (seq) WHERE stop_asked_at > 0;
CREATE TABLE IF NOT EXISTS requests (job_id TEXT PRIMARY KEY, request TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dependencies (
    job_id TEXT NOT NULL, place INTEGER NOT NULL, needs TEXT NOT NULL, PRIMARY KEY (job_id, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dependencies_needs ON dependencies (needs, job_id);
CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
"""
COLUMNS = (
    "job_id, status, attempt, reason, cause, owner, instance_type, instances, known, submitted_at, changed_at, "
    "launched_at, not_before, lease_until, stop_asked_at, stop_sent_at, missing_since, base, version, needs, "
    "instance_types, tags, attempts"
)
_LIVE = f"status IN ('{LAUNCHED}', '{IN_PROGRESS}')"
_READY = f"status = '{NEW}' AND blocked = 0"
_UPDATE = (
    "UPDATE jobs SET status=?, attempt=?, reason=?, cause=?, instance_type=?, known=?, changed_at=?, launched_at=?, "
    "not_before=?, lease_until=?, stop_asked_at=?, stop_sent_at=?, missing_since=?, base=?, attempts=?, "
    "version=version+1 WHERE job_id=? AND version=?"
)
_UNBLOCK = "UPDATE jobs SET blocked = blocked - 1 WHERE job_id IN (SELECT job_id FROM dependencies WHERE needs = ?)"
_COUNT_BLOCKED = """
UPDATE jobs SET blocked = (
    SELECT COUNT(*) FROM dependencies d JOIN jobs n ON n.job_id = d.needs
    WHERE d.job_id = jobs.job_id AND n.status != ?
) WHERE needs > 0
"""


class SQLiteStore:
    """Jobs in a SQLite file on a local disk; the file is made if it is missing.

    Any number of processes and threads may use the same file, and threads the same store.

    Args:
        path: The file.
        clock: What tells the time of submissions.

    Raises:
        StoreError: The file cannot be opened, is no such store, or was written by a later version.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self.path = os.fspath(path)
        self._clock = clock or RealClock()
        self._lock = threading.RLock()
        self._inherited: list[sqlite3.Connection] = []
        self._connect()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._closing()

    def __enter__(self) -> SQLiteStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- adding -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        job_id: str,
        request: Request,
        *,
        depends_on: Sequence[str] = (),
        owner: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> Job:
        """Add a job.

        Args:
            job_id: Its id (see ``Submission``).
            request: The arguments of CreateProcessingJob, without ProcessingJobName.
            depends_on: The ids of jobs that must be ``Completed`` first.
            owner: Whose job it is.
            tags: Whatever else its owner wants to know about it.

        Returns:
            The job; the one that is there already if it has the same request and needs the same jobs.

        Raises:
            JobConflict: The id is taken by another request.
            JobNotFound: It depends on a job that was not submitted.
            JobError: The id or the request cannot be used.
        """
        return self.submit_many([Submission(job_id, request, depends_on, owner, tags or {})])[0]

    def submit_many(self, submissions: Iterable[Submission]) -> list[Job]:
        """Add jobs, all or none; raises what submit() does."""
        prepared = [(each.job(self._clock.time()), each.text()) for each in submissions]
        with self._writing() as db:
            return [self._add(db, job, text) for job, text in prepared]

    def _add(self, db: sqlite3.Connection, job: Job, text: str) -> Job:
        row = db.execute("SELECT request FROM requests WHERE job_id = ?", (job.job_id,)).fetchone()
        if row is not None:
            known = self._one(db, job.job_id)
            if row[0] == text and known.depends_on == job.depends_on:
                return known
            what = "request" if row[0] != text else "list of jobs that it depends on"
            raise JobConflict(
                f"There is a job {job.job_id} already, with another {what}.", hint="Submit this one under another id."
            )
        blocked = 0
        for place, needs in enumerate(job.depends_on):
            found = db.execute("SELECT status FROM jobs WHERE job_id = ?", (needs,)).fetchone()
            if found is None:
                raise JobNotFound(
                    f"Job {job.job_id} depends on {needs}, which was not submitted.", hint=f"Submit {needs} first."
                )
            blocked += found[0] != COMPLETED
            db.execute("INSERT INTO dependencies VALUES (?, ?, ?)", (job.job_id, place, needs))
        db.execute("INSERT INTO requests VALUES (?, ?)", (job.job_id, text))
        values = _values(job)
        marks = ", ".join("?" * (len(values) + 1))
        db.execute(f"INSERT INTO jobs ({COLUMNS}, blocked) VALUES ({marks})", (*values, blocked))  # noqa: S608
        return job

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            JobNotFound: There is none.
        """
        with self._reading() as db:
            return self._one(db, job_id)

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs of those ids, as far as there are any."""
        wanted = list(dict.fromkeys(job_ids))
        found: dict[str, Job] = {}
        with self._reading() as db:
            for at in range(0, len(wanted), BATCH):
                batch = wanted[at : at + BATCH]
                where = f"job_id IN ({', '.join('?' * len(batch))})"
                found |= {job.job_id: job for job in self._select(db, where, batch)}
        return found

    def request(self, job_id: str) -> dict[str, Any]:
        """The request of that job.

        Raises:
            JobNotFound: There is no such job.
        """
        with self._reading() as db:
            row = db.execute("SELECT request FROM requests WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise self._missing(job_id)
        request: dict[str, Any] = json.loads(row[0])
        return request

    def jobs(
        self, *, status: str | Iterable[str] | None = None, prefix: str = "", limit: int | None = None
    ) -> list[Job]:
        """Jobs in the order of their submission.

        Args:
            status: Only those of this status, or of these.
            prefix: Only those whose id begins like this.
            limit: At most so many.
        """
        where, values = ["1"], list[Any]()
        if status is not None:
            wanted = [status] if isinstance(status, str) else list(status)
            unknown = sorted(set(wanted) - set(STATUSES))
            if unknown:
                raise JobError(f"There is no status {unknown[0]!r}.", hint=f"There are {', '.join(STATUSES)}.")
            where.append(f"status IN ({', '.join('?' * len(wanted))})")
            values += wanted
        if prefix:
            where.append("job_id >= ? AND job_id < ?")
            values += [prefix, prefix + "\x7f"]
        with self._reading() as db:
            return self._select(db, " AND ".join(where), values, order="seq", limit=limit)

    def counts(self) -> dict[str, int]:
        """How many jobs there are, by status; every status is named."""
        with self._reading() as db:
            rows = db.execute("SELECT status, COUNT(*) FROM jobs GROUP BY status").fetchall()
        return dict.fromkeys(STATUSES, 0) | dict(rows)

    def ready(self, now: float, *, without: Iterable[str] = (), limit: int = 1) -> list[Job]:
        """``New`` jobs that may be launched now, in the order of their submission, not of those instance types."""
        left_out = list(without)
        types = f" AND instance_type NOT IN ({', '.join('?' * len(left_out))})" if left_out else ""
        with self._reading() as db:
            where = f"{_READY} AND not_before <= ?{types}"
            return self._select(db, where, [now, *left_out], order="seq", limit=limit)

    def next_ready(self) -> float | None:
        """When the first ``New`` job that waits for nothing but time may be launched; None if there is none."""
        with self._reading() as db:
            row = db.execute(f"SELECT MIN(not_before) FROM jobs WHERE {_READY}").fetchone()  # noqa: S608
        return None if row[0] is None else float(row[0])

    def blocked(self) -> int:
        """How many ``New`` jobs wait for others."""
        with self._reading() as db:
            row = db.execute("SELECT COUNT(*) FROM jobs WHERE status = ? AND blocked > 0", (NEW,)).fetchone()
        return int(row[0])

    def doomed(self, limit: int = 100) -> list[tuple[Job, str]]:
        """``New`` jobs that wait for one that failed or was stopped, each with the id of that one."""
        query = (
            "SELECT j.job_id, MIN(d.needs) FROM jobs j JOIN dependencies d ON d.job_id = j.job_id "
            "JOIN jobs n ON n.job_id = d.needs WHERE j.status = ? AND j.blocked > 0 AND n.status IN (?, ?) "
            "GROUP BY j.job_id LIMIT ?"
        )
        with self._reading() as db:
            rows = db.execute(query, (NEW, FAILED, STOPPED, limit)).fetchall() if self.blocked() else []
            return [(self._one(db, job_id), needs) for job_id, needs in rows]

    def dependents(self, job_id: str) -> list[Job]:
        """The jobs that wait for that one."""
        with self._reading() as db:
            return self._select(
                db, "job_id IN (SELECT job_id FROM dependencies WHERE needs = ?)", [job_id], order="seq"
            )

    def in_flight(self) -> dict[str, int]:
        """Instances of live jobs, by instance type."""
        query = f"SELECT instance_type, SUM(instances) FROM jobs WHERE {_LIVE} GROUP BY instance_type"  # noqa: S608
        with self._reading() as db:
            return dict(db.execute(query).fetchall())

    def live(self) -> Live:
        """What is in flight, in short."""
        query = f"SELECT COUNT(*), MIN(job_id), MAX(job_id), MIN(launched_at) FROM jobs WHERE {_LIVE}"  # noqa: S608
        with self._reading() as db:
            jobs, first, last, launched_at = db.execute(query).fetchone()
        return Live(jobs, first or "", last or "", launched_at or 0.0)

    def uncertain(self, limit: int = 1000) -> list[Job]:
        """``Launched`` jobs of which nobody knows whether the service has them."""
        with self._reading() as db:
            return self._select(db, f"known = '{MAYBE}' AND status = ?", [LAUNCHED], order="seq", limit=limit)

    def stopping(self, limit: int = 1000) -> list[Job]:
        """Live jobs that somebody asked to be stopped."""
        with self._reading() as db:
            return self._select(db, f"{_LIVE} AND stop_asked_at > 0", [], order="seq", limit=limit)

    # ---- changing ---------------------------------------------------------------------------------------------------

    def update(self, job: Job) -> Job | None:
        """Write a changed job, if nobody changed it since it was read.

        Returns:
            The job as it is now; None if somebody was faster, and nothing was written.
        """
        return self.update_many([job])[0]

    def update_many(self, jobs: Iterable[Job]) -> list[Job | None]:
        """The same for several, each by itself, in one transaction."""
        changed = list(jobs)
        if not changed:
            return []
        with self._writing() as db:
            return [self._write(db, job) for job in changed]

    def _write(self, db: sqlite3.Connection, job: Job) -> Job | None:
        before = db.execute("SELECT status FROM jobs WHERE job_id = ?", (job.job_id,)).fetchone()
        if before is None:
            raise self._missing(job.job_id)
        values = (
            *(job.status, job.attempt, job.reason, job.cause, job.instance_type, job.exists, job.changed_at),
            *(job.launched_at, job.not_before, job.lease_until, job.stop_asked_at, job.stop_sent_at),
            *(job.missing_since, job.base, json.dumps(job.attempts), job.job_id, job.version),
        )
        if not db.execute(_UPDATE, values).rowcount:
            return None
        if job.status == COMPLETED != before[0]:
            db.execute(_UNBLOCK, (job.job_id,))
        return dataclasses.replace(job, version=job.version + 1)

    def take_over(self, jobs: Iterable[Job]) -> int:
        """Put jobs in the place of those with their ids, if they are later versions; their requests stay.

        Returns:
            How many were replaced.
        """
        replaced = 0
        with self._writing() as db:
            for job in jobs:
                known = self._one(db, job.job_id)
                if job.version > known.version:
                    self._write(db, dataclasses.replace(job, version=known.version))
                    replaced += 1
                if job.version >= known.version:
                    values = (job.submitted_at, job.changed_at, job.version, job.job_id)
                    db.execute("UPDATE jobs SET submitted_at=?, changed_at=?, version=? WHERE job_id=?", values)
            db.execute(_COUNT_BLOCKED, (COMPLETED,))
        return replaced

    # ---- what launchers and monitors keep for each other -----------------------------------------------------------

    def state(self, key: str) -> tuple[dict[str, Any], int]:
        """What is kept under that key, and its version; empty and 0 if nothing is."""
        with self._reading() as db:
            row = db.execute("SELECT value, version FROM states WHERE key = ?", (key,)).fetchone()
        return (json.loads(row[0]), row[1]) if row else ({}, 0)

    def put_state(self, key: str, value: Mapping[str, Any], version: int) -> bool:
        """Write it, if its version is still that one; whether it was."""
        text = json.dumps(value)
        with self._writing() as db:
            if version:
                query = "UPDATE states SET value = ?, version = version + 1 WHERE key = ? AND version = ?"
                return bool(db.execute(query, (text, key, version)).rowcount)
            return bool(db.execute("INSERT OR IGNORE INTO states VALUES (?, ?, 1)", (key, text)).rowcount)

    # ---- the file --------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Open the file, for this process: a connection does not survive a fork."""
        try:
            db = sqlite3.connect(self.path, timeout=WAIT_FOR_LOCK_S, isolation_level=None, check_same_thread=False)
            found = _prepare(db)
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path} cannot be used as a store of jobs: {error}.",
                hint="Give a file on a local disk that this program may write to.",
            ) from error
        if found > SCHEMA_VERSION:
            db.close()
            raise StoreError(
                f"{self.path} was written by a later version of shardkit.", hint="Install that version or a later one."
            )
        self._db, self._pid = db, os.getpid()
        self._closing = weakref.finalize(self, db.close)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._pid != os.getpid():
                self._closing.detach()
                self._inherited.append(self._db)  # the parent's: not ours to close
                self._connect()
            yield self._db

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes in; all of it is kept, or nothing."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _one(self, db: sqlite3.Connection, job_id: str) -> Job:
        found = self._select(db, "job_id = ?", [job_id])
        if not found:
            raise self._missing(job_id)
        return found[0]

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
        *plain, needs, types, tags, attempts = row
        query = "SELECT needs FROM dependencies WHERE job_id = ? ORDER BY place"
        depends_on = tuple(each for (each,) in db.execute(query, (row[0],))) if needs else ()
        return Job(
            **dict(zip(_FIELDS, plain, strict=True)),
            depends_on=depends_on,
            instance_types=tuple(json.loads(types)),
            tags=json.loads(tags),
            attempts=tuple(json.loads(attempts)),
        )


def _prepare(db: sqlite3.Connection) -> int:
    """Make the tables if they are missing; the version of the file as it was found."""
    until = time.monotonic() + WAIT_FOR_LOCK_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:  # two that open a new file at once: this statement does not wait by itself
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
    db.execute("PRAGMA synchronous = NORMAL")
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    if found < SCHEMA_VERSION:
        db.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    return found


_FIELDS = tuple("exists" if name == "known" else name for name in COLUMNS.split(", ")[:19])


def _values(job: Job) -> tuple[Any, ...]:
    """The job in the order of the columns."""
    plain = tuple(getattr(job, name) for name in _FIELDS)
    rest = (len(job.depends_on), json.dumps(job.instance_types), json.dumps(dict(job.tags)), json.dumps(job.attempts))
    return plain + rest
