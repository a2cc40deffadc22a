"""max_cost: a run that would cost more is not started, and one that has cost it launches nothing more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from job_runs import JobProject

import shardkit as sk
from shardkit.jobs import Policy, SQLiteStore, serve, spending
from shardkit.jobs.spending import cost_limit_of
from shardkit.runs.cost import with_known_prices
from shardkit.spec.cost import MaxCost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROLE, IMAGE = "arn:aws:iam::123456789012:role/Jobs", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/science:1"
PRICE = 36_000.0  # ten dollars a second, so that it does not take long


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobProject]:
    monkeypatch.setattr(spending, "LOOK_S", 0.0)  # these jobs take less than the second between two looks
    made = JobProject(tmp_path / "the user's")
    yield made
    made.open_gate()
    made.end()


def limit(usd: float, **more: Any) -> dict[str, Any]:
    return {"usd": usd, "prices": {"ml.m5.xlarge": PRICE}, "sample": 0} | more


@pytest.mark.whole
def test_a_run_stops_and_goes_on_with_a_higher_limit(project: JobProject) -> None:
    """Two jobs at a time: the rest is not launched once they have cost it, also not by a driver that comes back."""
    project.write_groups("go", groups="abcd")
    engine = project.local(max_instances=2)
    with pytest.raises(sk.CostExceeded) as raised:
        project.run_jobs(engine=engine, max_cost=limit(0.1), workers=1)
    error = raised.value
    assert "max_cost allows $0.10" in error.message and "not launched" in error.message
    assert "resume(max_cost=" in str(error) and "--set max_cost=" in error.command_text
    run = sk.open_run(project.out)
    jobs = run.jobs()
    causes = [job["cause"] for job in jobs]
    assert causes.count("cost") >= 2 and {job["status"] for job in jobs} == {"Completed", "Failed"}
    assert all(not job["attempts"] for job in jobs if job["cause"] == "cost")
    with pytest.raises(sk.CostExceeded, match="nothing more is launched"):
        run.resume(quiet=True)
    assert len(run.jobs()) == len(jobs), "no further jobs are submitted"
    run.resume(quiet=True, max_cost=1000)
    assert project.keys_and_rows() == project.expected()
    assert run.folder.plan()["pipeline"]["max_cost"]["prices"]["ml.m5.xlarge"] == PRICE


@pytest.mark.whole
def test_whoever_serves_the_queue_keeps_to_it(project: JobProject) -> None:
    project.write_groups("go", groups="abc")
    place = project.root / "queue.sqlite"
    engine = project.local(max_instances=1)
    run = project.run_jobs(engine=engine, max_cost=limit(0.1), workers=1, wait=False, queue=str(place))
    store = SQLiteStore(place)
    assert [kept.usd for job in store.jobs(limit=1) if (kept := cost_limit_of(store, job.run))] == [0.1]
    serve(store, engine.client(), policy=Policy.local(max_instances=1), until_ended=True)
    assert store.counts()["Completed"] < 3 and "cost" in {job.cause for job in store.jobs(status="Failed")}
    with pytest.raises(sk.CostExceeded):
        run.wait(quiet=True)


def test_a_run_that_would_cost_more_is_not_started(project: JobProject) -> None:
    project.write_groups("go", "go", groups="a")
    with pytest.raises(sk.CostExceeded, match=r"By a sample of 2 records the run would cost \$.* it was not started"):
        project.run_jobs(max_cost=limit(0.5, sample=2))
    assert not list(project.out.glob("_shardkit/runs/*")) and not project.supervisors()


def sagemaker(**fields: Any) -> sk.SageMaker:
    return sk.SageMaker(role=ROLE, image=IMAGE, **fields)


def pipeline(**fields: Any) -> sk.Pipeline:
    return sk.Pipeline(function="work:rows", input="data/", output="out/", **fields)


def test_a_number_a_text_and_a_mapping() -> None:
    for given in (50, 50.0, "50", "$50", {"usd": 50}):
        assert pipeline(max_cost=given).max_cost == MaxCost(usd=50, prices="shipped", sample=20)
    assert pipeline().max_cost is None
    for wrong, message in (
        (0, "US dollars above 0"),
        ("much", "US dollars above 0, such as 50"),
        ({"usd": 5, "sample": -1}, "sample"),
    ):
        with pytest.raises(sk.PipelineError, match=message):
            pipeline(max_cost=wrong)


def test_prices_are_written_out_for_whoever_goes_on_with_the_run(tmp_path: Path) -> None:
    engine = sagemaker(instance_preferences=["ml.m5.xlarge", "ml.c5.xlarge"], merge={"instance_type": "ml.r5.xlarge"})
    known = with_known_prices(pipeline(engine=engine, max_cost=50)).max_cost
    assert known is not None and isinstance(known.prices, dict)
    assert known.prices["ml.m5.xlarge"] == 0.23 and known.prices["ml.c5.xlarge"] == 0.204
    assert known.prices["ml.r5.xlarge"] == 0.302 and known.prices["ml.m5.2xlarge"] == 0.461
    (tmp_path / "prices.json").write_text(json.dumps({"ml.m7i.xlarge": 0.5}))
    own = {"usd": 5, "prices": tmp_path / "prices.json"}
    newer = with_known_prices(pipeline(engine=sagemaker(instance_type="ml.m7i.xlarge"), max_cost=own)).max_cost
    assert newer is not None and isinstance(newer.prices, dict)
    assert newer.prices["ml.m7i.xlarge"] == 0.5 and newer.prices["ml.m7i.4xlarge"] == 2.0


def test_without_a_price_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = pipeline(engine=sagemaker(instance_type="ml.m7i.xlarge"), max_cost=50)
    with pytest.raises(sk.PipelineError, match="no price is known for ml.m7i.xlarge. Give prices: max_cost: {usd: 50,"):
        with_known_prices(unknown)
    gone = pipeline(engine=sagemaker(), max_cost={"usd": 5, "prices": str(tmp_path / "gone.json")})
    with pytest.raises(sk.PipelineError, match=r"max_cost.prices: .*gone.json cannot be read"):
        with_known_prices(gone)
    monkeypatch.setattr(boto3.Session, "region_name", "", raising=False)
    with pytest.raises(sk.PipelineError, match="none is set"):
        with_known_prices(pipeline(engine=sagemaker(), max_cost={"usd": 5, "prices": "aws"}))


def test_without_an_engine_it_costs_nothing() -> None:
    assert with_known_prices(pipeline(max_cost=50)).max_cost == MaxCost(usd=50)
