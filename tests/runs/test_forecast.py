"""Forecasts: the real queue on a simulated clock and service, over the timings of a sample; and what they recommend."""

from __future__ import annotations

import datetime
import functools
import json
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import in_process
import numpy as np
import pytest
from simulated_service import SimulatedService

import shardkit as sk
from shardkit.jobs import Policy, SimulatedClock, SQLiteStore, Submission, drive
from shardkit.jobs.prices import KnownPrices, prices_at
from shardkit.jobs.shipped_prices import DATED
from shardkit.runs.estimate import Estimate, Sample, take_sample
from shardkit.runs.forecast import options
from shardkit.runs.forecast.conditions import Conditions
from shardkit.runs.forecast.forecast import Asked, make_forecast
from shardkit.runs.forecast.service import JobWork
from shardkit.runs.forecast.trial import Outcome, Resources, Trials
from shardkit.runs.forecast.work import RecordTimes, line_through, span_of

if TYPE_CHECKING:
    from conftest import RunCommand

RECORDED = json.loads(Path(__file__).with_name("recorded_runs.json").read_text("utf-8"))
ENGINE = sk.SageMaker(
    role="arn:aws:iam::123456789012:role/Jobs", image="123456789012.dkr.ecr.eu-west-1.amazonaws.com/science:1"
)
M5 = Resources(("ml.m5.xlarge",))
CALM = Conditions(startup_s=0.0)


def length(record: sk.Record) -> dict[str, Any]:
    return {"length": len(record.read_text())}


def sample_of(seconds: Any, sizes: Any, *, chunk_s: float = 0.0, memory_bytes: int = 0, records: int = 1) -> Sample:
    estimate = Estimate(len(seconds), records, 1, 0.0, memory_bytes, 0, 0, [])
    return Sample(estimate, np.array(seconds, float), np.array(sizes, np.int64), chunk_s)


def pipeline_of(folder: Path, sizes: list[int], *, records: int, **fields: Any) -> sk.Pipeline:
    """A pipeline over a folder for each of these sizes, with so many records of it."""
    for number, size in enumerate(sizes):
        (folder / "data" / f"{number:02d}").mkdir(parents=True)
        for record in range(records):
            (folder / "data" / f"{number:02d}" / f"{record}.txt").write_text("x" * size)
    usual: dict[str, Any] = {"shards": {"by": "directory"}, "engine": ENGINE, "workers": 2}
    return sk.Pipeline(function=length, input=folder / "data", output=folder / "out", **usual | fields)


def trial(work: list[JobWork], conditions: Conditions = CALM, *, seed: int = 1) -> Outcome:
    return Trials(len(work), M5, M5, Policy(), conditions).run(work, 50.0, seed=seed)


# ---- predicted and run ----------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize("shape", RECORDED)
def test_runs_end_when_they_were_predicted_to(tmp_path: Path, shape: str) -> None:
    """Runs of the local engine, recorded by benchmarks/forecast.py: the median is within 20 % of what they took."""
    seen = RECORDED[shape]
    engine = sk.Local(root=tmp_path / "engine", max_instances=20)
    pipeline = pipeline_of(tmp_path, seen["folders"], records=seen["records"], engine=engine)
    records = seen["records"] * len(seen["folders"])
    took = seen["sample"]
    sample = sample_of(took["seconds"], took["bytes"], chunk_s=took["chunk_s"], records=records)
    asked = Asked(
        quotas={"": seen["quota"]}, startup_s=seen["startup_s"], capacity_errors=seen["capacity_errors"], trials=10
    )
    option = make_forecast(pipeline, pipeline.plan(), sample, asked).as_planned
    assert option.end_s.p50 == pytest.approx(seen["run"]["end_s"], rel=0.2)
    assert option.instance_hours == pytest.approx(seen["run"]["instance_hours"], rel=0.2)
    assert option.end_s.p50 < option.end_s.p95 and not option.failed


SLEEPS = """
import time

def work(record):
    time.sleep(len(record.read_text()) / 1000)
    return {"key": record.key}
"""


