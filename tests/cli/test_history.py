"""The history of jobs: sums by day, owner, instance type and cause, what they cost, and the page with charts."""

from __future__ import annotations

import json
import random
import re
import shutil
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import Stubber
from pages import LIBRARY, charts_of, headlines_of, opened_in_chromium

from shardkit.cli.history_page import history_page, ways_for
from shardkit.jobs import JobError
from shardkit.jobs.clock import iso
from shardkit.jobs.history import Histogram, summaries, summarize
from shardkit.jobs.job import Job
from shardkit.jobs.prices import KnownPrices, ListPrices

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.whole
NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC
DAY = 86400.0


def attempt(
    number: int, begun: float, seconds: float, *, kind: str = "ml.a", cause: str = "", instances: int = 1
) -> dict[str, Any]:
    status = "Failed" if cause else "Completed"
    times = {"launched_at": iso(begun), "created_at": iso(begun), "ended_at": iso(begun + seconds)}
    return {"attempt": number, "instance_type": kind, "instances": instances, "status": status, "cause": cause} | times


def job(name: str, *attempts: dict[str, Any], status: str = "", at: float = NOON, **more: Any) -> Job:
    cause = attempts[-1]["cause"] if attempts else more.pop("cause", "")
    known = status or ("Failed" if cause else "Completed")
    times = {"submitted_at": at - 7200, "changed_at": at}
    return Job(name, status=known, cause=cause, attempts=attempts, instance_type="ml.a", **times, **more)


JOBS = [
    job("a", attempt(1, NOON - 7100, 3600), owner="ana"),
    job(
        "b",
        attempt(1, NOON - 7000, 60, cause="capacity"),
        attempt(2, NOON - 5000, 1800, kind="ml.b", instances=4),
        owner="ana",
    ),
    job("c", attempt(1, NOON - 3600, 600, cause="user"), owner="bob", at=NOON + DAY),
    job("d", status="Failed", cause="dependency", at=NOON + DAY),
    job("e", status="Stopped", owner="bob", at=NOON + 2 * DAY),
    replace(job("f"), status="InProgress"),
]
PRICES = KnownPrices({"ml.a": 0.5})


def test_by_day() -> None:
    first, second, third = summarize(JOBS, by="day", prices=PRICES)
    assert (first.key, first.jobs, first.completed, first.success_rate) == ("2027-01-15", 2, 2, 1.0)
    assert (first.attempts, first.attempts_per_job, first.failed_attempts) == (3, 1.5, {"capacity": 1})
    assert first.waited_median_s == pytest.approx(100, rel=0.005)
    assert first.waited_p95_s == pytest.approx(2200, rel=0.005)
    assert first.ran_median_s == pytest.approx(1800, rel=0.005) and first.ran_p95_s == 3600
    assert first.instance_hours == pytest.approx(1 + 1 / 60 + 2)
    assert first.cost_usd == pytest.approx(0.5 * (1 + 1 / 60)) and first.unpriced_hours == pytest.approx(2)
    assert (second.jobs, second.failed, second.success_rate) == (2, 2, 0.0)
    assert (third.key, third.stopped, third.success_rate, third.attempts_per_job) == ("2027-01-17", 1, None, 0.0)
    assert third.waited_median_s is None and third.ran_p95_s is None and third.cost_usd == 0


def test_what_the_service_bills_of_spot_instances_is_what_they_cost() -> None:
    spot = job("s", attempt(1, NOON - 7100, 3600) | {"billable_s": 1080.0})
    (row,) = summarize([spot], by="day", prices=PRICES)
    assert row.cost_usd == pytest.approx(0.5 * 0.3) and row.instance_hours == 1


def test_attempts_count_where_they_belong() -> None:
    types = {row.key: row for row in summarize(JOBS, by="instance_type", prices=PRICES)}
    assert (types["ml.a"].jobs, types["ml.a"].attempts) == (4, 3)
    assert (types["ml.b"].jobs, types["ml.b"].attempts, types["ml.b"].instance_hours) == (1, 1, 2.0)
    causes = {row.key: row for row in summarize(JOBS, by="cause")}
    assert set(causes) == {"", "capacity", "user", "dependency"}
    assert (causes["capacity"].jobs, causes["capacity"].attempts_per_job) == (0, None)
    assert causes["capacity"].instance_hours == pytest.approx(1 / 60)
    assert (causes["dependency"].jobs, causes["dependency"].attempts) == (1, 0)
    owners = [(row.key, row.jobs, row.cost_usd) for row in summarize(JOBS, by="owner")]
    assert owners == [("ana", 2, None), ("bob", 2, None), ("", 1, None)]


