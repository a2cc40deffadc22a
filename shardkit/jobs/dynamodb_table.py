"""The DynamoDB table of jobs: its keys and indexes as plain data, for this package and for a template alike.

Every job is one item, ``job#<id>``; what launchers and monitors share is in items ``state#<key>``. An index
holds only the items that have its key, so that the index of due notices is empty if none is due.

    lane     the jobs by state, in the order of their submission
    runs     the jobs of a run, in that order
    ended    those that ended, by time
    notices  those whose notice is due, by time
    waits    those that wait for another job, by the id of that job
"""

from __future__ import annotations

from typing import Any

KEY = "pk"
EXPIRES = "expires"  # seconds since 1970: DynamoDB deletes the item some time later
LANE, RUNS, ENDED, NOTICES, WAITS = "lane", "runs", "ended", "notices", "waits"

# What a round reads of many jobs. An index has nothing else, so that a page of 1 MB holds thousands of them.
_IN_LANE = (
    *("status", "kind", "owner", "instance_type", "instances", "exists", "not_before", "launched_at", "changed_at"),
    *("lease_until", "stop_asked_at", "waits_for"),
)


def _index(name: str, keys: tuple[str, ...], shown: tuple[str, ...] = ()) -> dict[str, Any]:
    schema = [{"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)]
    projection: dict[str, Any] = {"ProjectionType": "INCLUDE" if shown else "KEYS_ONLY"}
    return {
        "IndexName": name,
        "KeySchema": schema,
        "Projection": projection | ({"NonKeyAttributes": list(shown)} if shown else {}),
    }


# What CreateTable takes, except the name.
TABLE: dict[str, Any] = {
    "KeySchema": [{"AttributeName": KEY, "KeyType": "HASH"}],
    "AttributeDefinitions": [
        {"AttributeName": KEY, "AttributeType": "S"},
        {"AttributeName": "lane", "AttributeType": "S"},
        {"AttributeName": "place", "AttributeType": "S"},
        {"AttributeName": "run", "AttributeType": "S"},
        {"AttributeName": "over", "AttributeType": "S"},
        {"AttributeName": "changed_at", "AttributeType": "N"},
        {"AttributeName": "due", "AttributeType": "S"},
        {"AttributeName": "notice_at", "AttributeType": "N"},
        {"AttributeName": "waits_for", "AttributeType": "S"},
    ],
    "GlobalSecondaryIndexes": [
        _index(LANE, ("lane", "place"), _IN_LANE),
        _index(RUNS, ("run", "place"), ("status", "owner")),
        _index(ENDED, ("over", "changed_at"), ("place",)),
        _index(NOTICES, ("due", "notice_at")),
        _index(WAITS, ("waits_for",)),
    ],
    "BillingMode": "PAY_PER_REQUEST",
}
TIME_TO_LIVE: dict[str, Any] = {"AttributeName": EXPIRES, "Enabled": True}  # what UpdateTimeToLive takes