@pytest.mark.slow
def test_a_run_ends_when_it_was_predicted_to(tmp_path: Path) -> None:
    """A sample, a run of four jobs, of which three go on at once, and when the run would have ended by the sample, given what a job takes to start here.

    The function sleeps, and the time to start is that of this run, so that a busy machine matters little.
    """
    (tmp_path / "work.py").write_text(SLEEPS)
    engine = sk.Local(root=tmp_path / "engine", max_instances=3)
    pipeline = pipeline_of(tmp_path, [700] * 4, records=8, engine=engine, requirements_mode="none")
    pipeline = pipeline.replace(function="work:work", source_dir=tmp_path)
    plan, sample = pipeline.plan(), take_sample(pipeline, 6, quiet=True)
    run = pipeline.run(quiet=True)
    moment = datetime.datetime.fromisoformat
    entries = {entry["name"]: entry for job in run.jobs() for entry in job["attempts"]}
    begins = run.timings().groupby("job", observed=True)["begin"].min()
    starts = [(begin - moment(entries[name]["created_at"])).total_seconds() for name, begin in begins.items()]
    took = max(moment(each["ended_at"]) for each in entries.values()) - min(
        moment(each["launched_at"]) for each in entries.values()
    )
    option = make_forecast(pipeline, plan, sample, Asked(startup_s=statistics.mean(starts))).as_planned
    assert option.end_s.p50 == pytest.approx(took.total_seconds(), rel=0.4)  # the driver, too, waits for a busy machine


def test_the_queue_is_the_real_one() -> None:
    """The same jobs in a file, and on the service that the queue's own tests use, end at the same time."""
    seconds = [float(random.Random(number).randint(100, 900)) for number in range(60)]
    clock = SimulatedClock()
    took = dict(zip([f"forecast-{number:05d}-1" for number in range(60)], seconds, strict=True))
    service = SimulatedService(clock, quota=10, seconds=lambda name: took.get(name, 50.0))
    store = SQLiteStore(":memory:", clock=clock)
    ids = [name[:-2] for name in took]
    store.submit_many([Submission(each, M5.request()) for each in ids])
    store.submit("forecast-merge", M5.request(), depends_on=ids)
    begun = clock.now
    drive(store, service, clock=clock, rng=random.Random(1))
    outcome = trial([JobWork(each) for each in seconds], replace(CALM, quotas={"": 10}))
    assert outcome.done and outcome.attempts == 61
    assert outcome.end_s == pytest.approx(clock.now - begun, rel=0.02)
    assert outcome.instance_s == {"ml.m5.xlarge": pytest.approx(sum(seconds) + 50)}


# ---- the simulated service ------------------------------------------------------------------------------------------


def test_quotas_startup_and_the_rate_of_calls() -> None:
    jobs = [JobWork(600.0)] * 20
    free, quota = trial(jobs), trial(jobs, replace(CALM, quotas={"ml.m5.xlarge": 5}))
    assert 19 + 600 + 50 <= free.end_s <= 19 + 600 + 50 + 60  # one create a second, and looks every 20 s
    assert 4 * 600 + 50 <= quota.end_s <= 4 * 620 + 50 + 120
    other = trial(jobs, replace(CALM, quotas={"ml.c5.xlarge": 5}))
    assert other.end_s == free.end_s
    late = trial(jobs, replace(CALM, startup_s=300.0))
    assert free.end_s + 2 * 225 < late.end_s < free.end_s + 2 * 450 + 40
    assert late.instance_s["ml.m5.xlarge"] > free.instance_s["ml.m5.xlarge"] + 21 * 225


def test_attempts_without_an_instance_are_made_again_and_cost_nothing() -> None:
    jobs = [JobWork(600.0)] * 40
    outcome = trial(jobs, replace(CALM, startup_s=60.0, capacity_errors=0.3))
    assert outcome.done and 48 <= outcome.attempts <= 80
    assert outcome.instance_s["ml.m5.xlarge"] < 40 * 600 + 50 + 41 * 90
    never = trial([JobWork(600.0)], replace(CALM, capacity_errors=0.999))
    assert not never.done and never.instance_s == {}


def test_preferences_are_tried_in_turn() -> None:
    both = Resources(("ml.m5.xlarge", "ml.c5.xlarge"))
    work = [JobWork(600.0)] * 40
    outcome = Trials(40, both, M5, Policy(), replace(CALM, capacity_errors=0.3)).run(work, 50.0, seed=1)
    assert set(outcome.instance_s) == {"ml.m5.xlarge", "ml.c5.xlarge"}


