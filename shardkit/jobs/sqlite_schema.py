"""The tables of the SQLite store.

Requests have a table of their own, so that a round over ten thousand jobs reads none of them.
"""

from __future__ import annotations

import sqlite3
import time

SCHEMA_VERSION = 2
WAIT_FOR_LOCK_S = 60.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    cause TEXT NOT NULL,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    run TEXT NOT NULL,
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
    notice_at REAL NOT NULL,
    notice_tries INTEGER NOT NULL,
    version INTEGER NOT NULL,
    needs INTEGER NOT NULL,
    blocked INTEGER NOT NULL,
    instance_types TEXT NOT NULL,
    notify TEXT NOT NULL,
    notified TEXT NOT NULL,
    tags TEXT NOT NULL,
    attempts TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_waiting ON jobs (status, blocked, owner, instance_type, seq);
CREATE INDEX IF NOT EXISTS jobs_time ON jobs (status, blocked, not_before);
CREATE INDEX IF NOT EXISTS jobs_ended ON jobs (status, changed_at);
CREATE INDEX IF NOT EXISTS jobs_run ON jobs (run, status);
CREATE INDEX IF NOT EXISTS jobs_notices ON jobs (notice_at) WHERE notice_at > 0;
CREATE TABLE IF NOT EXISTS requests (job_id TEXT PRIMARY KEY, request TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dependencies (
    job_id TEXT NOT NULL, place INTEGER NOT NULL, needs TEXT NOT NULL, PRIMARY KEY (job_id, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dependencies_needs ON dependencies (needs, job_id);
CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
"""


def prepare(db: sqlite3.Connection) -> int:
    """Make the tables if they are missing; returns the version that the file had before."""
    until = time.monotonic() + WAIT_FOR_LOCK_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # Two programs open a new file at once: this statement does not wait by itself.
            if time.monotonic() > until or "locked" not in str(error):
                raise
            time.sleep(0.01)
    db.execute("PRAGMA synchronous = NORMAL")
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version < SCHEMA_VERSION:
        db.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    return version
