"""The pipeline: the same in Python and in YAML, errors that help, and all ways to give a function."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import warm

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunCommand, WriteFiles

FUNCTION = "def rows(record):\n    return {'key': record.key}\n\ndef combine(batches):\n    yield from batches\n"


def rows(record: sk.Record) -> dict[str, Any]:
    return {"key": record.key}


@pytest.fixture
def yaml_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a pipeline.yaml, with a module and an input beside it."""

    def write(text: str, name: str = "p/pipeline.yaml") -> Path:
        path = tmp_path / name
        (path.parent / "data").mkdir(parents=True, exist_ok=True)
        (path.parent / "data" / "a.dat").write_text("x")
        (path.parent / "module_of_pipeline.py").write_text(FUNCTION)
        path.write_text(textwrap.dedent(text))
        return path

    return write


# ---- the same thing twice --------------------------------------------------------------------------------------

FULL = """
    name: mimic-waveforms
    input: {uri: data/, pattern: "*.dat", exclude: ["*.tmp", "x/**"]}
    function: module_of_pipeline:rows
    source_dir: .
    records: stem
    shards: {by: directory, depth: 2}
    workers: 3
    memory: 12GB
    chunks: balanced
    batch: 64
    concurrency: 8
    rate: 3000 / min
    gpus: 0.5
    timeout: 300
    max_failures: 2.5%
    output:
      uri: out/
      format: jsonl
      rows_per_file: 1000
      target_bytes: 1.5 MiB
      partition_by: [day, site]
      schema: {key: string, at: "timestamp[us, tz=UTC]", tags: list<string>}
      widen_ints: true
    combine: module_of_pipeline:combine
    incremental: true
    schedule: {every: 3h, zone: Europe/Paris, clean: 7d}
    engine: {kind: local, root: engine/, max_instances: 3, instance_type: ml.m5.large}
    parallel: shardkit
    queue: {place: jobs.sqlite, owner: ana, notify: "slack:env:HOOK"}
    max_cost: {usd: 50, prices: prices.json}
    input_mode: download
    requirements: requirements.txt
    requirements_mode: bundle
"""


def test_every_field(yaml_file: Callable[..., Path]) -> None:
    path = yaml_file(FULL)
    here = path.parent
    assert sk.Pipeline.from_yaml(path).to_dict() == {
        "name": "mimic-waveforms",
        "input": {"uri": f"{here}/data", "pattern": ["*.dat"], "exclude": ["*.tmp", "x/**"]},
        "function": "module_of_pipeline:rows",
        "source_dir": str(here),
        "records": "stem",
        "shards": {"by": "directory", "depth": 2},
        "workers": 3,
        "memory": 12_000_000_000,
        "chunks": "balanced",
        "batch": 64,
        "concurrency": 8,
        "rate": "3000/min",
        "gpus": 0.5,
        "timeout": 300.0,
        "max_failures": "2.5%",
        "output": {
            "uri": f"{here}/out",
            "format": "jsonl",
            "rows_per_file": 1000,
            "target_bytes": 1_572_864,
            "partition_by": ["day", "site"],
            "schema": {"key": "string", "at": "timestamp[us, tz=UTC]", "tags": "list<string>"},
            "widen_ints": True,
            "origin": False,
            "shuffle": None,
        },
        "combine": "module_of_pipeline:combine",
        "engine": {
            "kind": "local",
            "role": "arn:aws:iam::000000000000:role/local",
            "image": "local",
            "instance_type": "ml.m5.large",
            "instance_count": 1,
            "volume_gb": 30,
            "root": f"{here}/engine",
            "max_instances": 3,
            "isolation": "auto",
            "larger": 0,
        },
        "allow_empty": False,
        "incremental": True,
        "schedule": {"every": "3h", "cron": None, "since": None, "clean": "7d", "zone": "Europe/Paris"},
        "catalog": None,
        "checks": None,
        "parallel": {"backend": "shardkit", "n_jobs": -1, "address": None},
        "max_cost": {"usd": 50, "prices": str(here / "prices.json"), "sample": 20},
        "queue": {"place": f"{here}/jobs.sqlite", "owner": "ana", "notify": ["slack:env:HOOK"]},
        "input_mode": "download",
        "requirements": f"{here}/requirements.txt",
        "requirements_mode": "bundle",
    }


