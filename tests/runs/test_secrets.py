"""A secret is refused or masked wherever it would be written or shown, in whatever field it was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from engine_jobs import ended, request
from job_runs import JobProject

import shardkit as sk
from shardkit.engines.local import LocalEngine
from shardkit.engines.settings import Settings
from shardkit.engines.validation import service_model
from shardkit.explain import models_of
from shardkit.jobs import JobError, SQLiteStore, Submission
from shardkit.user_state import state_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import RunCommand
    from pydantic import BaseModel

SECRET = "hunter2SECRET"
URL = f"https://ci:{SECRET}@index.example.com/simple"
ROLE = "arn:aws:iam::123456789012:role/one"
FAILING = """
def features(record):
    word = "hunter2" + "SECRET"
    print("DB_PASSWORD=" + word)
    if record.key.endswith("0.txt"):
        raise ValueError("no answer from https://ci:" + word + "@db.example.com/x")
    return {"key": record.key}
"""


def places(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field of a model, of those in it too."""
    for name, field in model.model_fields.items():
        here = (*before, field.alias or name)
        yield here
        for inner in [each for part in models_of(field) for each in (part, *part.__subclasses__())]:
            if not issubclass(inner, Settings) and len(here) < 4:
                yield from places(inner, here)


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def refused(make: Any, *, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        make()
    assert SECRET not in f"{caught.value!r} {caught.value}"
    return str(caught.value)


# ---- what is given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(set(places(sk.Pipeline))), ids=".".join)
def test_no_field_of_a_pipeline_takes_a_secret(path: tuple[str, ...]) -> None:
    for value in (URL, [URL], {"x": URL}):
        fields = {"function": "work:f", "input": "in/", "output": "out/"} | nested(path, value)
        told = refused(lambda fields=fields: sk.Pipeline(**fields), error=sk.PipelineError)
        assert told.startswith(".".join(path)) and "secret" in told


@pytest.mark.parametrize("path", sorted({*places(sk.SageMaker), *places(sk.Local)}), ids=".".join)
def test_no_field_of_an_engine_takes_a_secret(path: tuple[str, ...]) -> None:
    for value in (URL, [URL], {"x": URL}):
        fields = {"role": ROLE, "image": "any"} | nested(path, value)
        refused(lambda fields=fields: sk.SageMaker(**fields), error=sk.PipelineError)
    refused(lambda: sk.Local(tags={"api_key": SECRET}), error=sk.PipelineError)
    refused(lambda: sk.Local(env={"API_KEY": SECRET}), error=sk.PipelineError)


def strings(shape: Any, before: tuple[Any, ...] = (), above: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every text in a request of the service."""
    if shape.name in above:
        return
    if shape.type_name == "structure":
        for name, member in shape.members.items():
            yield from strings(member, (*before, name), (*above, shape.name))
    elif shape.type_name == "list":
        yield from strings(shape.member, (*before, 0), (*above, shape.name))
    elif shape.type_name == "map":
        yield from strings(shape.value, (*before, "any"), (*above, shape.name))
    elif shape.type_name == "string":
        yield before


@pytest.mark.parametrize("operation", ["CreateProcessingJob", "CreateTrainingJob"])
def test_no_field_of_a_request_takes_a_secret(operation: str, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "jobs.sqlite")
    paths = list(strings(service_model().operation_model(operation).input_shape))
    assert len(paths) > 40
    for path in paths:
        value: Any = URL
        for step in reversed(path):
            value = [value] if step == 0 else {step: value}
        told = refused(lambda value=value: store.submit("one", value), error=JobError)
        assert "looks like a secret" in told or path == (operation.removeprefix("Create") + "Name",)
    fields: list[dict[str, Any]] = [{"owner": URL}, {"run": URL}, {"tags": {"x": URL}}, {"tags": {"api_key": SECRET}}]
    for given in [*fields, {"notify": [URL]}]:
        refused(lambda given=given: sk.jobs.submit({}, job_id="one", store=store, **given), error=JobError)
    assert SECRET.encode() not in (tmp_path / "jobs.sqlite").read_bytes()


@pytest.mark.parametrize(
    "about",
    [
        {"Environment": {"DB_PASSWORD": SECRET}},
        {"AppSpecification": {"ContainerArguments": ["--api-token", SECRET]}},
        {"AppSpecification": {"ContainerArguments": [f"--api-token={SECRET}"]}},
        {"AppSpecification": {"ContainerEntrypoint": ["sh", "-c", f"export DB_PASSWORD={SECRET}; run"]}},
        {"Tags": [{"Key": "api_key", "Value": SECRET}]},
    ],
)
def test_a_name_tells_a_secret_too(about: dict[str, Any]) -> None:
    assert "looks like a secret" in refused(lambda: Submission("one", about).job(0.0), error=JobError)


def test_what_only_looks_a_little_like_a_secret_is_taken() -> None:
    about = {
        "HyperParameters": {"pad_token": "<pad>", "max_tokens": "512"},
        "Environment": {"DB_PASSWORD": "arn:aws:secretsmanager:eu-west-1:111122223333:secret:db", "TOKEN_LIMIT": "7"},
        "AppSpecification": {
            "ContainerEntrypoint": ["sh", "-c", "DB_PASSWORD=$(get-it) run; f(pad_token=pad)"],
            "ContainerArguments": ["--tokens", "7", "--token-file", "/run/token"],
        },
        "Tags": [{"Key": "team", "Value": "data"}],
    }
    assert Submission("one", about).job(0.0).job_id == "one"


# ---- what is written and shown -------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    yield made
    made.end()


@pytest.mark.slow
def test_what_a_function_lets_slip_is_masked(project: JobProject, shardkit: RunCommand) -> None:
    project.write_groups("go", "go", groups="a")
    project.write_function(FAILING)
    run = project.run_jobs(max_failures=1)
    for file in project.out.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    assert any("DB_PASSWORD=***" in line for line in run.logs(""))
    assert "https://ci:***@db.example.com" in run.failures()["traceback"][0]
    for words in (["logs", "--job", "g1"], ["failures"], ["status", "--json"]):
        assert SECRET not in shardkit(words[0], project.out, *words[1:]).stdout


def test_what_a_job_leaves_as_its_message_is_masked(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "engine")
    shell = f'm="$SHARDKIT_OPT_ML"; echo "cannot reach {URL}" >"${{m:-/opt/ml}}/output/message"; exit 3'
    if engine.isolation == "none":
        pytest.skip("no namespaces on this machine")
    engine.create_processing_job(**request("slips", shell=shell))
    about = ended(engine, "slips")
    assert "https://ci:***@index.example.com" in about["FailureReason"]
    assert SECRET not in about["FailureReason"] + about["ExitMessage"]


@pytest.mark.whole
def test_what_a_store_was_told_before_is_masked_when_it_is_shown(tmp_path: Path, shardkit: RunCommand) -> None:
    store = SQLiteStore(tmp_path / "jobs.sqlite")
    store.submit("one", {"ProcessingResources": {}, "Environment": {"NOTE": "fine"}})
    known = json.dumps({"ProcessingResources": {}, "Environment": {"DB_PASSWORD": SECRET}})
    with store._writing() as db:  # as an earlier version has taken it
        db.execute("UPDATE requests SET request = ?", (known,))
        db.execute("UPDATE jobs SET reason = ?", (f"cannot reach {URL}",))
    shown = shardkit("jobs", "show", "one", "--request", "--store", store.path).stdout
    shown += shardkit("jobs", "list", "--store", store.path).stdout
    shown += shardkit("jobs", "show", "one", "--json", "--request", "--store", store.path).stdout
    assert "***" in shown
    assert SECRET not in shown


# ---- who may read it -----------------------------------------------------------------------------------------------


def test_the_users_own_state_is_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SHARDKIT_JOBS", raising=False)
    before = os.umask(0)
    try:
        sk.jobs.submit({"ProcessingResources": {}}, job_id="one")
        path = state_path("jobs.sqlite")
        modes = [os.stat(name).st_mode & 0o777 for name in (os.path.dirname(path), path)]
        assert modes == [0o700, 0o600]
        os.chmod(os.path.dirname(path), 0o755)  # as an earlier version has made them
        os.chmod(path, 0o644)
        SQLiteStore(path).close()
        assert [os.stat(name).st_mode & 0o777 for name in (os.path.dirname(path), path)] == [0o700, 0o600]
        other = tmp_path / "shared.sqlite"
        SQLiteStore(other).close()
        assert other.stat().st_mode & 0o777 == 0o600
        other.chmod(0o660)  # a team's, as its owner wishes
        SQLiteStore(other).close()
        assert other.stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_reads_neither_jobs_nor_their_logs(tmp_path: Path) -> None:
    root = tmp_path / "engine"
    root.mkdir(mode=0o755)
    LocalEngine(root).create_failed_job("none", **request("one", "true"))
    SQLiteStore(tmp_path / "jobs.sqlite").close()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith("pytest-"):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    paths = [str(root / "jobs" / "one" / "request.json"), str(tmp_path / "jobs.sqlite")]
    code = (
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for path in sys.argv[1:]:\n"
        "    try: open(path).read(); print('read')\n"
        "    except PermissionError: print('kept')\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *paths], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split() == ["kept", "kept"]
