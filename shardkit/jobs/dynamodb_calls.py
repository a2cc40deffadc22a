"""The calls of DynamoDB that the store makes: pages, a hundred items at a time, and writes with conditions."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions
from botocore.config import Config

from shardkit.jobs.calls import CALLER, EXPECTED, THROTTLED, jitter, words
from shardkit.jobs.dynamodb_items import Item, attr, names
from shardkit.jobs.dynamodb_table import KEY
from shardkit.jobs.errors import StoreError
from shardkit.jobs.store import batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# How the client handles trouble by itself: up to 8 tries, with growing waits between them.
CONFIG = Config(
    retries={"mode": "standard", "max_attempts": 8}, connect_timeout=5, read_timeout=20, max_pool_connections=10
)
TOGETHER = 100  # items in one BatchGetItem or TransactWriteItems
TOGETHER_BYTES = 3_000_000  # of the 4 MB that a transaction takes
TRIES = 6  # of a transaction that others got in the way of, or of keys that were left out
WAIT_S = 0.05  # before the second one; doubled each time

CONDITION, CANCELLED, INVALID = "ConditionalCheckFailedException", "TransactionCanceledException", "ValidationException"
_CONDITION_OF_ONE = "ConditionalCheckFailed"  # in a transaction's list of reasons
_BUSY = frozenset({"TransactionConflictException", "TransactionInProgressException"})
_THROTTLED = THROTTLED | {"ProvisionedThroughputExceededException", "LimitExceededException", "InternalServerError"}


@dataclass(frozen=True)
class Write:
    """One conditional write: a Put or an Update of a transaction, without the table."""

    kind: str
    key: str
    body: dict[str, Any]
    bytes: int


@dataclass(frozen=True)
class Unmet:
    """The condition did not hold; ``item`` is what is there, empty if nothing is."""

    item: Item


class Table:
    """A table of DynamoDB, in the store's terms; what cannot be mended is raised as a StoreError.

    Args:
        name: The table's name.
        session: Where clients come from; boto3's defaults if it is None.
        region: The table's region, if it is not the session's.
    """

    def __init__(self, name: str, *, session: Any = None, region: str | None = None) -> None:
        self.name, self.region = name, region
        self._session = session
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, int], Any] = {}

    def client(self, service: str = "dynamodb") -> Any:
        """A client of the session for this process alone: connections do not survive a fork."""
        with self._lock:
            wanted = (service, os.getpid())
            if wanted not in self._clients:
                with _as_store_errors(self, "be reached"):
                    session = self._session or boto3.Session()
                    region = {"region_name": self.region} if self.region else {}
                    self._clients[wanted] = session.client(service, config=CONFIG, **region)
            return self._clients[wanted]

    def call(self, method: str, **arguments: Any) -> Any:
        """One call on the table.

        Raises:
            StoreError: It cannot be made.
            ClientError: A condition did not hold, others were in the way, or the call was not valid.
        """
        client = self.client()
        with _as_store_errors(self, "be used"):
            return getattr(client, method)(**arguments)

    def create(self, definition: dict[str, Any], wait: dict[str, int]) -> bool:
        """Make the table if it does not exist, and wait until it can be used; returns whether it was made."""
        made = True
        with _as_store_errors(self, "be made"):
            try:
                self.client().create_table(TableName=self.name, **definition)
            except botocore.exceptions.ClientError as error:
                if _code(error) != "ResourceInUseException":
                    raise
                made = False
            self.client().get_waiter("table_exists").wait(TableName=self.name, WaiterConfig=wait)
        return made

    # ---- reading ----------------------------------------------------------------------------------------------------

    def item(self, key: str) -> Item:
        """The item of that key as it is now; empty if there is none."""
        answer = self.call("get_item", TableName=self.name, Key={KEY: attr(key)}, ConsistentRead=True)
        return dict(answer.get("Item") or {})

    def items(self, keys: Iterable[str], shown: Sequence[str], *, now: bool = True) -> Iterator[Item]:
        """The items of those keys, in any order, with those attributes; ``now``: as they are at this moment."""
        wanted = {
            "ProjectionExpression": ", ".join(names(shown)),
            "ExpressionAttributeNames": names(shown),
            "ConsistentRead": now,
        }
        for batch in batches(keys, TOGETHER):
            left: Any = {self.name: wanted | {"Keys": [{KEY: attr(key)} for key in batch]}}
            tries = 0
            while left:
                answer = self.call("batch_get_item", RequestItems=left)
                items = answer["Responses"].get(self.name, ())
                yield from items
                left = answer.get("UnprocessedKeys")
                tries = 0 if items else tries + 1
                if left:
                    self._wait(tries)

    def lines(
        self,
        index: str,
        where: str,
        values: dict[str, Any],
        shown: Sequence[str],
        *,
        latest: bool = False,
        limit: int | None = None,
    ) -> Iterator[Item]:
        """The lines of an index under a condition on its keys, page by page, with those attributes.

        A page of 1 MB is thousands of lines; attributes that are not shown take neither time nor memory here. ``limit``
        is the most lines of a page.
        """
        size = {"Limit": limit} if limit is not None else {}
        for page in self._pages(index, where, values, shown, ScanIndexForward=not latest, **size):
            yield from page.pop("Items")  # so that these are freed before the next page comes

    def count(self, index: str, where: str, values: dict[str, Any]) -> int:
        """How many there are."""
        return sum(page["Count"] for page in self._pages(index, where, values, (), Select="COUNT"))

    def _pages(
        self, index: str, where: str, values: dict[str, Any], shown: Sequence[str], **more: Any
    ) -> Iterator[Any]:
        arguments = {
            "TableName": self.name,
            "IndexName": index,
            "KeyConditionExpression": where,
            "ExpressionAttributeNames": names([*_words(where), *shown]),
            "ExpressionAttributeValues": {f":{name}": attr(each) for name, each in values.items()},
            **more,
        }
        if shown:
            arguments["ProjectionExpression"] = ", ".join(names(shown))
        while True:
            page = self.call("query", **arguments)
            yield page
            if not page.get("LastEvaluatedKey"):
                return
            arguments["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    # ---- writing ----------------------------------------------------------------------------------------------------

    def put(self, item: Item, *, where: str = "attribute_not_exists(#pk)", **values: Any) -> Write:
        """An item to be written under a condition; by default, that there is none with that key."""
        body: dict[str, Any] = {
            "Item": item | {"writer": attr(uuid.uuid4().hex)},
            "ConditionExpression": where,
            "ExpressionAttributeNames": names(_words(where)),
        }
        if values:
            body["ExpressionAttributeValues"] = {f":if_{name}": attr(each) for name, each in values.items()}
        return Write("Put", item[KEY]["S"], body, _size(item))

    def change(
        self,
        key: str,
        sets: dict[str, Any],
        removed: Iterable[str] = (),
        *,
        where: str,
        copied: tuple[str, str] | None = None,
        **values: Any,
    ) -> Write:
        """A change of an item under a condition; ``copied``: an attribute that takes the value of another one."""
        sets, gone = sets | {"writer": attr(uuid.uuid4().hex)}, list(removed)
        copies = [copied] if copied else []
        change = "SET " + ", ".join([*(f"#{name} = :{name}" for name in sets), *(f"#{a} = #{b}" for a, b in copies)])
        change += " REMOVE " + ", ".join(f"#{name}" for name in gone) if gone else ""
        used = [*sets, *gone, *(name for pair in copies for name in pair), *_words(where)]
        body = {
            "Key": {KEY: attr(key)},
            "UpdateExpression": change,
            "ConditionExpression": where,
            "ExpressionAttributeNames": names(used),
            "ExpressionAttributeValues": {f":{name}": each for name, each in sets.items()}
            | {f":if_{name}": attr(each) for name, each in values.items()},
        }
        return Write("Update", key, body, _size(sets))

    def write(self, writes: Iterable[Write]) -> list[Unmet | None]:
        """Write each if its condition holds, a hundred per call; a write that somebody else got ahead of is Unmet.

        They are drawn as they are written, so that not all need to be in memory at once.

        A write that got through although its answer was lost counts as written: its mark shows it.
        """
        outcomes: dict[int, Unmet | None] = {}
        for batch in _together(writes):
            self._write_batch(batch, outcomes)
        return [outcomes[at] for at in range(len(outcomes))]

    def _write_batch(self, left: dict[int, Write], outcomes: dict[int, Unmet | None]) -> None:
        """Write all of them in a transaction; if one of them cannot be written, the others in another one."""
        tries = 0
        while len(left) > 1 and tries < TRIES:
            ordered = list(left)
            reasons = self._transaction([left[at] for at in ordered])
            if reasons is None:
                outcomes |= dict.fromkeys(ordered)
                return
            decided = {
                at: _outcome(left[at], reason.get("Item") or {})
                for at, reason in zip(ordered, reasons, strict=False)
                if reason.get("Code") == _CONDITION_OF_ONE
            }
            if not decided and not _passing(reasons):
                for half in (ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]):
                    self._write_batch({at: left[at] for at in half}, outcomes)
                return
            outcomes |= decided
            left = {at: write for at, write in left.items() if at not in decided}
            if not decided:
                tries += 1
                time.sleep(jitter(WAIT_S * 2**tries))
        for at, write in left.items():
            outcomes[at] = self._write_one(write)

    def _transaction(self, writes: list[Write]) -> list[dict[str, Any]] | None:
        """Write all or none.

        Returns:
            For each, why it kept the others from being written; None if all were written, empty if they are
            too much for a call.
        """
        actions = [{each.kind: self._full(each)} for each in writes]
        try:
            self.call("transact_write_items", TransactItems=actions)
        except botocore.exceptions.ClientError as error:
            code = _code(error)
            if code == CANCELLED:
                return list(error.response.get("CancellationReasons") or [])
            return [{"Code": "TransactionConflict"}] if code in _BUSY else []
        return None

    def _write_one(self, write: Write) -> Unmet | None:
        method = "put_item" if write.kind == "Put" else "update_item"
        tries = 0
        while True:
            try:
                self.call(method, **self._full(write))
            except botocore.exceptions.ClientError as error:
                if _code(error) == CONDITION:
                    return _outcome(write, error.response.get("Item") or {})
                if _code(error) not in _BUSY:
                    raise StoreError(
                        f"DynamoDB does not take {write.key} into table {self.name}: {words(error)}."
                    ) from error
                tries += 1
                self._wait(tries)
            else:
                return None

    def _full(self, write: Write) -> dict[str, Any]:
        return write.body | {"TableName": self.name, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}

    def _wait(self, tries: int) -> None:
        """Wait before the next try.

        Raises:
            StoreError: There are no more tries.
        """
        if tries > TRIES:
            raise _busy(self)
        time.sleep(jitter(WAIT_S * 2**tries))


def _outcome(write: Write, item: Item) -> Unmet | None:
    """The outcome of a write whose condition did not hold: None if that is because it got through before."""
    body = write.body
    mark = body["Item"]["writer"] if write.kind == "Put" else body["ExpressionAttributeValues"][":writer"]
    return None if item.get("writer") == mark else Unmet(item)


def _passing(reasons: list[dict[str, Any]]) -> bool:
    """Whether a transaction was cancelled for a reason that passes."""
    codes = {reason.get("Code") for reason in reasons}
    return bool(codes & {"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})


def _together(writes: Iterable[Write]) -> Iterator[dict[int, Write]]:
    """Writes that fit into one transaction, by their number, in order: every item once in each."""
    batch: dict[int, Write] = {}
    size, keys = 0, set[str]()
    for at, write in enumerate(writes):
        if batch and (len(batch) == TOGETHER or size + write.bytes > TOGETHER_BYTES or write.key in keys):
            yield batch
            batch, size, keys = {}, 0, set()
        batch[at] = write
        size += write.bytes
        keys.add(write.key)
    if batch:
        yield batch


def _size(attributes: Item) -> int:
    """About how many bytes they take."""
    return sum(len(name) + sum(len(each) for each in held.values()) for name, held in attributes.items())


def _words(where: str) -> list[str]:
    """The attributes that a condition names."""
    return [word.strip("(),")[1:] for word in where.replace("(", " ").split() if word.startswith("#")]


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _as_store_errors(table: Table, what: str) -> Iterator[None]:
    """Turns errors of DynamoDB and the client library into a StoreError; lets conditions and the like through."""
    try:
        yield
    except EXPECTED as error:
        code = _code(error) if isinstance(error, botocore.exceptions.ClientError) else ""
        if code in _BUSY | {CONDITION, CANCELLED, INVALID}:
            raise
        if code in _THROTTLED:
            raise _busy(table) from error
        raise StoreError(
            f"The DynamoDB table {table.name} cannot {what}: {words(error)}.", hint=_cure(error, code)
        ) from error


def _cure(error: Exception, code: str) -> str:
    if code == "ResourceNotFoundException":
        return (
            "Make the table with the template of `shardkit jobs deploy-template` or with "
            "shardkit.jobs.open.create_table(), or give the region that it is in."
        )
    no_credentials = isinstance(
        error, botocore.exceptions.NoCredentialsError | botocore.exceptions.PartialCredentialsError
    )
    if no_credentials or code in CALLER:
        return "Give AWS credentials that hold, as for any AWS command: a profile, a role or AWS_* variables."
    if isinstance(error, botocore.exceptions.NoRegionError):
        return "Give the table's region: dynamodb://TABLE?region=..., or AWS_REGION."
    if code.startswith("AccessDenied"):
        return "Let this role query, get, put and update the table's items and query its indexes."
    return "Try again; if that does not help, check network, region and endpoint."


def _busy(table: Table) -> StoreError:
    return StoreError(
        f"DynamoDB takes no more calls on table {table.name} for now.",
        hint="Try again in a minute. If it stays so, see that the table has on-demand capacity.",
    )