def test_python_says_the_same(yaml_file: Callable[..., Path]) -> None:
    path = yaml_file(FULL)
    here = path.parent
    in_python = sk.Pipeline(
        name="mimic-waveforms",
        input={"uri": here / "data", "pattern": "*.dat", "exclude": ["*.tmp", "x/**"]},
        function="module_of_pipeline:rows",
        source_dir=here,
        records="stem",
        shards={"by": "directory", "depth": 2},
        workers=3,
        memory="12GB",
        chunks="balanced",
        batch=64,
        concurrency=8,
        rate="3000/min",
        gpus=0.5,
        timeout=300,
        max_failures="2.5%",
        output={
            "uri": here / "out",
            "format": "jsonl",
            "rows_per_file": 1000,
            "target_bytes": "1.5MiB",
            "partition_by": ["day", "site"],
            "schema": {"key": "string", "at": "timestamp[us, tz=UTC]", "tags": "list<string>"},
            "widen_ints": True,
        },
        combine="module_of_pipeline:combine",
        incremental=True,
        schedule={"every": "3h", "zone": "Europe/Paris", "clean": "7d"},
        engine=sk.Local(root=here / "engine", max_instances=3, instance_type="ml.m5.large"),
        parallel="shardkit",
        max_cost={"usd": 50, "prices": here / "prices.json"},
        queue={"place": here / "jobs.sqlite", "owner": "ana", "notify": ["slack:env:HOOK"]},
        input_mode="download",
        requirements=here / "requirements.txt",
        requirements_mode="bundle",
    )
    in_yaml = sk.Pipeline.from_yaml(path)
    assert in_python.to_dict() == in_yaml.to_dict()
    assert in_python.plan().digest == in_yaml.plan().digest


def test_the_least_that_must_be_said(yaml_file: Callable[..., Path]) -> None:
    path = yaml_file("input: data\nfunction: module_of_pipeline:rows\noutput: out\n")
    found = sk.Pipeline.from_yaml(path).to_dict()
    assert found == sk.Pipeline(
        input=path.parent / "data", function="module_of_pipeline:rows", output=path.parent / "out", source_dir=path.parent
    ).to_dict()  # fmt: skip
    assert found["name"] == "rows"
    assert found["records"] == "file"
    assert found["shards"] is None
    assert (found["workers"], found["chunks"], found["max_failures"]) == ("auto", "dynamic", "1%")
    assert found["output"]["format"] == "parquet"
    assert found["output"]["rows_per_file"] == 1048576


def test_a_pipeline_cannot_be_changed_but_replaced(tmp_path: Path) -> None:
    pipeline = sk.Pipeline(function=rows, input="data", output={"uri": "out", "schema": {"a": "int64"}}, workers=2)
    with pytest.raises(Exception, match="frozen"):
        pipeline.workers = 3  # type: ignore[misc]
    other = pipeline.replace(workers=3, input={"pattern": "*.x"}, output={"format": "csv"}, shards={"depth": 3})
    assert other.workers == 3
    assert other.input.uri == "data"
    assert other.input.pattern == ("*.x",)
    assert other.to_dict()["output"]["schema"] == {"a": "int64"}
    assert other.shards is not None
    assert other.replace(input="elsewhere").input.pattern == ("*",)
    assert other.replace(shards=None).shards is None
    with pytest.raises(sk.PipelineError, match="wokers: unknown field; did you mean workers"):
        other.replace(wokers=1)


