"""What every store of jobs must do, tried on each; for DynamoDB also how many calls it takes."""

from __future__ import annotations

import functools
import itertools
import random
import string
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError
from emulators import locked

from shardkit.jobs import (
    JobConflict,
    JobError,
    JobNotFound,
    SimulatedClock,
    SQLiteStore,
    StoreError,
    Submission,
    dynamodb_calls,
)
from shardkit.jobs.dynamodb import DynamoDBStore
from shardkit.jobs.job import SENT, Job
from shardkit.jobs.open import create_table, open_store
from shardkit.jobs.store import Store, request_of
from shardkit.jobs.transitions import claim, created, fresh, given_up, put_back, stop_asked

if TYPE_CHECKING:
    from pathlib import Path

START = 1_800_000_000.0
OpenStore = Callable[..., Store]


def request(kind: str = "ml.m5.xlarge", **more: Any) -> dict[str, Any]:
    return {"ProcessingResources": {"ClusterConfig": {"InstanceCount": 1, "InstanceType": kind}}} | more


def ids(jobs: Any) -> list[str]:
    return [job.job_id for job in jobs]


def ended(job: Job, status: str = "Completed", at: float = START + 50) -> Job:
    return replace(job, status=status, changed_at=at, exists="yes")


def written(store: Store, job: Job) -> Job:
    done = store.update(job)
    assert done is not None
    return done


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START)


