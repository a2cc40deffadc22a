"""A run's passes as Processing jobs on the local engine: the same dataset as on one machine, whatever the shards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX, Project, check_ledger, environment, rows_of
from job_runs import JobProject
from test_examples import EXAMPLES, load

import shardkit as sk
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.runs import on_engine as driver
from shardkit.runs.planning import planned_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [LINUX, pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")]
SLOW = pytest.mark.slow
S3KEY = {"by": "s3key", "instances": 2}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    yield made
    made.end()


def sorted_rows(run: sk.Run) -> list[str]:
    """The rows as texts; of a float the last digits depend on where in memory its samples lay."""

    def told(row: dict[str, Any]) -> str:
        return str({name: f"{value:.9g}" if isinstance(value, float) else value for name, value in row.items()})

    return sorted(map(told, run.dataset().to_table().to_pylist()))


# ---- the same dataset --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], sk.Run]:
    """The example's data, its fields, and its run on one machine."""
    root = tmp_path_factory.mktemp("talent")
    load("talent_jsonl", "generate").generate(root / "data", files=24, ads=20, days=3, bad=2)
    return one_machine(root, "talent_jsonl")


def one_machine(root: Path, example: str) -> tuple[Path, dict[str, Any], sk.Run]:
    pipeline = sk.Pipeline.from_yaml(
        EXAMPLES / example / "pipeline.yaml",
        overrides={"input.uri": str(root / "data"), "output.uri": str(root / "one"), "max_failures": "20%"},
    )
    fields = {name: getattr(pipeline, name) for name in ("name", "function", "source_dir", "records", "max_failures")}
    fields["input"] = pipeline.input.model_dump()
    return root, fields, pipeline.run(quiet=True)


def as_jobs(example: tuple[Path, dict[str, Any], sk.Run], name: str, **fields: Any) -> sk.Run:
    root, known, _ = example
    pipeline = sk.Pipeline(**known, output=root / name, requirements_mode="none", **fields)
    return pipeline.run(sk.Local(root=root / "engine"), quiet=True)


# Each way and each mode; what is dealt out is downloaded in tests of its own, below.
@pytest.mark.whole
@pytest.mark.parametrize(
    ("shards", "mode"),
    [
        pytest.param({"by": "directory", "depth": 3, "max_jobs": 2}, "download", id="directory"),
        pytest.param({"by": "size", "count": 2}, "stream", id="size"),
        pytest.param(S3KEY, "stream", marks=SLOW, id="s3key"),
    ],
)
def test_talent_jsonl(talent: tuple[Path, dict[str, Any], sk.Run], shards: dict[str, Any], mode: str) -> None:
    run = as_jobs(talent, f"{shards['by']}-{mode}", shards=shards, input_mode=mode)
    assert sorted_rows(run) == sorted_rows(talent[2])
    assert check_ledger(run).records == talent[2].summary().records
    assert {entry["key"] for entry in run.quarantine()} == {entry["key"] for entry in talent[2].quarantine()}


# A record of two files: one that tells of the other, which is beside it.
PAIRED = """
def features(record):
    (other,) = (path for path in record.paths if path != record.path)
    text = record.path.with_name(record.path.read_text()).read_text()
    assert text == other.read_text()
    if text == "bad":
        raise ValueError(f"cannot make sense of {record.key}")
    return {"key": record.key, "row": 0, "text": text}
"""


@SLOW
def test_records_of_several_objects(project: JobProject) -> None:
    project.write_function(PAIRED)
    for i, folder in enumerate("aabb"):
        (project.data / folder).mkdir(exist_ok=True)
        (project.data / folder / f"r{i}.hea").write_text(f"r{i}.dat")
        (project.data / folder / f"r{i}.dat").write_text("bad" if i == 2 else f"samples {i}")
    fields: dict[str, Any] = {
        "records": "stem",
        "input": {"uri": str(project.data), "pattern": "*.hea"},
        "max_failures": 1,
    }
    one = sk.Pipeline(**project.fields(**fields, shards=None, output=str(project.root / "one"))).run(quiet=True)
    run = project.run_jobs(**fields, shards={"by": "size", "count": 2}, input_mode="download")
    assert sorted_rows(run) == sorted_rows(one)
    assert (
        check_ledger(run).records == one.summary().records == {"listed": 4, "done": 3, "quarantined": 1, "skipped": 0}
    )
    with pytest.raises(sk.PipelineError, match="several objects"):
        project.run_jobs(**fields, shards=S3KEY, output=str(project.root / "never"))
    assert not (project.root / "never").exists()