def test_several_ways_in_one_look() -> None:
    found = summaries(iter(JOBS), by=["hour", "day", "week", "owner", "total", "run", "kind"])
    for way, rows in found.items():
        assert sum(row.jobs for row in rows) == 5, way
        assert sum(row.attempts for row in rows) == 4, way
    assert found["hour"][0].key == "2027-01-15 12:00" and found["week"][0].key == "2027-01-11"
    with pytest.raises(JobError, match="cannot be grouped by 'month'. There are hour, day, week, owner"):
        summarize([], by="month")


def test_percentiles_are_right_to_half_a_per_cent() -> None:
    numbers = random.Random(7)
    values = [numbers.lognormvariate(5, 2) for _ in range(20_001)]
    known = Histogram()
    for value in values:
        known.add(value)
    values.sort()
    assert known.at(0.5) == pytest.approx(values[10_000], rel=0.0051)
    assert known.at(0.95) == pytest.approx(values[19_000], rel=0.0051)
    assert known.at(1.0) == pytest.approx(values[-1], rel=0.0051) and Histogram().at(0.5) is None


@pytest.mark.whole
def test_many_jobs_take_the_memory_of_some() -> None:
    def stream(number: int) -> Iterator[Job]:
        rng = random.Random(1)
        for n in range(number):
            yield job(f"j{n}", attempt(1, NOON - 3600, rng.lognormvariate(5, 1)), at=NOON + n % 30 * DAY, owner="a")

    def peak(number: int) -> int:
        tracemalloc.start()
        summaries(stream(number), by=["day", "owner"])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(5000) < peak(500) + 1_000_000  # 5,000 such jobs are many MB


def test_prices_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"ml.m5.xlarge": 0.25, "ml.t3.medium": 0}')
    prices = KnownPrices.from_file(str(file))
    assert [prices.usd_per_hour(kind, "processing") for kind in ("ml.m5.xlarge", "ml.t3.medium", "x")] == [
        0.25,
        0,
        None,
    ]
    for text in ('{"ml.m5.xlarge": "0.25"}', "[1]", "{", '{"a": -1}', '{"a": true}', '{"a": NaN}'):
        file.write_text(text)
        with pytest.raises(JobError, match="prices.json .*Write JSON such as"):
            KnownPrices.from_file(str(file))
    with pytest.raises(JobError, match="No such file"):
        KnownPrices.from_file(str(tmp_path / "none"))


def product(*prices: tuple[str, str]) -> str:
    dimensions = {f"K.{n}": {"unit": unit, "pricePerUnit": {"USD": usd}} for n, (unit, usd) in enumerate(prices)}
    return json.dumps(
        {
            "product": {"attributes": {"instanceName": "ml.m5.xlarge", "component": "Processing"}},
            "terms": {"OnDemand": {"K": {"priceDimensions": dimensions}}},
        }
    )


