"""Shards: how records are spread over jobs, what stays together, how equal jobs are, and how the plan shows them."""

from __future__ import annotations

import itertools
import json
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardkit as sk
from shardkit.macro import make_plan
from shardkit.plan.describe import plan_text
from shardkit.plan.records import build_records
from shardkit.tables.packing import evenly, longest_first

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import WriteFiles

    from shardkit.plan.plan import Plan

Rule = dict[str, Any]
DAY_US = 86_400_000_000


def pipeline_of(folder: Path | str = "data", **fields: Any) -> sk.Pipeline:
    return sk.Pipeline(function="os:stat", input=folder, output="out", **fields)


def plan_of(sizes: Mapping[str, int], shards: Rule | None, *, records: str = "file", **more: Any) -> Plan:
    """The plan of a listing that is made up; ``modified`` are the objects' times in days since 1970."""
    keys = sorted(sizes, key=lambda key: key.encode())
    modified = more.pop("modified", dict.fromkeys(keys, 0))
    table = pa.table(
        {
            "key": pa.array(keys, pa.large_string()),
            "bytes": pa.array([sizes[key] for key in keys], pa.int64()),
            "etag": pa.array(["e"] * len(keys), pa.large_string()),
            "modified": pa.array([int(modified[key] * DAY_US) for key in keys], pa.timestamp("us", "UTC")),
        }
    )
    whole = pipeline_of(shards=shards, records=records).to_dict()
    built = build_records(table, records=records, shards=whole["shards"])
    rest = {"function_digest": "", "chunks": "dynamic", "workers": 4, "run_id": "r", "created": "now"} | more
    return make_plan(built, pipeline=whole, **rest)


def shards_of(plan: Plan) -> dict[int, list[str]]:
    """The keys of each shard's records."""
    found: dict[int, list[str]] = {}
    for row in plan.records.select(["key", "shard"]).to_pylist():
        found.setdefault(row["shard"], []).append(row["key"])
    return dict(sorted(found.items()))


def names_of(plan: Plan) -> list[str | None]:
    return [shard["group"] for shard in plan.content["shards"]]


# ---- what is to be said, and what is wrong with it ---------------------------------------------------------------

ALLOWED: list[tuple[Rule, Rule]] = [
    ({}, {"by": "directory", "depth": 1}),
    ({"depth": 3, "max_jobs": 7}, {"by": "directory", "depth": 3, "max_jobs": 7}),
    ({"depth": None, "path": None}, {"by": "directory", "depth": 1}),
    ({"by": "date", "path": "{Y}/{m}/{d}"}, {"by": "date", "path": "{Y}/{m}/{d}"}),
    ({"by": "date", "column": "modified", "max_jobs": 2}, {"by": "date", "column": "modified", "max_jobs": 2}),
    ({"by": "size", "count": 4}, {"by": "size", "count": 4}),
    ({"by": "size", "target": "10GB"}, {"by": "size", "target": 10_000_000_000}),
    ({"by": "s3key", "instances": 3}, {"by": "s3key", "instances": 3}),
]
WRONG: list[tuple[str, str]] = [
    ("{by: date}", r"shards: by: date needs path \(such as \{Y\}/\{m\}/\{d\}\) or column \(such as modified\)\.$"),
    ("{by: size}", r"shards: by: size needs count \(such as 10\) or target \(such as 10GB\)\.$"),
    ("{by: s3key}", r"shards: by: s3key needs instances \(such as 4\)\.$"),
    ("{by: size, count: 2, target: 1GB}", "shards: by: size takes count or target, not both"),
    ("{by: date, path: '{Y}', column: modified}", "shards: by: date takes path or column, not both"),
    ("{depth: 1, count: 3}", r"shards\.count: this field is for by: size; by: directory takes depth or max_jobs"),
    ("{by: size, max_jobs: 3, count: 3}", r"shards\.max_jobs: .*for by: directory and by: date; by: size takes count"),
    ("{by: s3key, depth: 2, instances: 3}", r"shards\.depth: .*for by: directory; by: s3key takes instances\."),
    ("{by: date, depth: 2, path: '{Y}'}", r"shards\.depth: .*; by: date takes path, column, max_jobs or zone"),
    ("{by: sise, count: 3}", r"shards\.by: expected 'directory', 'date', 'size' or 's3key'.*did you mean size\?"),
    ("{by: size, cuont: 3}", r"shards\.cuont: unknown field; did you mean count\?"),
    ("{by: size, count: 0}", r"shards\.count: .*greater than or equal to 1, not 0"),
    ("{by: size, count: yes}", r"shards\.count: expected a number, not true"),
    ("{by: size, target: 10 XB}", r"shards\.target: expected a number of bytes.*such as 128MB"),
    ("{by: s3key, instances: 101}", r"shards\.instances: .*less than or equal to 100, not 101"),
    ("{max_jobs: 0}", r"shards\.max_jobs: .*greater than or equal to 1, not 0"),
    ("{by: date, column: created}", r"shards\.column: expected 'modified', not \"created\""),
    ("{by: date, path: ''}", r"shards\.path: must not be empty"),
    ("{by: date, path: '%Y/%m/%d'}", r"shards\.path: expected a pattern with \{Y\}.*such as logs/\{Y\}/\{m\}/\{d\}"),
    ("{by: date, path: '{Y}/{d}'}", r"shards\.path: expected a pattern with \{Y\}, or \{Y\} and \{m\}"),
    ("{by: date, path: '{y}/{m}'}", r"shards\.path: \{y\} is no part of a date; \{Y\} is the year"),
    ("{by: date, path: '{Y}/{m'}", r"shards\.path: \{ is no part of a date.*closing brace"),
]