@pytest.fixture
def aws(ministack_url: str, servers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty table ``jobs``, for one test at a time, whose clients find it by their environment."""
    for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", ministack_url if name == "ENDPOINT_URL" else "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    with locked(servers / "jobs"):
        assert create_table("jobs")
        yield
        boto3.client("dynamodb", "eu-west-1").delete_table(TableName="jobs")


class Calls(Counter[str]):
    """A boto3 session whose calls are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.session = boto3.Session()
        self.session.events.register("before-call", lambda model, **_: self.update([model.name]))


@pytest.fixture
def dynamodb(aws: None, clock: SimulatedClock) -> DynamoDBStore:
    return DynamoDBStore("jobs", clock=clock)


@pytest.fixture(params=["sqlite", "dynamodb"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: SimulatedClock) -> Store:
    if request.param == "sqlite":
        return SQLiteStore(tmp_path / "jobs.sqlite", clock=clock)
    found: Store = request.getfixturevalue("dynamodb")
    return found


# ---- submitting ----------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_job_comes_back_as_it_was_submitted(store: Store) -> None:
    wanted = {
        "ProcessingResources": {
            "ClusterConfig": {
                "InstancePreferences": [
                    {"InstanceType": "a", "InstanceCount": 2},
                    {"InstanceType": "b", "InstanceCount": 2},
                ]
            }
        }
    }
    store.submit("need", request())
    job = store.submit(
        "a-1", wanted, depends_on=["need", "need"], owner="ana", run="7", notify=["mail", "mail"], tags={"ü": "1"}
    )
    assert job == store.get("a-1") == store.find(["a-1", "none"])["a-1"] == store.jobs(run="7")[0]
    assert (job.depends_on, job.notify, job.tags, job.instance_types) == (("need",), ("mail",), {"ü": "1"}, ("a", "b"))
    assert (job.status, job.version, job.instances, job.submitted_at) == ("New", 1, 2, START)
    assert store.requests(["a-1", "none"]) == {"a-1": wanted} and request_of(store, "a-1") == wanted
    for ask in (
        lambda: store.get("none"),
        lambda: request_of(store, "none"),
        lambda: store.update(replace(job, job_id="none")),
    ):
        with pytest.raises(JobNotFound, match="none"):
            ask()


def test_the_same_job_again_is_that_job_and_another_one_a_conflict(store: Store) -> None:
    many = [Submission("a", request()), Submission("b", request(), ["a"]), Submission("a", request())]
    first = store.submit_many(many)
    assert first[0] == first[2] and ids(first) == ["a", "b", "a"]
    claimed = written(store, claim(first[0], START, 60))
    assert store.submit_many([*many, Submission("c", request())])[:3] == [claimed, first[1], claimed]
    assert ids(store.jobs()) == ["a", "b", "c"]
    with pytest.raises(JobConflict, match="another request"):
        store.submit("a", request("other"))
    with pytest.raises(JobConflict, match="depends on"):
        store.submit("b", request())
    with pytest.raises(JobConflict, match="another request"):
        store.submit_many([Submission("d", request()), Submission("d", request("other"))])
    assert not store.find(["d"])


@pytest.mark.whole
@pytest.mark.parametrize("needs", ["none", "later", "a"])
def test_a_job_needs_jobs_that_were_submitted_before(store: Store, needs: str) -> None:
    with pytest.raises(JobNotFound, match=f"Submit {needs} first"):
        store.submit_many([Submission("a", request(), [needs]), Submission("later", request())])
    assert not store.jobs()


def test_order_is_that_of_submission_within_and_across_calls(store: Store, clock: SimulatedClock) -> None:
    names = [f"j{number}" for number in random.Random(3).sample(range(10_000), 60)]
    for start in (0, 20, 40):  # two calls at the same moment, one later
        store.submit_many(
            Submission(name, request(), owner="even" if at % 2 else "odd")
            for at, name in enumerate(names[start : start + 20])
        )
        clock.sleep(start)
    assert ids(store.jobs()) == names == ids(store.waiting(START + 99, most=100).ready)
    assert (
        ids(store.jobs(latest=True, limit=3)) == names[:-4:-1]
        and ids(store.jobs(limit=2)) == names[:2]
        and store.jobs(limit=0) == []
    )
    assert ids(store.jobs(owner="even", limit=4)) == names[1:9:2]


def test_jobs_by_status_run_and_owner(store: Store) -> None:
    jobs = store.submit_many(Submission(f"j{at}", request(), run="ab"[at % 2], owner="xyz"[at % 3]) for at in range(12))
    for job, status in zip(
        jobs, itertools.cycle(["New", "Launched", "InProgress", "Completed", "Failed", "Stopped"]), strict=False
    ):
        if status != "New":
            written(store, replace(job, status=status))
    assert ids(store.jobs(status="New")) == ["j0", "j6"] and ids(
        store.jobs(status=("Launched", "Failed"), latest=True)
    ) == ["j10", "j7", "j4", "j1"]
    assert ids(store.jobs(run="a", owner="x", status=["New", "Stopped"])) == ["j0", "j6"] and ids(
        store.jobs(run="b", limit=2)
    ) == ["j1", "j3"]
    assert ids(store.jobs(run="b", status="Stopped", limit=1)) == ["j5"] and ids(
        store.jobs(status="InProgress", limit=1, latest=True)
    ) == ["j8"]
    assert store.jobs(run="none") == [] and store.counts() == dict.fromkeys(
        ["New", "Launched", "InProgress", "Completed", "Failed", "Stopped"], 2
    )
    assert store.counts(run="a") == {
        "New": 2,
        "Launched": 0,
        "InProgress": 2,
        "Completed": 0,
        "Failed": 2,
        "Stopped": 0,
    }
    with pytest.raises(JobError, match="no status 'Done'"):
        store.jobs(status="Done")


# ---- changing ------------------------------------------------------------------------------------------------------


def test_a_change_is_written_once(store: Store) -> None:
    job = store.submit("a", request(), notify=["mail"])
    claimed = written(store, claim(job, START + 1, 60))
    assert claimed == store.get("a") and claimed.version == 2 and claimed.attempts[0]["name"] == "a-1"
    assert store.update(claim(job, START + 2, 60)) is None and store.get("a") == claimed
    running = written(store, created(claimed, START + 3))
    stopping = written(store, stop_asked(running, START + 4))
    (flying,) = store.flight()
    assert all(getattr(flying, name) == getattr(stopping, name) for name in vars(flying)) and not flying.uncertain
    assert flying.stop_asked_at == START + 4
    done = written(store, ended(stopping))
    assert done.notice_at == START + 50 and done == store.get("a") and store.flight() == []


@pytest.mark.whole
def test_of_many_changes_each_is_written_by_itself(store: Store) -> None:
    jobs = store.submit_many(Submission(f"j{at}", request()) for at in range(130))
    late = written(store, claim(jobs[120], START, 60))
    outcome = store.update_many([*(claim(job, START + 5, 60) for job in jobs), claim(jobs[7], START + 6, 60)])
    assert [at for at, job in enumerate(outcome) if job is None] == [120, 130]
    assert store.get("j120") == late and store.get("j7") == outcome[7] and store.update_many([]) == []
    assert ids(store.flight()) == ids(jobs) and store.counts()["Launched"] == 130


def test_jobs_of_elsewhere_are_taken_over_if_they_are_later(store: Store) -> None:
    old, new = store.submit_many([Submission("old", request(), notify=["m"]), Submission("new", request())])
    for number in range(3):
        new = written(store, replace(new, reason=str(number)))
    elsewhere = ended(replace(old, version=7, submitted_at=5.0))
    assert store.take_over([elsewhere, replace(new, version=2, reason="not this")]) == 1
    assert store.get("old") == replace(elsewhere, notice_at=START + 50) and store.get("new") == new
    assert store.take_over([replace(new, submitted_at=6.0)]) == 0 and store.get("new").submitted_at == 6.0
    assert ids(store.ended(START, START + 99)) == ["old"]
    with pytest.raises(JobNotFound, match="none"):
        store.take_over([replace(new, job_id="none")])


def test_shared_state_is_written_where_nobody_was_faster(store: Store) -> None:
    assert store.state("launch") == ({}, 0)
    assert store.put_state("launch", {"a": 1.5}, 0) and not store.put_state("launch", {"a": 2}, 0)
    assert store.state("launch") == ({"a": 1.5}, 1)
    assert (
        store.put_state("launch", {"b": [1]}, 1)
        and not store.put_state("launch", {}, 1)
        and not store.put_state("new", {}, 4)
    )
    assert store.state("launch") == ({"b": [1]}, 2) and store.state("monitor") == ({}, 0) and store.jobs() == []


# ---- what rounds read ----------------------------------------------------------------------------------------------


def test_what_is_to_wait_for_implausibly_long_is_due(store: Store) -> None:
    soon, far = store.submit("soon", request()), store.submit("far", request())
    written(store, put_back(claim(soon, START, 60), START, "later", wait_s=50.0))
    written(store, put_back(claim(far, START + 86_400, 60), START + 86_400, "a clock was ahead", wait_s=50.0))
    found = store.waiting(START, most=9, longest_s=900.0)
    assert (ids(found.ready), found.now, found.later, found.next_at) == (["far"], 1, 1, START + 50)
    assert store.waiting(START, most=9).later == 2


def test_waiting_has_the_first_of_each_owner_and_type(store: Store) -> None:
    jobs = store.submit_many(Submission(f"j{at}", request("ab"[at // 2 % 2]), owner="xy"[at % 2]) for at in range(40))
    store.submit("blocked", request(), depends_on=["j0"])
    for job in jobs[:8]:
        written(store, put_back(claim(job, START, 60), START, "later", wait_s=10.0 + int(job.job_id[1:])))
    found = store.waiting(START + 11.5, most=3)
    assert (found.now, found.later, found.next_at, found.blocked, found.jobs) == (34, 6, START + 12, 1, 41)
    lines: dict[tuple[str, str], list[str]] = {}
    for each in found.ready:
        lines.setdefault((each.owner, each.instance_type), []).append(each.job_id)
    assert lines == {
        ("x", "a"): ["j0", "j8", "j12"],
        ("y", "a"): ["j1", "j9", "j13"],
        ("x", "b"): ["j10", "j14", "j18"],
        ("y", "b"): ["j11", "j15", "j19"],
    }
    assert [each.order for each in found.ready] == sorted(each.order for each in found.ready)
    assert (store.waiting(START + 999, most=1).now, store.waiting(START + 999, most=1).next_at) == (40, None)


def test_notices_are_due_until_they_are_sent(store: Store) -> None:
    jobs = store.submit_many(Submission(f"j{at}", request(), notify=["mail"] if at else []) for at in range(4))
    for job in jobs:
        written(store, ended(job, at=START + 50 - int(job.job_id[1:])))
    assert ids(store.notices(START + 49)) == ["j3", "j2", "j1"] and ids(store.notices(START + 48)) == ["j3", "j2"]
    (first,) = store.notices(START + 60, limit=1)
    written(store, replace(first, notice_at=SENT))
    later = written(store, replace(store.get("j2"), notice_at=START + 500, notice_tries=1))
    assert ids(store.notices(START + 60)) == ["j1"] and store.notices(START + 999)[-1] == later
    written(store, fresh(replace(later, status="Failed"), START + 70))
    assert ids(store.notices(START + 999)) == ["j1"]


@pytest.mark.whole
def test_ended_jobs_by_time(store: Store) -> None:
    jobs = store.submit_many(Submission(f"j{at}", request()) for at in range(120))
    order = sorted(jobs, key=lambda job: int(job.job_id[1:]) % 7)  # many at once, in the order of submission then
    done = store.update_many(
        ended(claim(job, START, 60), ("Completed", "Failed", "Stopped")[at % 3], START + int(job.job_id[1:]) % 7)
        for at, job in enumerate(jobs)
    )
    assert ids(store.ended(START, START + 7)) == ids(order)
    assert set(ids(store.ended(START + 2, START + 3))) == {job.job_id for job in jobs if int(job.job_id[1:]) % 7 == 2}
    assert (
        next(store.ended(START, START + 1)) == done[0]
        and list(store.ended(START + 7, START + 9)) == list(store.ended(5, 5)) == []
    )
    again = fresh(store.get("j1"), START + 99)
    written(store, again)
    assert "j1" not in ids(store.ended(START, START + 999))


# ---- jobs that wait for others -------------------------------------------------------------------------------------


def let_go(store: Store) -> list[str]:
    """The jobs that unblock() returns because they wait in vain; its first call may only learn what completed."""
    return sorted(f"{job.job_id}:{needs}" for job, needs in store.unblock())


def ready(store: Store) -> list[str]:
    return ids(store.waiting(START + 1e6, most=1000).ready)


def test_a_chain_is_let_go_one_by_one(store: Store) -> None:
    a, b, c = store.submit_many(
        [Submission("a", request()), Submission("b", request(), ["a"]), Submission("c", request(), ["a", "b"])]
    )
    assert let_go(store) == [] and ready(store) == ["a"] and store.waiting(START, most=1).blocked == 2
    written(store, ended(a))
    assert let_go(store) == [] and ready(store) == ["b"]
    assert store.submit("d", request(), depends_on=["a"]).status == "New" and ready(store) == ["b", "d"]
    assert store.get("b") == b  # that it may go is no change of the job
    written(store, ended(b))
    assert let_go(store) == [] and ready(store) == ["c", "d"]
    back = written(store, put_back(claim(c, START, 60), START, "later"))
    assert "c" in ready(store) and store.get("c") == back


def test_what_waits_in_vain_fails_and_comes_back(store: Store) -> None:
    a, b, c, other = store.submit_many(
        [
            Submission("a", request()),
            Submission("b", request(), ["a"]),
            Submission("c", request(), ["b"]),
            Submission("other", request(), ["a"]),
        ]
    )
    assert (
        sorted(ids(store.dependents("a"))) == ["b", "other"]
        and ids(store.dependents("b")) == ["c"]
        and store.dependents("c") == []
    )
    stopped = written(store, stop_asked(other, START))
    failed = written(store, replace(a, status="Failed", cause="user"))
    assert let_go(store) == ["b:a"]
    b = written(store, given_up(store.get("b"), START, "dependency", "in vain"))
    assert let_go(store) == ["c:b"]
    c = written(store, given_up(store.get("c"), START, "dependency", "in vain"))
    assert let_go(store) == [] and ready(store) == []
    assert b in store.dependents("a") and store.dependents("b") == [c]
    for job in (failed, b, c, stopped):
        written(store, fresh(job, START + 5))
    assert ready(store) == ["a"] and store.waiting(START, most=1).blocked == 3 and let_go(store) == []
    written(store, ended(store.get("a")))
    assert let_go(store) == [] and ready(store) == ["b", "other"]


@pytest.mark.whole
def test_no_more_in_vain_than_asked_for(store: Store) -> None:
    a, *_ = store.submit_many(
        [Submission("a", request()), *(Submission(f"j{at}", request(), ["a"]) for at in range(110))]
    )
    written(store, replace(a, status="Stopped"))
    seen = set[str]()
    while found := store.unblock(50):
        assert len(found) <= 50
        seen |= {
            job.job_id for job in store.update_many(given_up(job, START, "dependency", "no") for job, _ in found) if job
        }
    assert len(seen) == 110 and store.counts()["Failed"] == 110


@pytest.mark.whole
def test_more_needs_than_a_call_has(store: Store) -> None:
    needs = store.submit_many(Submission(f"n{at}", request()) for at in range(120))
    merge = store.submit("merge", request(), depends_on=ids(needs))
    assert store.get("merge") == merge and len(merge.depends_on) == 120
    store.update_many(ended(job) for job in needs if job.job_id not in {"n5", "n119"})
    assert let_go(store) == [] and store.waiting(START, most=1).blocked == 1
    written(store, ended(store.get("n5")))
    assert let_go(store) == [] and store.waiting(START, most=1).blocked == 1
    written(store, ended(store.get("n119"), "Failed"))
    assert let_go(store) == ["merge:n119"] and ids(store.dependents("n119")) == ["merge"]
    written(store, ended(fresh(store.get("n119"), START)))
    assert let_go(store) == [] and ready(store) == ["merge"]


# ---- DynamoDB only -------------------------------------------------------------------------------------------------


@functools.cache
def much_noise() -> str:
    return "".join(random.Random(5).choices(string.ascii_letters + string.digits, k=600_000))


def noise(characters: int) -> str:
    return much_noise()[:characters]


@pytest.mark.whole
def test_a_request_that_outgrows_an_item_lies_in_s3(dynamodb: DynamoDBStore, clock: SimulatedClock) -> None:
    large = request(Environment={"TEXT": noise(600_000)})
    with pytest.raises(StoreError, match=r"job large is 600,\d+ bytes .*dynamodb://jobs\?requests=s3://BUCKET/PREFIX"):
        dynamodb.submit("large", large)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="big", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    store = open_store("dynamodb://jobs?requests=s3://big/some/requests", clock=clock)
    store.submit_many([Submission("small", request()), Submission("large", large)])
    (entry,) = s3.list_objects_v2(Bucket="big")["Contents"]
    assert entry["Key"].startswith("some/requests/large-")
    assert dynamodb.requests(["large", "small"]) == {"large": large, "small": request()}  # the item knows where
    assert store.submit("large", large) == store.get("large")
    with pytest.raises(JobConflict, match="another request"):
        store.submit("large", request())
    s3.put_object(Bucket="big", Key=entry["Key"], Body=b"other")
    with pytest.raises(StoreError, match="is not what was written"):
        dynamodb.requests(["large"])
    s3.delete_object(Bucket="big", Key=entry["Key"])
    with pytest.raises(StoreError, match="could not be read from s3://big/some/requests/large-"):
        dynamodb.requests(["large"])


@pytest.mark.whole
def test_large_jobs_are_changed_and_found(dynamodb: DynamoDBStore) -> None:
    text = noise(250_000)  # the same in each, as one is looked through for secrets for a tenth of a second
    jobs = dynamodb.submit_many(
        Submission(f"j{at}", request(Environment={"TEXT": text, "NUMBER": str(at)})) for at in range(12)
    )
    assert None not in dynamodb.update_many(claim(job, START, 60) for job in jobs)
    assert len(dynamodb.find(ids(jobs))) == 12
    job = dynamodb.get("j0")
    attempts = tuple(
        {"attempt": at, "name": f"j0-{at}", "exit_message": much_noise()[1500 * at :][:1500]} for at in range(150)
    )
    written(dynamodb, replace(job, attempts=attempts, attempt=150))
    kept = dynamodb.get("j0").attempts
    assert 10 < len(kept) <= 100 and kept == attempts[-len(kept) :]
    with pytest.raises(StoreError, match="depend on fewer jobs"):
        dynamodb.submit("tags", request(), tags={"t": noise(500_000)})


def test_ended_jobs_expire_where_that_is_wanted(dynamodb: DynamoDBStore, clock: SimulatedClock) -> None:
    store = open_store("dynamodb://jobs?expire_days=90", clock=clock)
    client = boto3.client("dynamodb")

    def expires() -> int:
        return int(
            client.get_item(TableName="jobs", Key={"pk": {"S": "job#a"}})["Item"].get("expires", {"N": "0"})["N"]
        )

    job = store.submit("a", request())
    assert expires() == 0
    done = written(store, ended(job, "Failed"))
    assert expires() == START + 50 + 90 * 86_400
    written(store, fresh(done, START + 60))
    assert expires() == 0
    assert client.describe_time_to_live(TableName="jobs")["TimeToLiveDescription"] == {
        "TimeToLiveStatus": "ENABLED",
        "AttributeName": "expires",
    }


def test_trouble_is_told_with_its_cure(aws: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_table("dynamodb://jobs?region=eu-west-1") is False
    assert isinstance(open_store(str(tmp_path / "jobs.sqlite")), SQLiteStore)
    for place, says in (
        ("dynamodb://", "no place"),
        ("ftp://jobs", "no place"),
        ("dynamodb://jobs?days=3", "unknown option 'days'"),
        ("dynamodb://jobs?expire_days=x", "number of days"),
        ("dynamodb://jobs?requests=here", "no place for large"),
    ):
        with pytest.raises(JobError, match=says):
            open_store(place)
    with pytest.raises(StoreError, match=r"table none cannot be used: ResourceNotFound.*deploy-template"):
        open_store("dynamodb://none").counts()
    boto3.client("dynamodb").create_table(
        TableName="other",
        KeySchema=[{"AttributeName": "x", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "x", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    with pytest.raises(StoreError, match="no table of jobs"):
        create_table("other")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(StoreError, match="region"):
        open_store("dynamodb://jobs").state("x")
    assert open_store("dynamodb://jobs?region=eu-west-1").state("x") == ({}, 0)


def test_a_write_whose_answer_was_lost_counts(aws: None, clock: SimulatedClock) -> None:
    calls = Calls()
    store = DynamoDBStore("jobs", session=calls.session, clock=clock)
    jobs = store.submit_many(Submission(f"j{at}", request()) for at in range(3))
    client = store._table.client()
    for method in ("update_item", "transact_write_items"):  # as if the library had sent it again by itself
        send = getattr(client, method)

        def twice(send: Any = send, **given: Any) -> Any:
            send(**given)
            return send(**{name: each for name, each in given.items() if name != "ClientRequestToken"})

        setattr(client, method, twice)
    assert written(store, claim(jobs[0], START, 60)).version == 2
    assert None not in store.update_many(claim(job, START, 60) for job in jobs[1:])
    assert store.update_many(claim(job, START, 60) for job in jobs) == [None] * 3


def failing(code: str, operation: str, **more: Any) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "not now"}, **more}, operation)


def test_what_is_busy_is_tried_again(dynamodb: DynamoDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamodb_calls, "WAIT_S", 0.0)
    client = dynamodb._table.client()
    jobs = dynamodb.submit_many(Submission(f"j{at}", request()) for at in range(4))
    get, write, one = client.batch_get_item, client.transact_write_items, client.update_item
    trouble = Counter[str]()

    def part(**given: Any) -> Any:  # one key is answered at a time
        keys = given["RequestItems"]["jobs"]["Keys"]
        answer = get(RequestItems={"jobs": given["RequestItems"]["jobs"] | {"Keys": keys[:1]}})
        return answer | {
            "UnprocessedKeys": {"jobs": given["RequestItems"]["jobs"] | {"Keys": keys[1:]}} if keys[1:] else {}
        }

    def conflict(**given: Any) -> Any:
        trouble["many"] += 1
        reasons = [{"Code": "TransactionConflict"}, *({"Code": "None"} for _ in given["TransactItems"][1:])]
        raise failing("TransactionCanceledException", "TransactWriteItems", CancellationReasons=reasons)

    def conflict_of_one(**given: Any) -> Any:
        trouble["one"] += 1
        if trouble["one"] % 2:
            raise failing("TransactionConflictException", "UpdateItem")
        return one(**given)

    def too_much(**given: Any) -> Any:
        if len(given["TransactItems"]) > 2:
            raise failing("ValidationException", "TransactWriteItems")
        return write(**given)

    monkeypatch.setattr(client, "batch_get_item", part)
    assert sorted(dynamodb.find(ids(jobs))) == ids(jobs)
    monkeypatch.setattr(client, "transact_write_items", conflict)
    monkeypatch.setattr(client, "update_item", conflict_of_one)
    claimed = dynamodb.update_many(claim(job, START, 60) for job in jobs)
    assert None not in claimed and trouble == {"many": dynamodb_calls.TRIES, "one": 8}
    monkeypatch.setattr(client, "transact_write_items", too_much)
    assert None not in dynamodb.update_many(created(job, START) for job in claimed if job)

    def throttled(**given: Any) -> Any:
        raise failing("ProvisionedThroughputExceededException", "Query")

    monkeypatch.setattr(client, "query", throttled)
    with pytest.raises(StoreError, match=r"takes no more calls on table jobs.*on-demand"):
        dynamodb.flight()


@pytest.mark.slow
def test_few_calls_for_many_jobs(aws: None, clock: SimulatedClock) -> None:
    calls = Calls()
    store = DynamoDBStore("jobs", session=calls.session, clock=clock)
    jobs = store.submit_many(Submission(f"live-{at:04d}", request(), run="r") for at in range(200))
    assert sum(calls.values()) == calls["TransactWriteItems"] == 2
    owners = [f"owner-{number}-{'x' * 3000}" for number in range(5)]  # so that a page of 1 MB is full of 330
    many = (Submission(f"talent-20261121-{at:05d}", request(), owner=owners[at % 5], run="many") for at in range(500))
    store.submit_many(many)

    def made(ask: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
        calls.clear()
        return ask(), dict(calls)

    found, took = made(lambda: store.waiting(START + 5, most=20))
    assert found.now == 700 and len(found.ready) == 6 * 20 and took["Query"] <= 4 and len(took) == 1
    outcome, took = made(lambda: store.update_many(claim(job, START, 60) for job in jobs))
    assert None not in outcome and took == {"TransactWriteItems": 2}
    flying, took = made(store.flight)
    assert ids(flying) == ids(jobs) and took == {"Query": 1}
    found, took = made(lambda: store.find(ids(jobs)))
    assert len(found) == 200 and took == {"BatchGetItem": 2}
    assert made(lambda: len(store.requests(ids(jobs)))) == (200, {"BatchGetItem": 2})
    assert made(store.unblock) == ([], {"Query": 1})
    latest, took = made(lambda: store.jobs(limit=20, latest=True))
    assert len(latest) == 20 and took == {"Query": 6, "BatchGetItem": 1}
    counts, took = made(store.counts)
    assert counts["New"] == 500 and took["Query"] <= 10


# ---- races, on a DynamoDB that is atomic ---------------------------------------------------------------------------

CONTENDERS = 4


def together(act: Callable[[Store, int], Any]) -> list[Any]:
    """What each of several stores of one table says when all of them act at the same time."""
    start, outcomes = threading.Barrier(CONTENDERS), {}

    def one(number: int, store: Store) -> None:
        start.wait(30)
        outcomes[number] = act(store, number)

    threads = [
        threading.Thread(target=one, args=(number, open_store("dynamodb://jobs"))) for number in range(CONTENDERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == CONTENDERS, "one of them failed"
    return [outcomes[number] for number in range(CONTENDERS)]


@pytest.mark.whole
def test_the_same_jobs_that_several_submit_at_once_are_there_once(aws: None) -> None:
    submissions = [Submission(f"j{at}", request(), [f"j{at - 1}"] if at > 40 else []) for at in range(50)]
    submitted = together(lambda store, _: store.submit_many(submissions))
    assert all(ids(jobs) == [each.job_id for each in submissions] for jobs in submitted)
    assert len(open_store("dynamodb://jobs").jobs()) == 50


@pytest.mark.slow
def test_each_claim_is_won_once(aws: None) -> None:
    """Several claim the same twenty jobs, some all at once, some one by one."""
    jobs = open_store("dynamodb://jobs").submit_many(Submission(f"j{at}", request()) for at in range(20))

    def claiming(store: Store, number: int) -> list[Job | None]:
        wanted = [claim(job, 1000.0 + number, 60) for job in jobs]
        return store.update_many(wanted) if number % 2 else [store.update(job) for job in wanted]

    wins = together(claiming)
    kept = open_store("dynamodb://jobs")
    for at, job in enumerate(jobs):
        (winner,) = [number for number, outcome in enumerate(wins) if outcome[at] is not None]
        assert kept.get(job.job_id) == wins[winner][at], job.job_id
        assert kept.get(job.job_id).launched_at == 1000.0 + winner


@pytest.mark.whole
def test_no_count_is_lost_where_several_count(aws: None) -> None:
    def counting(store: Store, _: int) -> None:
        done = 0
        while done < 6:
            value, version = store.state("sum")
            done += store.put_state("sum", {"sum": value.get("sum", 0) + 1}, version)

    together(counting)
    assert open_store("dynamodb://jobs").state("sum") == ({"sum": 24}, 24)