# ---- requests ----------------------------------------------------------------------------------------------------


def requests_of(project: JobProject) -> dict[str, dict[str, Any]]:
    """The requests that the engine got, by the last word of the jobs' ids."""
    found = {}
    for path in project.engine_root.glob("jobs/*/request.json"):
        found[path.parent.name.split("-")[-2]] = json.loads(path.read_text())["request"]
    return found


def data_input(request: dict[str, Any]) -> dict[str, Any] | None:
    inputs = {given["InputName"]: given["S3Input"] for given in request["ProcessingInputs"]}
    return inputs.get("data")


@pytest.mark.whole
def test_a_folder_is_downloaded_by_its_prefix_and_any_other_shard_by_a_manifest(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    (project.data / "top.txt").write_text("go")
    run = project.run_jobs(input_mode="download")
    assert project.keys_and_rows(run) == project.expected()
    given = {name: data_input(request) for name, request in requests_of(project).items()}
    assert given.pop("merge") is None
    kinds = {each["S3Uri"].removeprefix(str(project.root)): each["S3DataType"] for each in given.values() if each}
    manifest = next(uri for uri in kinds if uri.endswith(".json"))
    assert kinds == {"/data/a/": "S3Prefix", manifest: "ManifestFile"}
    assert json.loads((project.root / manifest.lstrip("/")).read_text()) == [{"prefix": f"{project.data}/"}, "top.txt"]


def test_a_folder_with_groups_below_it_is_downloaded_by_a_manifest(project: JobProject) -> None:
    for key in ("a/r.txt", "a/b/r.txt"):
        (project.data / key).parent.mkdir(exist_ok=True)
        (project.data / key).write_text("go")
    run = project.run_jobs(input_mode="download", shards={"by": "directory", "depth": 2}, wait=False)
    jobs = driver.RunJobs(run.folder, planned_pipeline(run.folder.plan(), {}))
    requests = jobs.store.requests([job.job_id for job in jobs.current() if not job.job_id.endswith("merge")])
    given = [data_input(request) for request in requests.values()]
    assert sorted(each["S3DataType"] for each in given if each) == ["ManifestFile", "S3Prefix"]


@pytest.mark.whole
def test_streaming_jobs_have_no_input_but_the_code_and_an_engine_made_by_hand_is_found_again(
    project: JobProject,
) -> None:
    project.write_groups("go", groups="a")
    run = project.run_jobs(engine=LocalEngine(project.engine_root, max_instances=2), workers=2)
    for name, request in requests_of(project).items():
        assert [given["InputName"] for given in request["ProcessingInputs"]] == ["code"], name
        words = request["AppSpecification"]["ContainerArguments"]
        assert words[:3] == ["pass2" if name == "merge" else "pass1", "--run", run.folder.uri]
    assert run.summary().status == "done"
    again = sk.open_run(project.out)
    assert [job["status"] for job in again.jobs()] == ["Completed"] * 2
    assert again.resume(quiet=True).folder == run.folder
    assert any("1 record done" in line for line in again.logs("00000"))


@pytest.mark.whole
def test_groups_are_packed_into_few_jobs(project: JobProject) -> None:
    project.write_groups("go", groups="abcdefg")
    run = project.run_jobs(shards={"by": "directory", "max_jobs": 2}, input_mode="download")
    assert len(run.jobs()) == 3
    assert project.keys_and_rows(run) == project.expected()
    worked = run.timings().groupby("job", observed=True)["record"].count().to_dict()
    assert worked == {job["name"]: count for job, count in zip(run.jobs(), (4, 3), strict=False)}
    assert Counter(project.calls()) == Counter({key for key, _ in project.expected()})


@pytest.mark.whole
@pytest.mark.parametrize("mode", ["stream", pytest.param("download", marks=SLOW)])
def test_where_instances_have_no_folder_of_their_own(project: JobProject, mode: str) -> None:
    project.write_groups("go", groups="ab")
    fields = {"shards": S3KEY, "name": "Été: a name that no job can have!", "input_mode": mode}
    run = project.run_jobs(engine=project.local(isolation="none"), **fields)
    assert project.keys_and_rows(run) == project.expected()


# ---- objects that the service deals out --------------------------------------------------------------------------


@SLOW
def test_what_is_dealt_out_is_worked_on_where_it_arrives(project: JobProject) -> None:
    # What is no record is dealt out too, so that no instance has what the plan says.
    texts = {f"r{i:02}.txt": "bad" if i == 4 else "go" for i in range(9)}
    project.write_records(texts | {"r00.other": "", "r05.other": ""})
    fields = {"shards": S3KEY, "input_mode": "download", "input": {"uri": str(project.data), "pattern": "*.txt"}}
    run = project.run_jobs(**fields, max_failures=1)
    assert check_ledger(run).records == {"listed": 9, "done": 8, "quarantined": 1, "skipped": 0}
    assert sorted(project.calls()) == sorted(texts)
    project.forget_calls()
    project.mend()
    run.retry(quiet=True)
    assert project.calls() == ["r04.txt"]
    assert project.keys_and_rows() == project.expected()


@SLOW
def test_records_dealt_out_anew_are_not_worked_on_twice(project: JobProject) -> None:
    project.write_records(["go", "bad", "go", "go"])
    run = project.run_jobs(shards=S3KEY, max_failures=1)  # each instance its own shard
    assert check_ledger(run).records["quarantined"] == 1
    shard_of = dict(
        zip(*(run.folder.records(["key", "shard"])[name].to_pylist() for name in ("key", "shard")), strict=True)
    )
    project.forget_calls()
    project.mend()
    # Downloading, the bad one comes to another instance: the first object is no record of this run.
    (project.data / "a0.txt").write_text("go")
    manifest = run.path / "manifests" / "00000.json"
    manifest.parent.mkdir()
    keys = ["a0.txt", *sorted(shard_of)]
    manifest.write_text(json.dumps([{"prefix": f"{project.data}/"}, *keys]))
    plan = json.loads((run.path / "plan.json").read_text())
    plan["totals"]["objects_left_out"] = 1  # so that the manifest is used
    (run.path / "plan.json").write_text(json.dumps(plan))
    run.retry(quiet=True, input_mode="download")
    assert project.calls() == ["r001.txt"]
    (marker,) = (m for m in run.folder.markers() if m["attempt"] > 1)
    assert marker["shard"] != shard_of["r001.txt"]
    assert check_ledger(run).records == {"listed": 4, "done": 4, "quarantined": 0, "skipped": 0}


# ---- failures, retries, resumption -------------------------------------------------------------------------------


@SLOW
def test_failures_count_over_all_jobs(project: JobProject) -> None:
    project.write_groups("bad", *["go"] * 2, groups="ab")
    with pytest.raises(sk.BudgetExceeded, match="2 of 6 records are quarantined") as caught:
        project.run_jobs(max_failures=1)
    assert ".retry(" in caught.value.hint and "shardkit retry" in caught.value.hint.command
    run = sk.open_run(project.out)
    assert run.summary().status == "failed"
    assert [job["status"] for job in run.jobs()] == ["Completed"] * 2 + ["Failed"]
    with pytest.raises(sk.BudgetExceeded):
        run.resume(quiet=True)
    run.resume(quiet=True, max_failures=2)
    assert check_ledger(run).status == "done"
    assert len(project.keys_and_rows()) == 2 * 4
    assert Counter(project.calls()).most_common(1)[0][1] == 1
    project.mend()
    project.forget_calls()
    run.retry(quiet=True)
    assert sorted(project.calls()) == ["a/r0.txt", "b/r0.txt"]
    assert project.keys_and_rows() == project.expected()
    assert run.summary().records["quarantined"] == 0


@pytest.mark.whole
def test_one_job_with_too_many_failures_fails_for_good(project: JobProject) -> None:
    project.write_groups("go", groups="b")
    project.write_groups("bad", "bad", groups="a")
    with pytest.raises(sk.BudgetExceeded, match="of 3 records are quarantined"):
        project.run_jobs(max_failures=0)
    run = sk.open_run(project.out)
    jobs = {job["job"].split("-")[-1]: job for job in run.jobs()}
    assert jobs["00000"]["cause"] == "user"
    assert len(jobs["00000"]["attempts"]) == 1
    assert jobs["merge"]["cause"] == "dependency"
    assert "cannot make sense of a/r" in jobs["00000"]["reason"]
    assert any("quarantined" in line for line in run.logs())
    name = next(job["name"] for job in run.jobs() if job["job"].endswith("00000"))
    assert list(run.logs(name)) == list(run.logs(name, follow=True))


@SLOW
def test_a_job_that_runs_out_of_time_goes_on(project: JobProject) -> None:
    project.write_groups(*["slow"] * 240, groups="a")  # twelve seconds of work
    run = project.run_jobs(engine=project.local(max_runtime=9), workers=1)
    first, merge = run.jobs()
    assert [attempt["cause"] for attempt in first["attempts"][:-1]] == ["timeout"] * (len(first["attempts"]) - 1)
    assert 2 <= len(first["attempts"]) <= 3
    assert len(merge["attempts"]) == 1
    assert sorted(project.calls()) == sorted({key for key, _ in project.expected()})
    assert project.keys_and_rows(run) == project.expected()


@pytest.mark.whole
def test_a_function_that_cannot_be_loaded_in_the_job(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    project.write_function("import no_such_module\ndef features(record):\n    return {'key': record.key, 'row': 0}\n")
    with pytest.raises(
        sk.RunFailed, match="failed after 1 attempt: function: work:features cannot be loaded: ModuleNot"
    ):
        project.run_jobs()
    run = sk.open_run(project.out)
    project.write_function("def features(record):\n    return {'key': record.key, 'row': 0}\n")
    with pytest.raises(sk.PlanMismatch, match="has changed since run"):
        run.resume(quiet=True)
    run.resume(quiet=True, changed_function=True)
    assert project.keys_and_rows() == [("a/r0.txt", 0)]


@pytest.mark.whole
def test_a_finished_run_is_left_alone_or_merged_anew(project: JobProject) -> None:
    project.write_groups("go", "go", groups="a")
    run = project.run_jobs(run_id="one")
    project.run_jobs(run_id="one")
    run.resume(quiet=True)
    assert len(run.jobs()) == 2
    run.resume(quiet=True, **{"output.rows_per_file": 1, "engine.volume_gb": 77})
    assert len(project.data_files()) == 4
    (merge,) = run.jobs()
    assert merge["job"].endswith("-g2-merge")
    sent = [json.loads(p.read_text())["request"] for p in project.engine_root.glob("jobs/*-g2-merge-1/request.json")]
    assert [each["ProcessingResources"]["ClusterConfig"]["VolumeSizeInGB"] for each in sent] == [77]
    (project.root / "needs.txt").touch()
    wide = {"key": "string", "row": "int16", "text": "string"} | {
        f"column_{i}": "string" for i in range(30)
    }  # longer than an argument may be
    run.resume(quiet=True, requirements=project.root / "needs.txt", **{"output.schema": wide})
    assert run.dataset().schema.field("row").type == "int16"
    assert len(project.calls()) == 2
    with pytest.raises(sk.PlanMismatch, match="records cannot change"):
        run.resume(quiet=True, records="stem")
    with pytest.raises(sk.PipelineError, match="combine: .*by value"):
        run.resume(quiet=True, combine=lambda tables: tables)


@pytest.mark.whole
def test_another_plan_under_the_same_id_is_refused(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    project.run_jobs(run_id="one", wait=False)
    project.write_groups("go", groups="b")
    with pytest.raises(sk.PlanMismatch, match="another plan"):
        project.run_jobs(run_id="one")


@pytest.mark.whole
def test_a_second_run_replaces_the_dataset(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    project.run_jobs()
    before = project.data_files()
    project.write_groups("go", "go", groups="a")
    project.run_jobs()
    assert not set(before) & set(project.data_files())
    assert project.keys_and_rows() == project.expected()


# ---- the code ----------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_function_by_value_and_a_combine_from_a_module(project: JobProject, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_groups("go", groups="a")
    (project.root / "joining.py").write_text(
        "def join(tables):\n    for table in tables:\n        yield table.slice(1)\n"
    )
    monkeypatch.chdir(project.root)
    offset = 40

    def numbered(record: sk.Record) -> list[dict[str, Any]]:
        return [{"key": record.key, "row": offset + i} for i in range(3)]

    run = project.run_jobs(function=numbered, source_dir=None, combine="joining:join")
    assert project.keys_and_rows(run) == [("a/r0.txt", 41), ("a/r0.txt", 42)]
    run.resume(quiet=True, **{"output.format": "jsonl"})
    assert project.keys_and_rows(run) == [("a/r0.txt", 41), ("a/r0.txt", 42)]


@pytest.mark.whole
def test_a_function_mended_in_a_notebook_is_for_the_records_that_failed_and_brings_its_own_python(
    project: JobProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_groups("go", "bad", groups="a")
    run = project.run_jobs(max_failures="100%")
    assert len(run.quarantine()) == 1
    mended = lambda record: {"key": record.key, "row": 0, "text": "mended"}  # noqa: E731
    with monkeypatch.context() as another:
        another.setattr(driver, "python_version", lambda: "3.99")
        with pytest.raises(sk.RunFailed, match=r"travels by value from Python 3\.99"):
            run.retry(function=mended, quiet=True)
    run.retry(function=mended, quiet=True)
    assert run.summary().records == {"listed": 2, "done": 2, "quarantined": 0, "skipped": 0}
    assert {row["key"]: row["text"] for row in rows_of(run)} == {"a/r0.txt": "go", "a/r1.txt": "mended"}


def test_code_that_cannot_travel_leaves_no_run(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    with pytest.raises(sk.PipelineError, match="requirements: there is no file"):
        project.run_jobs(requirements="absent.txt", requirements_mode="install")
    with pytest.raises(sk.RunNotFound):
        sk.open_run(project.out)


@pytest.mark.whole
def test_a_function_by_value_does_not_fit_another_python(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    run = project.run_jobs(function=lambda record: {"key": record.key}, source_dir=None, wait=False)
    plan = json.loads((run.path / "plan.json").read_text())
    (run.path / "plan.json").write_text(json.dumps(plan | {"python": "3.9"}))
    with pytest.raises(sk.RunFailed, match="travels by value from Python 3.9, and this image has Python 3"):
        run.wait(quiet=True)


def test_an_image_of_another_python_is_refused_before_anything_is_written(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    uri = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/mine:1-py39"
    engine = sk.SageMaker(role="arn:aws:iam::123456789012:role/one", image=uri, region="eu-west-1")
    pipeline = sk.Pipeline(function=lambda record: None, input="s3://bucket/in", output="s3://bucket/out")
    with pytest.raises(sk.PipelineError, match=r"engine.image: .* and the image has 3\.9"):
        pipeline.run(engine, quiet=True)


def code_folders(project: JobProject) -> list[Path]:
    return sorted((project.out / "_shardkit" / "code").iterdir())


@SLOW
def test_code_travels_once_per_content_and_without_the_folder_of_the_engine(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    others = (".secret", "__pycache__/work.pyc", "env/pyvenv.cfg", "env/lib/big.py", "driver.ipynb", "sub/more.txt")
    for name in others:
        (project.code / name).parent.mkdir(parents=True, exist_ok=True)
        (project.code / name).write_text("x")
    (project.code / "tool.sh").write_text("#!/bin/sh\necho used\n")
    (project.code / "tool.sh").chmod(0o755)
    source = "import subprocess\nfrom pathlib import Path\ndef features(record):\n    tool = Path(__file__).with_name('tool.sh')\n"
    project.write_function(
        source + "    return {'key': record.key, 'said': subprocess.check_output([tool], text=True)}\n"
    )
    engine = project.local(root=project.code / "engine")
    run = project.run_jobs(engine=engine)
    assert set(run.dataset().to_table()["said"].to_pylist()) == {"used\n"}
    (first,) = code_folders(project)
    assert zipfile.ZipFile(first / "source.zip").namelist() == ["sub/more.txt", "tool.sh", "work.py"]
    (path,) = (project.code / "engine").glob("jobs/*-merge-*/request.json")
    merge = json.loads(path.read_text())["request"]
    assert merge["ProcessingInputs"][0]["S3Input"]["S3Uri"].startswith(f"{project.out}/_shardkit/code/")
    assert run.summary().status == "done"
    stamp = (first / "source.zip").stat().st_mtime_ns
    project.run_jobs(engine=engine, wait=False)
    assert code_folders(project) == [first]
    assert (first / "source.zip").stat().st_mtime_ns == stamp
    (project.code / "sub" / "more.txt").write_text("y")
    project.run_jobs(engine=engine, wait=False)
    assert len(code_folders(project)) == 2


@pytest.mark.whole
def test_input_and_output_inside_the_code_folder_do_not_travel(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    run = project.run_jobs(input=project.data.rename(project.code / "data"), output=project.code / "out", wait=False)
    (folder,) = (run.output / "_shardkit" / "code").iterdir()
    assert zipfile.ZipFile(folder / "source.zip").namelist() == ["work.py"]


def test_a_source_folder_that_is_no_code_is_refused(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    with (project.code / "model.bin").open("wb") as file:
        file.truncate(101 << 20)
    with pytest.raises(sk.PipelineError, match=r"source_dir: .* holds more than .* largest file is .*model\.bin"):
        project.run_jobs()


def make_package(folder: Path, version: str = "1.0") -> Path:
    """A wheel of a package that no index has."""
    name = f"shardkit_test_extra-{version}"
    wheel = folder / f"{name}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("shardkit_test_extra.py", f"VERSION = {version!r}\n")
        about = f"Metadata-Version: 2.1\nName: shardkit-test-extra\nVersion: {version}\n"
        archive.writestr(f"{name}.dist-info/METADATA", about)
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    return wheel


IMPORTS = """
import shardkit_test_extra
def features(record):
    return {"key": record.key, "row": 0, "version": shardkit_test_extra.VERSION}
"""


@pytest.mark.whole
def test_what_the_image_has_is_not_installed_again(project: JobProject, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_groups("go", groups="a")
    (project.code / "requirements.txt").write_text(
        "pandas>=1.0  # any\n\n# nothing\nno-such-thing; python_version<'3'\n"
    )
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    run = project.run_jobs(requirements_mode="install")
    assert run.summary().status == "done"


@SLOW
def test_a_requirement_that_cannot_be_installed_is_told(project: JobProject, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_groups("go", groups="a")
    (project.code / "requirements.txt").write_text("shardkit-test-extra\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        sk.RunFailed, match="pip cannot install shardkit-test-extra: .*No matching distribution"
    ) as caught:
        project.run_jobs(requirements_mode="install")
    assert ".logs()" in caught.value.hint and "shardkit logs" in caught.value.hint.command
    with pytest.raises(sk.PipelineError, match="requirements: pip cannot fetch wheels: .*No matching distribution"):
        project.run_jobs(requirements_mode="bundle")


@SLOW
def test_requirements_travel_as_wheels(project: JobProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_groups("go", groups="a")
    project.write_function(IMPORTS)
    wheel = make_package(tmp_path / "wheels")
    (project.root / "needs.txt").write_text("shardkit-test-extra==1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr("shardkit.runs.bundle._own_requirements", list)
    run = project.run_jobs(requirements=project.root / "needs.txt", requirements_mode="bundle")
    (folder,) = code_folders(project)
    assert [path.name for path in (folder / "wheels").iterdir()] == [wheel.name]
    assert run.dataset().to_table()["version"].to_pylist() == ["1.0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--index-url https://me:secret@example.org\n", r"requirements: .*, line 1 looks like it holds a secret: .*\*"),
        ("-r others.txt\n", "requirements: .*, line 1 names others.txt, and there is no such file"),
        (None, "requirements: there is no file"),
    ],
)
def test_requirements_that_are_refused(project: JobProject, text: str | None, message: str) -> None:
    project.write_groups("go", groups="a")
    path = project.root / "needs.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(sk.PipelineError, match=message):
        project.run_jobs(requirements=path, requirements_mode="install")


@pytest.mark.whole
def test_an_image_without_shardkit_gets_it_from_the_bundle(project: JobProject) -> None:
    """Here the same one is installed; its copy in the bundle is tried by a bootstrap that finds none."""
    project.write_groups("go", groups="a")
    project.run_jobs(wait=False)
    (folder,) = code_folders(project)
    with zipfile.ZipFile(folder / "shardkit.zip") as archive:
        archive.extractall(project.root / "unpacked")
    done = subprocess.run(
        [sys.executable, "-c", "import shardkit.runs.container.job, shardkit; print(shardkit.__file__)"],
        env=environment() | {"PYTHONPATH": str(project.root / "unpacked")},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(project.root / "unpacked") in done.stdout
    assert "shardkit/runs/container/bootstrap.sh" in zipfile.ZipFile(folder / "shardkit.zip").namelist()


@pytest.mark.whole
def test_secrets_stay_where_they_are(project: JobProject, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_groups("bad", "go", groups="a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-session")
    monkeypatch.setenv("MY_TOKEN", "another-secret")
    run = project.run_jobs(engine=project.local(env={"STAGE": "a-visible-stage"}), max_failures="50%")
    assert project.files_with("a-visible-stage")
    for secret in ("a-secret-of-the-session", "another-secret"):
        assert not project.files_with(secret)
        assert not [line for line in run.logs("") if secret in line]
    with pytest.raises(sk.PipelineError, match="env: DB_PASSWORD looks like a secret") as caught:
        project.local(env={"DB_PASSWORD": "hunter2"})
    assert "hunter2" not in str(caught.value)


# ---- what cannot work is refused ---------------------------------------------------------------------------------


def test_a_volume_that_is_too_small_for_the_input(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    with (project.data / "a" / "large.txt").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(
        sk.PipelineError, match=r"engine\.volume_gb: job 0 downloads 3\.2 GB .* volume has 1 GB"
    ) as caught:
        project.run_jobs(engine=project.local(volume_gb=1), input_mode="download")
    assert "volume_gb to 4" in caught.value.hint
    assert project.calls() == []


REFUSED = {
    "engine.network": {"engine": {"network": {"enable_network_isolation": True}}},
    "engine.instance_count": {"engine": {"instance_count": 2}},
    "max_instances": {"shards": {"by": "s3key", "instances": 5}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_cannot_work_is_refused_by_name(project: JobProject, field: str) -> None:
    project.write_groups(*["go"] * 5, groups="a")
    fields = dict(REFUSED[field])
    engine = project.local(**fields.pop("engine", {}))
    with pytest.raises(sk.PipelineError, match=field):
        project.run_jobs(engine=engine, **fields)
    assert not project.out.exists()


def test_sagemaker_does_not_see_this_machine(project: JobProject) -> None:
    project.write_groups("go", groups="a")
    engine = sk.SageMaker(
        role="arn:aws:iam::123456789012:role/one", image="1.dkr.ecr.eu-west-1.amazonaws.com/a", region="eu-west-1"
    )
    with pytest.raises(sk.PipelineError, match=r"input\.uri: .* which jobs on SageMaker do not see"):
        project.run_jobs(engine=engine)
    with pytest.raises(sk.PipelineError, match=r"output\.uri: .* which jobs on SageMaker do not see"):
        project.run_jobs(engine=engine, input="s3://bucket/in")
    assert not project.out.exists()


def test_a_run_without_jobs_has_none(tmp_path: Path) -> None:
    plain = Project(tmp_path)
    plain.write_records(["go"])
    plain.write_function("def features(record):\n    return {'key': record.key}\n")
    run = plain.run()
    with pytest.raises(sk.PipelineError, match="has no jobs"):
        run.jobs()


# ---- what it costs -----------------------------------------------------------------------------------------------


@SLOW
@pytest.mark.alone
def test_ten_jobs_cost_at_most_a_second_each(project: JobProject, jobs_as_programs: None) -> None:
    project.write_groups(*["go"] * 20, groups="abcdefghij")
    plain = "def features(record):\n    return {'key': record.key}\n"
    project.write_function(plain)

    def seconds(**fields: Any) -> float:
        begun = time.perf_counter()
        project.run_jobs(**fields) if "shards" in fields else sk.Pipeline(**project.fields(shards=None)).run(quiet=True)
        return time.perf_counter() - begun

    best = min((seconds(shards={"by": "directory"}) - seconds()) / 10 for _ in range(2))
    print(f"\na job costs {best:.2f} s more than its share of one pass 1")  # noqa: T201  what -s shows
    assert best < 1.0