@pytest.mark.parametrize(("given", "kept"), ALLOWED, ids=str)
def test_what_may_be_said(given: Rule, kept: Rule) -> None:
    pipeline = pipeline_of(shards=given)
    assert pipeline.to_dict()["shards"] == kept
    assert pipeline.replace(workers=2).shards == pipeline.shards
    assert sk.Pipeline(**pipeline.to_dict()).shards == pipeline.shards  # as a resumption reads the plan


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_wrong_is_told_with_the_field_and_the_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"input: data\nfunction: os:stat\noutput: out\nshards: {text}\n")
    with pytest.raises(sk.PipelineError, match=f"p.yaml, line 4: {message}"):
        sk.Pipeline.from_yaml(file)
    import yaml

    with pytest.raises(sk.PipelineError, match=f"^{message}"):
        pipeline_of(shards=yaml.safe_load(text))


# ---- by directory ------------------------------------------------------------------------------------------------


def test_by_directory_each_folder_is_a_shard_in_key_order(files: WriteFiles) -> None:
    plan = pipeline_of(files(["b/1", "b/2", "a/x/1", "top", "a/y/2"]), shards={"depth": 1}).plan()
    assert names_of(plan) == ["a", "b", "."]
    assert shards_of(plan) == {0: ["a/x/1", "a/y/2"], 1: ["b/1", "b/2"], 2: ["top"]}


# ---- by date -----------------------------------------------------------------------------------------------------

DATED = [
    ("{Y}/{m}/{d}", "2024/05/01/a.json", "2024-05-01"),
    ("{Y}/{m}/{d}", "site/2024/05/01/13/a.json", "2024-05-01"),
    ("{Y}-{m}-{d}", "logs/a-2024-05-01.json", "2024-05-01"),
    ("logs/{Y}/{m}/{d}", "x/logs/2024/05/01/a", "2024-05-01"),
    ("day={Y}-{m}-{d}", "t/day=2024-05-01/a", "2024-05-01"),
    ("year={Y}/month={m}/day={d}", "year=2024/month=5/day=1/a", "2024-05-01"),
    ("year={Y}/month={m}/day={d}", "year=2024/month=12/day=31/a", "2024-12-31"),
    ("{d}.{m}.{Y}", "reports/31.12.2024.csv", "2024-12-31"),
    ("{Y}{m}{d}", "cam/IMG_20240501_1300.jpg", "2024-05-01"),
    ("{Y}{m}{d}{H}", "cam/IMG_2024050113.jpg", "2024-05-01T13"),
    ("{Y}{m}{d}*", "cam/IMG_20240501130000.jpg", "2024-05-01"),
    ("{Y}/{m}/{d}/{H}", "2024/05/01/07/a", "2024-05-01T07"),
    ("{Y}/{m}/{d}/{H}", "2024/5/1/7/a", "2024-05-01T07"),
    ("{Y}/{m}", "2024/05/01/a", "2024-05"),
    ("{Y}", "in/2024/a", "2024"),
    ("{Y}/{m}/{d}/{Y}{m}{d}", "2024/05/01/20240501.csv", "2024-05-01"),
    ("*/{Y}/**/{m}/{d}", "x/2024/q2/late/05/01/a", "2024-05-01"),
    ("{Y}/{m}/{d}", "1234567/13/40/2024/05/01/a", "2024-05-01"),  # not amid a longer number, nor what is no date
    ("{Y}/{m}/{d}", "2024/05/01/2023/01/01/a", "2024-05-01"),  # the first place counts
    ("a.c/{Y}", "abc/1999/a.c/2024/x", "2024"),  # a dot is a dot
    ("{Y}/{m}/{d}", "é\n/2024/02/29/ü", "2024-02-29"),
]