def test_run_takes_the_fields_of_input_and_output_as_they_are(files: WriteFiles, tmp_path: Path) -> None:
    folder = files(["a.txt", "b.dat"])
    run = sk.run(
        rows,
        folder,
        tmp_path / "out",
        pattern="*.txt",
        format="jsonl",
        rows_per_file=1,
        schema={"key": "string"},
        quiet=True,
    )
    assert [json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.jsonl")] == [{"key": "a.txt"}]
    assert run.summary().files == 1


# ---- unknown and mistyped fields -------------------------------------------------------------------------------

GOOD = """
name: n
input:
  uri: data
function: module_of_pipeline:rows
output:
  uri: out
"""

WRONG = [
    ("wokers: 3", r"line 8: wokers: unknown field; did you mean workers\?"),
    ("colour: red", r"line 8: colour: unknown field; known are name, input, function, source_dir"),
    ("Records: stem", r"line 8: Records: unknown field; did you mean records\?"),
    (
        "chunks: dynmic",
        r"line 8: chunks: expected 'dynamic', 'balanced' or 'even', not \"dynmic\"; did you mean dynamic\?",
    ),
    ("workers: many", r"line 8: workers: expected 'auto' or a number of 1 or more, not \"many\""),
    ("workers: 0", r"line 8: workers: expected 'auto' or a number of 1 or more, not 0"),
    ("workers: 1.5", r"line 8: workers: expected 'auto' or a number of 1 or more, not 1\.5"),
    ("workers: true", r"line 8: workers: .*not true"),
    ("timeout: soon", r"line 8: timeout: .*number.*not \"soon\""),
    ("timeout: 0", r"line 8: timeout: .*greater than 0, not 0"),
    ("timeout: -1", r"line 8: timeout: .*greater than 0, not -1"),
    ("timeout: .nan", r"line 8: timeout: .*not NaN"),
    ("timeout: .inf", r"line 8: timeout: .*not Infinity"),
    ("max_failures: lots", r"line 8: max_failures: expected a count such as 10, or a share such as 1%, not \"lots\""),
    ("max_failures: 101%", r"line 8: max_failures: expected a count"),
    ("max_failures: -1", r"line 8: max_failures: expected a count of 0 or more"),
    ("max_failures: 0.01", r"line 8: max_failures: expected a count such as 10, or a share such as 1%, not 0\.01"),
    ("max_failures: true", r"line 8: max_failures: .*not true"),
    ("shards: directory", r"line 8: shards: expected a mapping such as \{by: directory, depth: 1\}, not \"directory\""),
    ("shards: {by: dirctory}", r"line 8: shards\.by: expected .*'s3key', not \"dirctory\"; did you mean directory\?"),
    ("shards: {depth: 0}", r"line 8: shards\.depth: .*greater than or equal to 1, not 0"),
    ("shards: {dept: 1}", r"line 8: shards\.dept: unknown field; did you mean depth\?"),
    (
        "records: [stem]",
        r"line 8: records: expected file, stem, directory, module:callable, or a mapping such as .*, not \[\"stem\"\]",
    ),
    ("combine: 7", r"line 8: combine: expected module:callable, or a function, not 7"),
    ("source_dir: 7", r"line 8: source_dir: .*string.*not 7"),
    ("? [a, b]\n: 1", r"line 8: this is not YAML"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_wrong_is_named_with_its_line(yaml_file: Callable[..., Path], text: str, message: str) -> None:
    path = yaml_file(GOOD + text + "\n")
    with pytest.raises(sk.PipelineError) as raised:
        sk.Pipeline.from_yaml(path)
    assert re.search(f"{re.escape(str(path))}, {message}", str(raised.value)), str(raised.value)
    assert "pydantic" not in str(raised.value)
    assert raised.value.exit_code == 2


NESTED = [
    ("input: {uri: data, patern: '*'}", r"line 2: input\.patern: unknown field; did you mean pattern\?"),
    (
        "input:\n  uri: data\n  exclude: {a: 1}",
        r"line 4: input\.exclude: expected a glob or a list of globs, not \{\"a\": 1\}",
    ),
    ("input:\n  uri: data\n  pattern: [a, 7]", r"line 4: input\.pattern\.1: .*string.*not 7"),
    ("input:\n  uri: data\n  pattern: []", r"line 4: input\.pattern: must not be empty"),
    ("input:\n  pattern: '*'", r"line 2: input\.uri: this field is missing"),
    ("input: {uri: ''}", r"line 2: input\.uri: must not be empty"),
    ("input: 5", r"line 2: input: expected a folder, a mapping with its uri or a manifest, or a list of these, not 5"),
]


@pytest.mark.parametrize(("text", "message"), NESTED, ids=[text for text, _ in NESTED])
def test_what_is_wrong_in_input_is_named_with_its_line(yaml_file: Callable[..., Path], text: str, message: str) -> None:
    path = yaml_file(f"function: module_of_pipeline:rows\n{text}\noutput: out\n")
    with pytest.raises(sk.PipelineError, match=message):
        sk.Pipeline.from_yaml(path)


OUTPUT = [
    ("formt: csv", r"output\.formt: unknown field; did you mean format\?"),
    ("format: parqet", r"output\.format: expected .*, not \"parqet\"; did you mean parquet\?"),
    ("rows_per_file: 0", r"output\.rows_per_file: .*not 0"),
    ("rows_per_file: many", r"output\.rows_per_file: .*integer.*not \"many\""),
    (
        "target_bytes: 5 furlongs",
        r"output\.target_bytes: expected a number of bytes, or one with a unit such as 128MB, not",
    ),
    (
        "target_bytes: 1.2.3MB",
        r"output\.target_bytes: expected a number of bytes, or one with a unit such as 128MB, not",
    ),
    ("target_bytes: 0", r"output\.target_bytes: .*greater than or equal to 1, not 0"),
    ("partition_by: {a: 1}", r"output\.partition_by: expected a column or a list of columns, not \{\"a\": 1\}"),
    ("schema: {a: int46}", r"output\.schema: there is no type 'int46'. Did you mean 'int64'\?"),
    ("schema: {a: {b: int64}}", r"output\.schema\.a: .*string.*not \{\"b\": \"int64\"\}"),
    ("schema: [a, b]", r"output\.schema: expected a mapping of columns to types, not \[\"a\", \"b\"\]"),
    ("columns: {a: int64}", r"output\.columns: unknown field"),
    ("widen_ints: perhaps", r"output\.widen_ints: expected true or false, not \"perhaps\""),
]


@pytest.mark.parametrize(("text", "message"), OUTPUT, ids=[text for text, _ in OUTPUT])
def test_what_is_wrong_in_output_is_named_with_its_line(
    yaml_file: Callable[..., Path], text: str, message: str
) -> None:
    path = yaml_file(GOOD + f"  {text}\n")
    with pytest.raises(sk.PipelineError, match=f"line 8: {message}"):
        sk.Pipeline.from_yaml(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wokers": 1}, r"^wokers: unknown field; did you mean workers\?$"),
        ({"chunks": "evn"}, r"^chunks: expected .*did you mean even\?$"),
        ({"input": {"uri": "x", "patern": "y"}}, r"^input\.patern: unknown field; did you mean pattern\?$"),
        ({"output": None}, r"^output: expected a folder, or a mapping with its uri, not null$"),
        ({"function": 5}, r"^function: expected module:callable, or a function, not 5$"),
        ({"records": 5}, r"^records: expected file, stem, directory, module:callable, or a mapping such as .*, not 5$"),
        ({"workers": -1}, r"^workers: expected 'auto' or a number of 1 or more, not -1$"),
        ({"input": "ftp://host/x"}, r"^ftp://host/x: shardkit knows no storage of kind ftp:// here"),
    ],
    ids=str,
)
def test_what_is_wrong_in_python(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(sk.PipelineError, match=message):
        sk.Pipeline(**({"function": rows, "input": "data", "output": "out"} | fields)).plan()


@pytest.mark.parametrize("missing", ["function", "input", "output"])
def test_missing_fields(yaml_file: Callable[..., Path], missing: str) -> None:
    fields = {"function": "module_of_pipeline:rows", "input": "data", "output": "out"}
    del fields[missing]
    path = yaml_file("".join(f"{name}: {value}\n" for name, value in fields.items()))
    with pytest.raises(sk.PipelineError, match=rf"{re.escape(str(path))}: {missing}: this field is missing"):
        sk.Pipeline.from_yaml(path)
    with pytest.raises(sk.PipelineError, match=f"^{missing}: this field is missing$"):
        sk.Pipeline(**fields)


def test_all_that_is_wrong_is_told_at_once(yaml_file: Callable[..., Path]) -> None:
    path = yaml_file(GOOD + "wokers: 1\ntimeout: x\n")
    with pytest.raises(sk.PipelineError, match=r"(?s)line 8: wokers.*\n.*line 9: timeout"):
        sk.Pipeline.from_yaml(path)


def test_run_refuses_unknown_fields(files: WriteFiles, tmp_path: Path) -> None:
    with pytest.raises(sk.PipelineError, match=r"^patern: unknown field; did you mean (input\.)?pattern"):
        sk.run(rows, files(["a"]), tmp_path / "out", patern="*", quiet=True)


@pytest.mark.whole
def test_from_the_command_line(yaml_file: Callable[..., Path], shardkit: RunCommand) -> None:
    path = yaml_file(GOOD)
    for setting, message in [
        ("input.patern=*", "Error: .*input.patern: unknown field; did you mean pattern?"),
        ("wokers=3", "Error: .*wokers: unknown field; did you mean workers?"),
        ("timeout=soon", 'Error: .*timeout: .*not "soon"'),
        ("timeout", "Error: --set timeout: expected FIELD=VALUE, such as input.uri=data/ or timeout=60."),
        ("input.uri.deeper=3", "Error: .*input.uri: .*string"),
    ]:
        done = shardkit("plan", path, "--set", setting, code=2)
        assert re.search(message.replace("?", r"\?"), done.stderr), done.stderr
        assert done.stdout == ""
        assert "line" not in done.stderr  # it is not the file's fault
    done = shardkit("plan", "--function", "a:b", "--input", "x", "--output", "y", "--chunks", "evn", code=2)
    assert "Error: chunks: expected 'dynamic', 'balanced' or 'even', not \"evn\"; did you mean even?" in done.stderr


# ---- paths, overrides ------------------------------------------------------------------------------------------


def test_relative_paths_count_from_the_file(
    yaml_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml_file("input: ../p/data\nfunction: module_of_pipeline:rows\noutput: {uri: ../elsewhere/out}\n")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name in (path, os.path.relpath(path)):
        pipeline = sk.Pipeline.from_yaml(name)
        assert pipeline.input_folders()[0].path == tmp_path / "p" / "data"
        assert pipeline.output_folder().path == tmp_path / "elsewhere" / "out"
        assert pipeline.plan().content["totals"]["records"] == 1


def test_absolute_paths_home_and_file_uris(
    yaml_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    path = yaml_file("input: ~/data\nfunction: module_of_pipeline:rows\noutput: file:///abs/o%20ut\n")
    pipeline = sk.Pipeline.from_yaml(path)
    assert str(pipeline.input_folders()[0].path) == "/home/somebody/data"
    assert str(pipeline.output_folder().path) == "/abs/o ut"


def test_overrides_count_from_the_current_directory(
    yaml_file: Callable[..., Path], files: WriteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml_file(GOOD)
    files(["1", "2"], "other")
    monkeypatch.chdir(tmp_path)
    pipeline = sk.Pipeline.from_yaml(
        path, overrides={"input.uri": "other", "timeout": 5, "output.format": "csv", "output.schema.key": "string"}
    )
    assert pipeline.input_folders()[0].path == tmp_path / "other"
    assert (pipeline.timeout, pipeline.output.format) == (5, "csv")
    assert pipeline.to_dict()["output"]["schema"] == {"key": "string"}
    assert sk.Pipeline.from_yaml(path, overrides={"input": "other"}).input_folders()[0].path == tmp_path / "other"


def test_settings_are_yaml(yaml_file: Callable[..., Path], shardkit: RunCommand) -> None:
    path = yaml_file(GOOD)
    done = shardkit(
        "plan", path, "--json", "--set", "input.pattern=[a*, b*]", "--set", "timeout=null", "--set", "input.exclude=*.tmp",
        "--set", "output.partition_by=[key]", "--set", "workers=2", "--set", "output.schema={key: string}", "--set", "shards={}",
        "--set", "name=a=b", "--set", "max_failures=100%",
    )  # fmt: skip
    found = json.loads(done.stdout)["pipeline"]
    assert found["input"]["pattern"] == ["a*", "b*"]
    assert found["input"]["exclude"] == ["*.tmp"]
    assert found["timeout"] is None
    assert found["output"]["partition_by"] == ["key"]
    assert found["output"]["schema"] == {"key": "string"}
    assert (found["workers"], found["name"], found["max_failures"]) == (2, "a=b", "100%")
    assert found["shards"] == {"by": "directory", "depth": 1}


def test_options_and_settings_override_the_file(yaml_file: Callable[..., Path], shardkit: RunCommand) -> None:
    path = yaml_file(GOOD + "workers: 4\ntimeout: 9\n")
    done = shardkit(
        "plan", path, "--json", "--workers", "2", "--timeout", "7", "--set", "timeout=8", "--max-failures", "3"
    )
    found = json.loads(done.stdout)["pipeline"]
    assert (found["workers"], found["timeout"], found["max_failures"]) == (2, 8, 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000), ("'1000'", 1000), ("1kB", 1000), ("1 KB", 1000), ("1KiB", 1024), ("128MB", 128_000_000), ("0.5 GB", 5 * 10**8),
        ("2GiB", 2 << 30), ("1TB", 10**12), ("1 TiB", 1 << 40), ("7B", 7), ("1e6", 10**6), ("1_000", 1000),
    ],
)  # fmt: skip
def test_sizes(yaml_file: Callable[..., Path], text: str, size: int) -> None:
    path = yaml_file(GOOD + f"  target_bytes: {text}\n")
    assert sk.Pipeline.from_yaml(path).output.target_bytes == size


@pytest.mark.parametrize(
    ("value", "listed", "allowed"),
    [("1%", 250, 3), ("0%", 9, 0), ("100%", 9, 9), (0, 9, 0), ("7", 9, 7), ("0.1 %", 1000, 1)],
)
def test_max_failures(value: int | str, listed: int, allowed: int) -> None:
    pipeline = sk.Pipeline(function=rows, input="a", output="b", max_failures=value)
    assert pipeline.limits().max_quarantined(listed) == allowed


# ---- files that are no pipeline --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3\n", r"line 2: this is not YAML"),
        ("a: 1\n\tb: 2\n", r"line 2: this is not YAML"),
        ("a: 1\na: b: c\n", r"line 2: this is not YAML"),
        ("a: *nowhere\n", r"line 1: this is not YAML"),
        ("--- \na: 1\n--- \nb: 2\n", r"this is not YAML"),
        ("\x00", r"this is not YAML"),
        ("at: 2020-13-45\n", r"this is not YAML"),
        ("a: &x [*x]\n", r"this is not YAML"),
        ("name: n\nname: m\n", r"line 2: name: this field is given twice"),
        ("input: {uri: a, uri: b}\n", r"line 1: input\.uri: this field is given twice"),
        ("", r"a pipeline is a mapping of fields"),
        ("just words\n", r"a pipeline is a mapping of fields"),
        ("- a\n- b\n", r"a pipeline is a mapping of fields"),
        ("1: 2\n", r"1: unknown field"),
        ("null: 2\n", r"unknown field"),
    ],
    ids=repr,
)
def test_what_is_not_a_pipeline(yaml_file: Callable[..., Path], text: str, message: str) -> None:
    path = yaml_file(text)
    with pytest.raises(sk.PipelineError, match=message) as raised:
        sk.Pipeline.from_yaml(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        sk.PipelineError, match=r"Cannot read the pipeline .*absent\.yaml: No such file.*shardkit init blank"
    ):
        sk.Pipeline.from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(sk.PipelineError, match="Cannot read the pipeline .*: Is a directory"):
        sk.Pipeline.from_yaml(tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(sk.PipelineError, match="it is not UTF-8 text"):
        sk.Pipeline.from_yaml(tmp_path / "p.yaml")


# ---- functions by name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("module_of_pipelin:rows", r"no module 'module_of_pipelin' in .*/code.*Did you mean module_of_pipeline:rows\?"),
        (
            "absent_module:rows",
            r"no module 'absent_module' in .*/code, nor among the installed packages.*Set source_dir",
        ),
        ("module_of_pipeline:row", r"module_of_pipeline\.py defines no 'row' .*Did you mean module_of_pipeline:rows\?"),
        ("module_of_pipeline:nonsense", r"module_of_pipeline\.py defines no 'nonsense'"),
        ("module_of_pipeline", r"'module_of_pipeline' is not of the form module:callable.*features:rows"),
        ("module_of_pipeline.py:rows", r"'module_of_pipeline\.py:rows' is not of the form module:callable"),
        ("code/module_of_pipeline:rows", r"is not of the form module:callable"),
        ("module_of_pipeline:", r"is not of the form module:callable"),
        ("", r"is not of the form module:callable"),
        ("broken:rows", r"broken\.py line 2 is not valid Python"),
        ("package.absent:rows", r"no module 'package\.absent'"),
        ("os:no_such_thing", r"os.*no_such_thing"),
        ("module_of_pipeline:NUMBER", r"module_of_pipeline:NUMBER is int, which cannot be called"),
        ("module_of_pipeline:Thing.absent", r"module_of_pipeline:Thing\.absent cannot be loaded: AttributeError"),
        (
            "raising:rows",
            r"(?s)raising:rows cannot be loaded: ZeroDivisionError.*raising\.py\", line 1.*Mend the module",
        ),
        ("exiting:rows", r"(?s)exiting:rows cannot be loaded: SystemExit"),
        ("needy:rows", r"(?s)needy:rows cannot be loaded: ModuleNotFoundError: No module named 'not_installed_at_all'"),
        ("module_of_pipeline:Fussy", r"(?s)module_of_pipeline:Fussy cannot be loaded: TypeError.*missing 1 required"),
    ],
)
def test_functions_that_are_not_there(files: WriteFiles, tmp_path: Path, function: str, message: str) -> None:
    code = files(
        {
            "module_of_pipeline.py": FUNCTION
            + "NUMBER = 1\nclass Thing: pass\nclass Fussy:\n    def __init__(self, x): pass\n",
            "broken.py": "x = 1\ndef rows(record:\n",
            "package/__init__.py": "",
            "raising.py": "1 / 0\ndef rows(record): pass\n",
            "exiting.py": "raise SystemExit(3)\ndef rows(record): pass\n",
            "needy.py": "import not_installed_at_all\ndef rows(record): pass\n",
        },
        "code",
    )
    with pytest.raises(sk.PipelineError, match=message) as raised:
        sk.run(function, files(["a"]), tmp_path / "out", source_dir=code, workers=1, quiet=True)
    assert raised.value.exit_code == 2


def test_what_a_module_may_define_a_function_with(files: WriteFiles) -> None:
    source = """
        from elsewhere import imported
        import elsewhere as renamed
        try:
            def inside(record): pass
        except Exception:
            pass
        if True:
            conditional = lambda record: None
        first, second = lambda record: None, lambda record: None
        with open("x") as opened: pass
        class Thing:
            @staticmethod
            def method(record): pass
        typed: object = len
    """
    code = files(
        {
            "definitions.py": textwrap.dedent(source),
            "star.py": "from elsewhere import *",
            "lazy.py": "def __getattr__(n): ...",
        },
        "code",
    )
    folder = files(["a"])
    names = [
        "imported",
        "renamed.f",
        "inside",
        "conditional",
        "first",
        "second",
        "opened",
        "Thing",
        "Thing.method",
        "typed",
    ]
    for name in [f"definitions:{name}" for name in names] + ["star:anything", "lazy:anything"]:
        sk.Pipeline(function=name, source_dir=code, input=folder, output=folder.parent / "out").plan()
    with pytest.raises(sk.PipelineError, match="defines no 'method'"):
        sk.Pipeline(function="definitions:method", source_dir=code, input=folder, output=folder.parent / "out").plan()


def keys_of(run: sk.Run) -> list[Any]:
    return run.dataset().to_table()["key"].to_pylist()  # type: ignore[no-any-return]


def test_a_function_in_a_package_with_relative_imports(files: WriteFiles, tmp_path: Path) -> None:
    code = files(
        {
            "features/__init__.py": "",
            "features/waves/__init__.py": "from .rows import rows\n",
            "features/waves/rows.py": "from ..common import PREFIX\nfrom . import tools\n"
            "def rows(record):\n    return {'key': tools.decorate(PREFIX, record.key)}\n",
            "features/waves/tools.py": "def decorate(a, b):\n    return a + b\n",
            "features/common.py": "PREFIX = 'p-'\n",
        },
        "code",
    )
    folder = files(["a"])
    for n, name in enumerate(["features.waves.rows:rows", "features.waves:rows"]):
        run = sk.run(name, folder, tmp_path / f"out{n}", source_dir=code, workers=1, quiet=True)
        assert keys_of(run) == ["p-a"]


def test_two_folders_with_a_module_of_the_same_name(files: WriteFiles, tmp_path: Path) -> None:
    folder = files(["a"])
    source = "import helper_of_same\ndef rows(record):\n    return {{'key': '{0}' + helper_of_same.X}}\ndef rule(key):\n    return '{0}'\n"
    for name in ("one", "two", "one"):
        code = files({"same_name.py": source.format(name), "helper_of_same.py": f"X = '-{name}'\n"}, name)
        run = sk.run(
            "same_name:rows",
            folder,
            tmp_path / f"out-{name}",
            records="same_name:rule",
            source_dir=code,
            workers=1,
            quiet=True,
        )
        assert keys_of(run) == [f"{name}-{name}"]
        assert run.path.joinpath("records.parquet").exists()
        plan = sk.Pipeline(
            function="same_name:rows", input=folder, output="x", records="same_name:rule", source_dir=code
        ).plan()
        assert plan.records["key"].to_pylist() == [name]


def test_a_mended_module_is_loaded_again_by_the_same_process(files: WriteFiles, tmp_path: Path) -> None:
    folder = files(["a", "b"])
    code = files({"mended.py": FUNCTION.replace("yield from", "raise ValueError('first') #")}, "code")
    with pytest.raises(sk.CombineError, match="mended:combine raised ValueError: first"):
        sk.run(
            "mended:rows", folder, tmp_path / "out", combine="mended:combine", source_dir=code, workers=1, quiet=True
        )
    (code / "mended.py").write_text(FUNCTION)
    run = sk.open_run(tmp_path / "out").resume(quiet=True, changed_function=True)
    assert keys_of(run) == ["a", "b"]


@pytest.mark.whole
def test_source_dir_comes_before_the_current_directory(files: WriteFiles, tmp_path: Path, shardkit: RunCommand) -> None:
    files(["data/a"], "")
    source = "def rows(record):\n    return {{'key': {!r}}}\n"
    files({"ambiguous.py": source.format("here"), "code/ambiguous.py": source.format("there")}, "")
    for expected, options in (("here", []), ("there", ["--source-dir", "code"])):
        shardkit(
            "run", "--function", "ambiguous:rows", "--input", "data", "--output", f"out-{expected}", "--quiet", *options
        )
        assert keys_of(sk.open_run(tmp_path / f"out-{expected}")) == [expected]


# ---- functions by value ----------------------------------------------------------------------------------------


class Counting:
    """Counts its records; one instance serves a worker."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, record: sk.Record) -> dict[str, Any]:
        self.calls += 1
        return {"key": record.key, "calls": self.calls, "instance": f"{os.getpid()}-{id(self)}"}


@pytest.mark.whole
def test_a_class_is_instantiated_once_per_worker(files: WriteFiles, tmp_path: Path) -> None:
    run = sk.run(Counting, files([f"{n:02d}" for n in range(40)]), tmp_path / "out", workers=2, quiet=True)
    found = run.dataset().to_table().to_pylist()
    calls: dict[str, list[int]] = {}
    for row in found:
        calls.setdefault(row["instance"], []).append(row["calls"])
    assert 1 <= len(calls) <= 2
    assert all(sorted(seen) == list(range(1, len(seen) + 1)) for seen in calls.values())


@pytest.mark.whole
def test_functions_by_value(files: WriteFiles, tmp_path: Path) -> None:
    folder = files(["a"])
    offset = 5

    def closure(record: sk.Record) -> dict[str, Any]:
        return {"key": f"{record.key}{offset}"}

    def with_suffix(suffix: str, record: sk.Record) -> dict[str, Any]:
        return {"key": record.key + suffix}

    class Local:
        def __init__(self, suffix: str = "-local") -> None:
            self.suffix = suffix

        def __call__(self, record: sk.Record) -> dict[str, Any]:
            return {"key": record.key + self.suffix}

        def method(self, record: sk.Record) -> dict[str, Any]:
            return {"key": record.key + self.suffix}

    found = {}
    for name, function in {
        "lambda": lambda record: {"key": record.key + "-lambda"},
        "closure": closure,
        "partial": functools.partial(with_suffix, "-partial"),
        "class": Local,
        "instance": Local("-instance"),
        "method": Local("-method").method,
        "module": rows,
    }.items():
        found[name] = keys_of(sk.run(function, folder, tmp_path / name, workers=1, quiet=True))[0]
    assert found == {
        "lambda": "a-lambda", "closure": "a5", "partial": "a-partial", "class": "a-local", "instance": "a-instance",
        "method": "a-method", "module": "a",
    }  # fmt: skip


def test_what_cannot_be_sent(files: WriteFiles, tmp_path: Path) -> None:
    import threading

    lock = threading.Lock()

    def locked(record: sk.Record) -> None:
        with lock:
            pass

    with pytest.raises(
        sk.PipelineError, match=r"locked cannot be sent to the workers by value: TypeError: .*lock.*inside the function"
    ):
        sk.run(locked, files(["a"]), tmp_path / "out", quiet=True)
    with pytest.raises(
        sk.PipelineError, match=r"^function: expected module:callable, or a function, not \{\"a\": 1\}$"
    ):
        sk.run({"a": 1}, files(["a"]), tmp_path / "out", quiet=True)  # type: ignore[arg-type]


SCRIPT = """
import shardkit as sk

SUFFIX = "!"

class Model:
    def __init__(self):
        self.suffix = SUFFIX
    def __call__(self, record):
        return {"key": helper(record.key) + self.suffix}

def helper(key):
    return key.upper()

def rows(record):
    return {"key": helper(record.key) + SUFFIX}

for function in (rows, Model):
    run = sk.run(function, "data", "out-" + function.__name__, workers=1, quiet=True)
    print(run.dataset().to_table()["key"].to_pylist())
"""


@pytest.mark.whole
@pytest.mark.parametrize("how", ["script", "stdin"])
def test_functions_of_main_without_a_guard(files: WriteFiles, tmp_path: Path, how: str) -> None:
    files(["data/a", "data/b"], "")
    (tmp_path / "script.py").write_text(SCRIPT)
    if how == "script":
        done = warm.run([tmp_path / "script.py"], cwd=tmp_path, env=os.environ, timeout_s=60)
    else:
        command = [sys.executable, "-"]
        done = subprocess.run(
            command, cwd=tmp_path, input=SCRIPT, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['A!', 'B!']"] * 2
    assert done.stderr == ""


def test_a_pipeline_is_read_before_numpy_is_loaded_whose_threads_the_command_line_then_forbids() -> None:
    code = "import sys, shardkit.spec.yaml, shardkit.pipeline; sys.exit(int('numpy' in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