def test_a_warm_instance_starts_in_seconds_and_costs_while_it_waits() -> None:
    jobs, cold = [JobWork(100.0)] * 8, replace(CALM, startup_s=300.0, quotas={"": 2})
    warm = replace(cold, keep_alive_s=600.0)
    assert trial(jobs, warm).end_s < trial(jobs, cold).end_s - 3 * 200
    assert trial(jobs[:1], warm).instance_s["ml.m5.xlarge"] > trial(jobs[:1], cold).instance_s["ml.m5.xlarge"]


def test_jobs_that_are_done_help_slower_ones_as_far_as_chunks_allow() -> None:
    light = [JobWork(100.0, shared=True)] * 4
    heavy = JobWork(1000.0, longest_s=10.0, shared=True)
    alone, helped = trial([replace(heavy, shared=False), *light]), trial([heavy, *light])
    assert alone.end_s > 1050 and helped.end_s < 420
    whole = JobWork(1000.0, longest_begin_s=0.0, longest_s=1000.0, shared=True)  # a single record
    assert trial([whole, *light]).end_s == pytest.approx(alone.end_s, abs=20)


def test_the_seed_decides() -> None:
    jobs, rough = [JobWork(100.0 + 10 * number) for number in range(10)], Conditions(capacity_errors=0.2)
    assert trial(jobs, rough) == trial(jobs, rough) != trial(jobs, rough, seed=2)


# ---- from a sample to jobs ------------------------------------------------------------------------------------------


def test_records_take_some_time_each_and_some_for_each_byte() -> None:
    sizes = np.array([1.0, 2.0, 3.0])
    assert line_through(sizes, 5 + 2 * sizes) == pytest.approx((5, 2))
    assert line_through(sizes, 2 * sizes) == pytest.approx((0, 2))
    assert line_through(sizes, 9 - sizes) == (7.0, 0.0)  # larger ones are no quicker
    assert line_through(np.array([4.0, 4.0]), np.array([1.0, 3.0])) == (2.0, 0.0)
    times = RecordTimes(5 + 2 * sizes, sizes.astype(np.int64))
    drawn = times.drawn(np.array([1, 10]), np.random.default_rng(2))
    assert drawn == pytest.approx([7, 25])


def test_deviations_of_records_show_from_draw_to_draw() -> None:
    seconds = np.array([1.0] * 19 + [100.0])
    times = RecordTimes(seconds, np.full(20, 10))
    sums = [times.drawn(np.full(50, 10), np.random.default_rng(seed)).sum() for seed in range(200)]
    assert np.mean(sums) == pytest.approx(50 * seconds.mean(), rel=0.15)
    assert min(sums) == pytest.approx(50) and max(sums) > 600


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_chunks_go_to_whichever_worker_is_free(workers: int) -> None:
    dice = np.random.default_rng(1)
    few, many = dice.uniform(1, 2, 3 * workers), dice.uniform(1, 2, 400 * workers)
    for chunks in (few, many):
        took, begin, longest = span_of(chunks, workers)
        free = [0.0] * workers
        begins = []
        for seconds in chunks:
            at = int(np.argmin(free))
            begins.append(free[at])
            free[at] += seconds
        assert took == pytest.approx(max(free), rel=0.01)
        assert longest == chunks.max() and begin == pytest.approx(begins[int(chunks.argmax())], abs=1.0)


# ---- what users get -------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path) -> sk.Pipeline:
    return pipeline_of(tmp_path, [1000] * 12, records=10)


def forecast_of(pipeline: sk.Pipeline, *, memory_bytes: int = 10**8, **asked: Any) -> Any:
    """Each record takes a minute, give or take."""
    seconds = [50.0 + 2 * number for number in range(11)]
    sample = sample_of(seconds, [1000] * 11, memory_bytes=memory_bytes, records=120)
    usual: dict[str, Any] = {"prices": KnownPrices({"ml.m5.xlarge": 0.36}), "trials": 10}
    return make_forecast(pipeline, pipeline.plan(), sample, Asked(**usual | asked))