@pytest.mark.parametrize(("path", "key", "day"), DATED, ids=[f"{path} in {key!r}" for path, key, _ in DATED])
def test_where_a_date_is_found(path: str, key: str, day: str) -> None:
    assert names_of(plan_of({key: 1}, {"by": "date", "path": path})) == [day]


def test_by_date_the_shards_go_by_time_wherever_their_files_lie() -> None:
    keys = ["a/2024/05/02/1", "a/2024/05/10/1", "b/2023/12/31/1", "b/2024/05/02/1", "b/2024/05/02/2", "c/2024/5/2/1"]
    plan = plan_of(dict.fromkeys(keys, 1), {"by": "date", "path": "{Y}/{m}/{d}"})
    assert names_of(plan) == ["2023-12-31", "2024-05-02", "2024-05-10"]
    assert shards_of(plan)[1] == ["a/2024/05/02/1", "b/2024/05/02/1", "b/2024/05/02/2", "c/2024/5/2/1"]
    assert plan.content["totals"]["groups"] == 3


@pytest.mark.parametrize(
    "key", ["readme", "2024/02/30/a", "2024/13/01/a", "2024/05/a", "12024/05/01/a", "2024/05/011/a"]
)
def test_records_without_a_date_are_named(files: WriteFiles, key: str) -> None:
    folder = files([key, *(f"2024/05/01/{i}" for i in range(3))])
    pipeline = pipeline_of(folder, shards={"by": "date", "path": "{Y}/{m}/{d}"})
    with pytest.raises(
        sk.InputError, match=rf"^1 of 4 records has no date .*\{{Y\}}/\{{m\}}/\{{d\}}.*: {key}\. "
    ) as error:
        pipeline.plan()
    for cure in ("shards.path", "input.exclude", "shards.column: modified"):
        assert cure in error.value.hint
    assert len(pipeline.replace(input={"exclude": key}).plan().records) == 3


def test_of_many_records_without_a_date_some_are_named() -> None:
    with pytest.raises(sk.InputError, match=r"^50 of 50 records .*: such as 00, 01, 02\. "):
        plan_of({f"{i:02d}": 1 for i in range(50)}, {"by": "date", "path": "{Y}"})


def test_by_the_day_on_which_a_file_was_written(files: WriteFiles) -> None:
    folder = files(["a", "b", "c", "d"])
    for name, time in (("a", 86_400 * 19_844), ("b", 86_400 * 19_844 - 1), ("c", 86_400 * 19_845 - 1), ("d", 5)):
        os.utime(folder / name, (time, time))
    plan = pipeline_of(folder, shards={"by": "date", "column": "modified"}).plan()
    assert names_of(plan) == ["1970-01-01", "2024-04-30", "2024-05-01"]
    assert shards_of(plan) == {0: ["d"], 1: ["b"], 2: ["a", "c"]}