def test_prices_of_the_price_list_are_asked_for_once() -> None:
    client = boto3.client("pricing", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    asked = {
        "ServiceCode": "AmazonSageMaker",
        "Filters": [
            {"Type": "TERM_MATCH", "Field": "regionCode", "Value": "eu-west-1"},
            {"Type": "TERM_MATCH", "Field": "component", "Value": "Processing"},
            {"Type": "TERM_MATCH", "Field": "instanceName", "Value": "ml.m5.xlarge"},
        ],
    }
    with Stubber(client) as stub:
        pages = product(("Hrs", "0.0000000000"), ("GB", "9.1")), product(("Hrs", "0.2560000000"))
        stub.add_response("get_products", {"PriceList": [pages[0]], "NextToken": "t"}, asked)
        stub.add_response("get_products", {"PriceList": [pages[1]]}, asked | {"NextToken": "t"})
        stub.add_response("get_products", {"PriceList": []})
        stub.add_client_error("get_products", "AccessDeniedException", "not authorized to perform pricing:GetProducts")
        prices = ListPrices(client, "eu-west-1")
        assert [prices.usd_per_hour("ml.m5.xlarge", "processing") for _ in range(3)] == [0.256] * 3
        assert [prices.usd_per_hour("ml.new", "training") for _ in range(2)] == [None, None]
        with pytest.raises(JobError, match="Price List does not answer: .*or give a file of prices"):
            prices.usd_per_hour("ml.m5.xlarge", "training")
        stub.assert_no_pending_responses()
    assert prices.usd_per_hour("", "processing") is None


# ---- the page ------------------------------------------------------------------------------------------------------

BAD = "</script><script>document.title='taken'</script><b onload=\"x\">&'"


def page(days: float, jobs: list[Job], prices: KnownPrices | None = PRICES) -> str:
    since, until = NOON - days * DAY / 2, NOON + days * DAY / 2 + 1
    found = summaries(jobs, by=ways_for(since, until), prices=prices)
    return history_page(found, title=f"Jobs of {BAD}", since=since, until=until)


def many(days: int) -> list[Job]:
    """Jobs of a foreign owner, with days without any, the third of them failed."""
    return [
        job(
            f"j{n}",
            attempt(1, NOON - 600, 60.0 * n, kind=BAD, cause="user" * (n % 3 == 0)),
            owner=BAD,
            at=NOON + n * DAY,
        )
        for n in range(-days // 2, days // 2, 2)
    ]


@pytest.mark.whole
def test_the_page_tells_everything_and_asks_nobody() -> None:
    for days, unit in ((1, "hour"), (6, "day"), (400, "week")):
        text = page(days, JOBS)
        headlines = headlines_of(text)
        assert {f"Jobs by {unit}", f"Waiting time by {unit}", f"Cost by {unit}", "Jobs by owner"} <= set(headlines)
        own = LIBRARY.sub("", text)
        assert not re.search(r"https?:|src=|href=|url\(|@import", own) and len(own) < 100_000
    assert "<b>5</b><span>jobs ended" in text and "<b>50%</b><span>success rate" in text
    assert "The cost lacks 2.0 instance-hours whose price is not known." in text
    without = LIBRARY.sub("", page(6, JOBS, None))
    assert (
        "Cost" not in without
        and not re.search(r"\$\d", without)
        and len(charts_of(without)) == len(charts_of(text)) - 2
    )
    assert "No job ended in this time." in page(6, [])


@pytest.mark.whole
def test_foreign_text_stays_text() -> None:
    for days in (1, 30, 400):
        text = page(days, many(days))
        own = LIBRARY.sub("", text)
        assert BAD not in own and "<b onload" not in own and own.count("<script") == 2
        values = [value for spec in charts_of(text).values() for value in spec["data"]["values"]]
        assert BAD in {value.get("name") for value in values}


@pytest.mark.whole
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
@pytest.mark.parametrize("days", [12, 400])
def test_the_page_in_a_browser(days: int, tmp_path: Path) -> None:
    file = tmp_path / "history.html"
    click = "document.querySelectorAll('table')[2].querySelectorAll('th')[6].click();"
    file.write_text(page(days, many(days)).replace("</script></body>", f"{click}</script></body>"))
    dom, console = opened_in_chromium(file, tmp_path)
    assert console == ""
    shown = LIBRARY.sub("", dom)
    assert "<title>Jobs of &lt;/script&gt;" in shown and shown.count("<script") == 2
    assert len(re.findall(r'<svg[^>]*class="marks"', shown)) == len(charts_of(page(days, many(days))))
    causes = shown.split("Causes of failed attempts</h3>")[1]
    attempts = [float(row.split('data-v="')[7].split('"')[0]) for row in causes.split("<tr>")[2:4]]
    assert attempts == sorted(attempts) and 'data-up="1"' in causes


def test_what_has_no_known_price_costs_no_zero_dollars() -> None:
    text = page(6, [job("new", attempt(1, NOON - 600, 600, kind="ml.new"), owner="ana"), *JOBS])
    row = next(line for line in text.splitlines() if line.startswith("<tr><td") and "ml.new</td>" in line)
    assert "$" not in row
    rows = summaries(JOBS[:1], by=("instance_type",), prices=KnownPrices({"ml.other": 1.0}))["instance_type"]
    assert [row.cost_usd for row in rows] == [None]