def test_time_and_money_of_a_plan(pipeline: sk.Pipeline) -> None:
    forecast = forecast_of(pipeline)
    option = forecast.as_planned
    assert (option.jobs, option.workers, option.instance_types) == (12, 2, ("ml.m5.xlarge",))
    assert 5 * 60 + 2 * 240 < option.end_s.p50 < 5 * 70 + 2 * 300 + 60
    assert option.usd is not None
    assert option.usd.p50 == pytest.approx(0.36 * option.instance_hours)
    assert option.usd.p50 == pytest.approx((12 * (300 + 250) + 250) / 3600 * 0.36, rel=0.1)
    text = str(forecast)
    assert "ml.m5.xlarge    12        2" in text and "as given" in text and "none known" in text
    assert "ml.m5.xlarge" in forecast._repr_html_() and "$0." in forecast._repr_html_()
    data = json.loads(json.dumps(forecast.to_dict()))
    assert data["options"][0]["end_s"]["p50"] == option.end_s.p50 and data["recommended"] is None


@pytest.mark.slow
def test_many_jobs_are_simulated_side_by_side(pipeline: sk.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = forecast_of(pipeline).as_planned
    monkeypatch.setattr(options, "SIDE_BY_SIDE", 1)
    assert forecast_of(pipeline).as_planned == alone


def test_each_type_of_the_preferences_is_an_option_and_unknown_prices_are_none(pipeline: sk.Pipeline) -> None:
    engine = ENGINE.replace(instance_preferences=["ml.m5.xlarge", "ml.m6i.xlarge"])
    forecast = forecast_of(pipeline.replace(engine=engine), capacity_errors=0.2)
    both, other = forecast.options
    assert other.instance_types == ("ml.m6i.xlarge",) and both.usd is other.usd is None
    assert "cost" not in str(forecast)
    spot = forecast_of(pipeline.replace(engine=ENGINE.replace(jobs="training", spot=True)))
    assert "no wait for spot instances" in str(spot) and spot.as_planned.usd is not None


def test_the_cheapest_that_ends_in_time(pipeline: sk.Pipeline) -> None:
    """Ten times two hours of work on one worker: what does it in less than an hour?"""
    prices = KnownPrices.shipped()
    slow = forecast_of(pipeline, deadline_s=12 * 3600.0, prices=prices).recommended
    quick = forecast_of(pipeline, deadline_s=1500.0, prices=prices).recommended
    assert slow.jobs == 1 < quick.jobs
    assert quick.end_s.p95 <= 1500 and quick.usd.p95 >= slow.usd.p95
    assert set(quick.settings) == {"engine.instance_type", "shards.max_jobs", "workers"}
    planned = pipeline.replace(
        engine=ENGINE.replace(instance_type=quick.settings["engine.instance_type"]),
        shards={"by": "directory", "max_jobs": quick.settings["shards.max_jobs"]},
    )
    assert forecast_of(planned, prices=prices).as_planned.end_s.p50 == pytest.approx(quick.end_s.p50, rel=0.1)


def test_the_first_that_costs_no_more(pipeline: sk.Pipeline) -> None:
    tight = forecast_of(pipeline, budget_usd=0.45).recommended
    rich = forecast_of(pipeline, budget_usd=2.0).recommended
    assert tight.usd.p95 <= 0.45 and rich.usd.p95 <= 2.0 and rich.end_s.p95 < tight.end_s.p95


def test_what_is_out_of_reach_is_said(pipeline: sk.Pipeline) -> None:
    forecast = forecast_of(pipeline, deadline_s=300.0, budget_usd=0.1)
    assert forecast.recommended is None
    text = str(forecast)
    assert "A deadline of 5 min 0 s and a budget of $0.10 are out of reach." in text
    assert "The fastest is ml." in text and "The cheapest is ml." in text


def test_workers_have_to_fit_the_memory(pipeline: sk.Pipeline) -> None:
    pipeline, prices = pipeline.replace(workers="auto"), KnownPrices.shipped()
    small = forecast_of(pipeline, deadline_s=3600.0, prices=prices).recommended
    large = forecast_of(pipeline, deadline_s=3600.0, prices=prices, memory_bytes=6 << 30).recommended
    assert small.workers >= 4
    gib = {"m": 4, "c": 2, "r": 8}[large.instance_types[0][3]]
    vcpus = {"xlarge": 4, "2xlarge": 8, "4xlarge": 16}[large.instance_types[0].rpartition(".")[2]]
    assert large.workers * 6 <= 0.9 * gib * vcpus
    none = forecast_of(pipeline, deadline_s=3600.0, prices=prices, memory_bytes=500 << 30)
    assert none.recommended is None and "memory" in none.advice[0]


def test_a_rate_of_calls_holds_all_jobs_up(pipeline: sk.Pipeline) -> None:
    """120 calls of a minute each, of which 24 go on at once; and then only one may begin every 30 seconds."""
    free, held_up = forecast_of(pipeline), forecast_of(pipeline.replace(rate="2/min"))
    assert free.as_planned.end_s.p50 < 20 * 60 < 60 * 60 < held_up.as_planned.end_s.p50 < 75 * 60
    assert forecast_of(pipeline.replace(rate="2/min"), deadline_s=3000.0).recommended is None


def test_what_earlier_runs_have_done_takes_no_time(pipeline: sk.Pipeline) -> None:
    plan = pipeline.plan()
    markers: Any = [{"shard": number, "chunk": chunk} for number in range(12) for chunk in range(4)]
    sample = sample_of([60.0] * 5, [1000] * 5, records=120)
    whole, rest = (
        make_forecast(pipeline, replace(plan, taken_over=taken), sample, Asked(trials=3)).as_planned.instance_hours
        for taken in ([], markers)
    )
    assert rest < whole


@pytest.mark.parametrize(
    ("fields", "asked", "message"),
    [
        ({"engine": None}, {}, "no forecast for a run without an engine"),
        ({}, {"prices": None, "budget_usd": 5.0}, "A budget needs prices"),
        ({}, {"capacity_errors": 1.5}, "capacity_errors: expected a share"),
        ({}, {"quotas": {"": 0}}, "quotas: expected a number"),
    ],
)
def test_what_cannot_be_forecast(
    pipeline: sk.Pipeline, fields: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(sk.PipelineError, match=message):
        forecast_of(pipeline.replace(**fields), **asked)


def test_the_shipped_prices_tell_their_age(tmp_path: Path) -> None:
    shipped = functools.partial(KnownPrices.shipped)
    later = DATED + datetime.timedelta(days=365 * 3)
    assert "3 years and 0 months old" in shipped(today=later).about
    assert "2 months old" in shipped(today=DATED + datetime.timedelta(days=61)).about
    assert "us-east-1 as of December 2024" in shipped().about
    assert prices_at("shipped").usd_per_hour("ml.m5.xlarge", "processing") == 0.23
    (tmp_path / "p.yaml").write_text("name: x")
    with pytest.raises(sk.jobs.JobError, match="If .*p.yaml is a pipeline, give it first"):
        prices_at(str(tmp_path / "p.yaml"))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "work.py").write_text(SLEEPS)
    for number in range(8):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        (tmp_path / "data" / str(number) / "a.txt").write_text("x" * 20)
    text = (
        "name: words\ninput: data/\nfunction: work:work\nshards: {by: directory}\noutput: out/\n"
        "engine: {kind: local, max_instances: 4}\nworkers: 1\n"
    )
    (tmp_path / "words.yaml").write_text(text)
    return tmp_path


@pytest.mark.whole
def test_the_command_line(shardkit: RunCommand, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(words)

    def refused(*arguments: str) -> str:
        return in_process.command(*arguments, code=2).output

    plan = ("plan", "words.yaml")
    said = shardkit(*plan, "--sample", "2", "--deadline", "1h", "--trials", "5", "--prices").stdout
    assert "Forecast from a sample of 2 of 8 records, over 5 simulated runs:" in said
    assert "For a deadline of 1 h 0 min:" in said and "--set shards.max_jobs=1" in said and "months old" in said
    more = ("--json", "--quota", "3", "--startup", "2m", "--capacity-errors", "10%")
    data = json.loads(shardkit(*plan, "--sample", "2", *more, "--trials", "2").stdout)["forecast"]
    assert data["options"][0]["usd"] is None and data["options"][0]["end_s"]["p50"] > 3 * 90
    assert data["assumed"][0] == "quotas of instances: 3 of any type"
    assert "give the pipeline first" in refused("plan", "--prices", "words.yaml")
    assert "give --sample 20 too" in refused(*plan, "--deadline", "1h")
    for wrong in (("--budget", "much"), ("--quota", "x"), ("--capacity-errors", "2"), ("--deadline", "soon")):
        assert wrong[1] in refused(*plan, "--sample", "2", *wrong)
    assert "run without an engine" in refused(*plan, "--engine", "none", "--sample", "2", "--quota", "1")
    assert not list(words.glob("out/*"))