def test_a_record_is_of_the_day_of_its_newest_object() -> None:
    sizes = {"a.dat": 1, "a.hea": 1, "b.dat": 1, "b.hea": 1}
    days = {"a.dat": 3, "a.hea": 1, "b.dat": 1, "b.hea": 2}
    plan = plan_of(sizes, {"by": "date", "column": "modified"}, records="stem", modified=days)
    assert shards_of(plan) == {0: ["b"], 1: ["a"]}
    assert names_of(plan) == ["1970-01-03", "1970-01-04"]


def test_a_listing_without_times_is_refused() -> None:
    table = pa.table(
        {"key": pa.array(["a"], pa.large_string()), "bytes": [1], "etag": pa.array(["e"], pa.large_string())}
    )
    with pytest.raises(sk.InputError, match=r"does not say when its files were written.*shards\.path"):
        build_records(table, shards={"by": "date", "column": "modified"})


# ---- by size -----------------------------------------------------------------------------------------------------


def test_by_size_neighbours_stay_together_where_that_is_as_good() -> None:
    plan = plan_of({f"{i:02d}": 100 + i % 3 for i in range(20)}, {"by": "size", "count": 3})
    assert list(shards_of(plan).values()) == [[f"{i:02d}" for i in range(a, b)] for a, b in ((0, 7), (7, 13), (13, 20))]
    assert names_of(plan) == [None] * 3
    assert plan.content["totals"]["groups"] == 0


def test_by_size_the_largest_are_dealt_out_first_where_neighbours_would_be_uneven() -> None:
    plan = plan_of({"a": 60, "b": 60, "c": 60, "d": 20, "e": 20, "f": 20}, {"by": "size", "count": 3})
    assert list(shards_of(plan).values()) == [["a", "d"], ["b", "e"], ["c", "f"]]


@pytest.mark.parametrize(("target", "shards"), [(1000, 1), (999, 2), ("250B", 4), ("0.1kB", 10), (1, 10), ("1 GiB", 1)])
def test_a_target_tells_how_many(target: int | str, shards: int) -> None:
    plan = plan_of({f"{i}": 100 for i in range(10)}, {"by": "size", "target": target})
    assert plan.content["totals"]["shards"] == shards


def test_no_shard_is_empty() -> None:
    plan = plan_of({"a": 0, "b": 1000, "c": 0}, {"by": "size", "count": 9})
    assert list(shards_of(plan).values()) == [["a"], ["b"], ["c"]]
    assert "(9 were asked for; there are no more records to share out)" in plan_text(plan.content)


def test_empty_files_are_spread_too() -> None:
    plan = plan_of({f"{i:03d}": 0 for i in range(100)}, {"by": "size", "count": 4})
    assert [shard["records"] for shard in plan.content["shards"]] == [25] * 4
    assert [job["share_of_longest"] for job in plan.content["jobs"]] == [1.0] * 4
    assert plan_of({"a": 0}, {"by": "size", "target": "1GB"}).content["totals"]["shards"] == 1


# ---- by object ---------------------------------------------------------------------------------------------------


def test_by_s3key_records_are_dealt_out_to_the_instances_of_one_job() -> None:
    plan = plan_of({f"{i}": i for i in range(8)}, {"by": "s3key", "instances": 3})
    assert shards_of(plan) == {0: ["0", "3", "6"], 1: ["1", "4", "7"], 2: ["2", "5"]}
    assert plan.content["jobs"] == [
        {"job": 0, "shards": [0, 1, 2], "instances": 3, "groups": 0, "records": 8, "bytes": 28, "share_of_longest": 1.0}
    ]
    assert plan.content["totals"]["create_calls"] == 2
    assert "jobs     1 of 3 instances and 1 for pass 2: 2 calls" in plan_text(plan.content)


def test_by_s3key_no_instance_is_left_without_a_record() -> None:
    plan = plan_of({"a": 1, "b": 1}, {"by": "s3key", "instances": 5})
    assert plan.content["jobs"][0]["instances"] == 2
    assert "(5 were asked for" in plan_text(plan.content)


@pytest.mark.parametrize("records", ["stem", "directory"])
def test_by_s3key_is_refused_for_records_of_several_objects(files: WriteFiles, records: str) -> None:
    folder = files(["p/1/a.dat", "p/1/a.hea", "p/2/b.dat"])
    pipeline = pipeline_of(folder, records=records, shards={"by": "s3key", "instances": 2})
    message = r"1 of 2 records is of several objects, such as p/1(/a)? \(p/1/a\.dat, p/1/a\.hea\)"
    with pytest.raises(sk.PipelineError, match=message) as error:
        pipeline.plan()
    assert "keeps none together" in error.value.message
    assert "by: size" in error.value.hint
    (folder / "p/1/a.dat").unlink()
    assert len(pipeline.plan().records) == 2  # of one object each, they may be dealt out


# ---- fewer jobs than groups --------------------------------------------------------------------------------------


def test_groups_are_packed_longest_first_and_never_split() -> None:
    sizes = {"a/1": 1, "a/2": 1, "b/1": 7, "c/1": 5, "c/2": 1, "d/1": 5, "e/1": 4, "f/1": 2}
    plan = plan_of(sizes, {"by": "directory", "max_jobs": 3})
    # In the order b, c, d, e, a, f; the shards are numbered by their first groups.
    assert shards_of(plan) == {0: ["a/1", "a/2", "b/1"], 1: ["c/1", "c/2", "f/1"], 2: ["d/1", "e/1"]}
    shards, jobs = plan.content["shards"], plan.content["jobs"]
    assert [shard["group_names"] for shard in shards] == [["a", "b"], ["c", "f"], ["d", "e"]]
    assert names_of(plan) == [None] * 3
    assert [job["groups"] for job in jobs] == [2, 2, 2]
    assert [job["share_of_longest"] for job in jobs] == [1.0, 0.8889, 1.0]
    assert "a and 1 more" in plan_text(plan.content)


@pytest.mark.parametrize("max_jobs", [3, 4, 1000])
def test_enough_jobs_are_a_job_a_group(max_jobs: int) -> None:
    sizes = {f"2024/05/0{i}/{n}": i for i in (1, 2, 3) for n in range(2)}
    rule = {"by": "date", "path": "{Y}/{m}/{d}"}
    packed, plain = plan_of(sizes, rule | {"max_jobs": max_jobs}), plan_of(sizes, rule)
    assert packed.records.equals(plain.records)
    assert packed.content["shards"] == plain.content["shards"]


def test_of_many_groups_some_are_named() -> None:
    plan = plan_of({f"{i}/x": 1 for i in range(9)}, {"max_jobs": 1})
    assert plan.content["shards"][0]["group_names"] == ["0", "1", "2", "3", "4"]
    assert plan.content["shards"][0]["groups"] == 9


# ---- what the plan says ------------------------------------------------------------------------------------------


def test_the_plan_tells_every_job() -> None:
    plan = plan_of({"a/1": 30, "a/2": 10, "b/1": 10}, {"depth": 1})
    assert plan.content["jobs"] == [
        {"job": 0, "shards": [0], "instances": 1, "groups": 1, "records": 2, "bytes": 40, "share_of_longest": 1.0},
        {"job": 1, "shards": [1], "instances": 1, "groups": 1, "records": 1, "bytes": 10, "share_of_longest": 0.25},
    ]
    first = plan.content["shards"][0]
    assert first | {"chunks": 0} == {
        "shard": 0, "groups": 1, "group_names": ["a"], "group": "a", "records": 2, "bytes": 40, "chunks": 0
    }  # fmt: skip
    assert plan.content["totals"] | {"chunks": 0} == {
        "objects_listed": 3, "objects_left_out": 0, "left_out_sample": [], "records": 3, "bytes": 50, "groups": 2,
        "shards": 2, "chunks": 0, "jobs": 2, "create_calls": 3,
    }  # fmt: skip
    assert json.loads(json.dumps(plan.content)) == plan.content


def test_without_shards_there_is_one() -> None:
    plan = plan_of({"a/1": 30, "b/1": 10}, None)
    assert len(plan.content["shards"]) == len(plan.content["jobs"]) == 1
    assert names_of(plan) == [None]
    assert plan.content["totals"]["groups"] == 2
    assert "CreateProcessingJob" not in plan_text(plan.content)


def test_the_text_shows_the_ten_longest_and_what_launching_takes() -> None:
    plan = plan_of({f"{i:03d}/x": 1000 * (i + 1) for i in range(25)}, {"depth": 1})
    text = plan_text(plan.content)
    shown = re.findall(r"^ +\d+  (\d{3}) .* (\d+)% of the longest$", text, re.MULTILINE)
    assert [name for name, _ in shown] == [f"{i:03d}" for i in range(24, 14, -1)]
    assert shown[-1][1] == "64"
    assert "... and 15 more, none larger" in text
    assert "jobs     25 and 1 for pass 2: 26 calls of CreateProcessingJob, at one a second at least 26 s" in text
    assert "takes long" not in text


@pytest.mark.parametrize(
    ("rule", "cure"),
    [
        ({"depth": 1}, "shards.max_jobs, such as 100, packs whole groups into fewer"),
        ({"by": "size", "count": 1000}, "a lower shards.count makes fewer"),
        ({"by": "size", "target": 100}, "a larger shards.target makes fewer"),
    ],
    ids=str,
)
def test_many_jobs_are_launched_but_the_text_warns(rule: Rule, cure: str) -> None:
    plan = plan_of({f"{i:04d}/x": 100 for i in range(1000)}, rule)
    assert plan.content["totals"]["jobs"] == 1000
    assert "1,001 calls of CreateProcessingJob, at one a second at least 16 min 41 s" in plan_text(plan.content)
    assert f"(to launch so many takes long: {cure})" in plan_text(plan.content)


def test_another_cut_is_another_work_but_the_same_one_said_otherwise_is_not() -> None:
    sizes = {f"2024/05/{i:02d}/x": i for i in range(1, 20)}
    rules = [
        None, {"depth": 1}, {"depth": 3}, {"depth": 3, "max_jobs": 4}, {"by": "date", "path": "{Y}/{m}/{d}"},
        {"by": "date", "column": "modified"}, {"by": "size", "count": 3}, {"by": "size", "target": 50},
        {"by": "s3key", "instances": 3},
    ]  # fmt: skip
    assert len({plan_of(sizes, rule).digest for rule in rules}) == len(rules)
    assert plan_of(sizes, {}).digest == plan_of(sizes, {"by": "directory", "depth": 1, "max_jobs": None}).digest
    plain = plan_of(sizes, {"by": "size", "count": 3})
    assert plan_of(sizes, {"by": "size", "count": 3}, workers=64, own_instances=True).digest == plain.digest


def test_shards_on_instances_of_their_own_are_cut_for_all_their_workers() -> None:
    sizes = {f"{day:02d}/{i:03d}": 10**6 for day in range(30) for i in range(100)}
    own, shared = (plan_of(sizes, {}, workers=16, own_instances=own) for own in (True, False))
    assert min(shard["chunks"] for shard in own.content["shards"]) >= 32
    assert shared.content["totals"]["chunks"] <= own.content["totals"]["chunks"] / 2


# ---- properties --------------------------------------------------------------------------------------------------

folders = st.sampled_from(["a", "b", "b/c", "d", "d/e", "."])
listings = st.dictionaries(
    st.tuples(folders, st.integers(1, 28), st.text("xyz", min_size=1, max_size=3)).map(
        lambda key: f"{key[0]}/2024-05-{key[1]:02d}/{key[2]}.dat"
    ),
    st.integers(0, 50) | st.integers(0, 10**12),
    min_size=1,
    max_size=40,
)
grouped = st.sampled_from([{"depth": 1}, {"depth": 2}, {"by": "date", "path": "{Y}-{m}-{d}"}]) | st.fixed_dictionaries(
    {"depth": st.integers(1, 3), "max_jobs": st.integers(1, 8)}
)
ungrouped = (
    st.fixed_dictionaries({"by": st.just("size"), "count": st.integers(1, 12)})
    | st.fixed_dictionaries({"by": st.just("size"), "target": st.integers(1, 10**12)})
    | st.fixed_dictionaries({"by": st.just("s3key"), "instances": st.integers(1, 9)})
)


@pytest.mark.whole
@settings(max_examples=80, deadline=None)
@given(sizes=listings, rule=st.none() | grouped | ungrouped)
def test_every_record_is_in_one_shard_and_the_plan_adds_up(sizes: dict[str, int], rule: Rule | None) -> None:
    plan = plan_of(sizes, rule)
    shards, jobs, totals = plan.content["shards"], plan.content["jobs"], plan.content["totals"]
    rows = plan.records.select(["key", "bytes", "group", "shard", "chunk"]).to_pylist()
    assert [row["key"] for row in rows] == sorted(sizes)
    assert [shard["shard"] for shard in shards] == list(range(len(shards)))
    for shard in shards:
        mine = [row for row in rows if row["shard"] == shard["shard"]]
        assert (len(mine), sum(row["bytes"] for row in mine)) == (shard["records"], shard["bytes"])
        assert {row["chunk"] for row in mine} == set(range(shard["chunks"]))
        groups = list(dict.fromkeys(row["group"] for row in mine if row["group"] is not None))
        assert shard["groups"] == len(groups)
        assert set(shard["group_names"]) <= set(groups)
        assert len(shard["group_names"]) == min(5, len(groups))
        assert shard["group"] == (groups[0] if rule and len(groups) == 1 else None)
    assert sorted(itertools.chain(*(job["shards"] for job in jobs))) == list(range(len(shards)))
    for name in ("groups", "records", "bytes"):
        assert totals[name] == sum(shard[name] for shard in shards) == sum(job[name] for job in jobs)
    assert (totals["shards"], totals["jobs"], totals["create_calls"]) == (len(shards), len(jobs), len(jobs) + 1)
    assert max(job["share_of_longest"] for job in jobs) == 1
    assert plan_text(plan.content)
    again = plan_of(dict(reversed(sizes.items())), rule)
    assert (again.content, again.records) == (plan.content, plan.records)


@pytest.mark.whole
@settings(max_examples=60, deadline=None)
@given(sizes=listings, rule=grouped)
def test_no_group_is_split(sizes: dict[str, int], rule: Rule) -> None:
    plan = plan_of(sizes, rule)
    rows = plan.records.select(["group", "shard"]).to_pylist()
    assert len({row["group"] for row in rows}) == len({(row["group"], row["shard"]) for row in rows})
    assert plan.content["totals"]["jobs"] == min(len({row["group"] for row in rows}), rule.get("max_jobs", 1000))


def best_fullest(sizes: list[int], bins: int) -> int:
    """What the fullest bin holds in the best packing, by trying all."""
    loads = {(0,) * bins}
    for size in sizes:
        loads = {tuple(sorted((*load[:i], load[i] + size, *load[i + 1 :]))) for load in loads for i in range(bins)}
    return min(max(load) for load in loads)


def fullest_of(packed: np.ndarray, sizes: list[int]) -> int:
    return max(sum(s for s, b in zip(sizes, packed, strict=True) if b == bin_) for bin_ in set(packed.tolist()))


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), bins=st.integers(1, 4))
def test_packing_is_within_the_bound_of_longest_first(sizes: list[int], bins: int) -> None:
    bins = min(bins, len(sizes))
    best = best_fullest(sizes, bins)
    for pack in (longest_first, evenly):
        packed = pack(np.array(sizes, np.int64), bins=bins)
        assert set(packed.tolist()) == set(range(bins))  # none is empty
        assert 3 * fullest_of(packed, sizes) <= 4 * best


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 10**15) | st.integers(1, 9), min_size=1, max_size=300), bins=st.integers(1, 40))
def test_packing_many(sizes: list[int], bins: int) -> None:
    bins = min(bins, len(sizes))
    mean, longest = sum(sizes) / bins, max(sizes)
    best = max(mean, longest, sum(sorted(sizes)[-bins - 1 : -bins + 1 or None]) if len(sizes) > bins else 0)
    first = longest_first(np.array(sizes, np.int64), bins=bins)
    even = evenly(np.array(sizes, np.int64), bins=bins)
    for packed in (first, even):
        assert len(set(packed.tolist())) == bins
        assert fullest_of(packed, sizes) <= mean + longest
    assert fullest_of(even, sizes) <= 1.05 * max(fullest_of(first, sizes), best)
    assert list(dict.fromkeys(even.tolist())) == list(range(bins))  # numbered by their first things
