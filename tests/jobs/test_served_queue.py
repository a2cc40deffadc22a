"""A pipeline whose jobs are in a queue that somebody else serves: submit, leave, watch, stop, get notices."""

from __future__ import annotations

import http.server
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import warm
from crashing import LINUX, wait_for
from emulators import use_emulator
from job_runs import JobProject

import shardkit as sk
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.jobs import JobConflict, JobError, Policy, SQLiteStore, create_table, policy_of, serve, set_policy, submit
from shardkit.jobs.service import trouble_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [LINUX, pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")]
RUN = """
import json, sys
import shardkit as sk
root, fields = sys.argv[1], json.loads(sys.argv[2])
sk.Pipeline(**fields).run(sk.Local(root=root, max_instances=4), quiet=True, wait=False)
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    yield made
    made.end()


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where the jobs are. What a store does, `test_job_stores.py` tries on each; so one of these has DynamoDB."""
    return str(tmp_path / "jobs.sqlite")


def serve_until_ended(project: JobProject, place: str) -> None:
    engine = LocalEngine(project.engine_root, max_instances=4)
    serve(sk.jobs.open_store(place), engine, policy=Policy.local(max_instances=4), region="", until_ended=True)


class Listener:
    """A webhook on loopback."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                listener.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    made = Listener()
    monkeypatch.setenv("HOOK", made.url)
    yield made
    made.server.shutdown()


@pytest.mark.slow
def test_who_submits_is_not_needed_any_more(
    project: JobProject, ministack_url: str, monkeypatch: pytest.MonkeyPatch, hook: Listener
) -> None:
    use_emulator(monkeypatch, ministack_url, service="DYNAMODB")
    create_table("submitted-and-left")
    place = "dynamodb://submitted-and-left"
    project.write_groups("go", "go", groups="ab")
    fields = project.fields(queue={"place": place, "owner": "ana", "notify": ["webhook:env:HOOK"]})
    done = warm.run(["-c", RUN, project.engine_root, json.dumps(fields)], env=os.environ, timeout_s=60)
    assert done.returncode == 0, done.stderr
    run = sk.open_run(project.out)
    assert {job["status"] for job in run.jobs()} == {"New"} and run.summary().status == "running"
    assert project.calls() == []
    serve_until_ended(project, place)
    assert project.keys_and_rows(run) == project.expected() and run.summary().status == "done"
    (told,) = hook.told
    text = json.dumps(told)
    assert run.run_id in text and '"Completed": 3' in text and hook.url not in text
    assert hook.url.encode() not in b"".join(path.read_bytes() for path in project.out.rglob("*.json"))
    assert {job.owner for job in sk.jobs.open_store(place).jobs()} == {"ana"}
    assert run.resume(quiet=True).summary().status == "done"


@pytest.mark.whole
def test_a_watcher_sees_a_queue_through_that_others_serve(project: JobProject, place: str) -> None:
    project.write_groups("go", groups="ab")
    watcher = threading.Thread(target=project.run_jobs, kwargs={"queue": place})
    watcher.start()
    try:
        wait_for(lambda: sk.jobs.open_store(place).counts()["New"] == 3, what="the jobs")
    finally:
        serve_until_ended(project, place)
        watcher.join(60)
    assert not watcher.is_alive() and project.keys_and_rows() == project.expected()


@pytest.mark.whole
def test_a_watcher_is_told_that_nobody_serves(project: JobProject, tmp_path: Path) -> None:
    project.write_groups("go", groups="a")
    fields = project.fields(
        queue=str(tmp_path / "jobs.sqlite"), engine={"kind": "local", "root": str(project.engine_root)}
    )
    code = "import json, sys; import shardkit as sk; sk.Pipeline(**json.loads(sys.argv[1])).run()"
    ours, theirs = os.pipe()
    with open(ours) as said, open(theirs, "wb") as output:
        watcher = warm.start(["-c", code, json.dumps(fields)], env=os.environ, stdout=output, stderr=output)
        output.close()
        try:
            assert any("nobody serves this queue yet" in line for line in said)
        finally:
            watcher.kill()
            watcher.wait(60)


@pytest.mark.whole
def test_jobs_are_stopped_and_go_on_in_a_new_generation(project: JobProject, place: str) -> None:
    project.write_groups("wait", *["slow"] * 20, groups="a")
    run = project.run_jobs(queue=place, wait=False)
    over = threading.Event()
    engine = LocalEngine(project.engine_root, max_instances=4)
    options: dict[str, Any] = {"policy": Policy.local(max_instances=4), "region": "", "stop": over}
    server = threading.Thread(target=serve, args=(sk.jobs.open_store(place), engine), kwargs=options)
    server.start()
    try:
        project.wait_for_calls("a/r0.txt")
        assert run.stop() == 2
        job_id = run.jobs()[0]["job"]
        wait_for(lambda: sk.jobs.open_store(place).get(job_id).stop_sent_at > 0, what="the stop to be sent")
        project.open_gate()  # otherwise it takes the ten seconds that a record has to end
        wait_for(lambda: {job["status"] for job in run.jobs()} == {"Stopped"}, what="the jobs to stop")
        assert run.summary().status == "interrupted"
        run.resume(quiet=True)
    finally:
        over.set()
        server.join(60)
    assert project.keys_and_rows(run) == project.expected()


@pytest.mark.whole
def test_a_run_that_fails_is_told_of_with_what_to_do(project: JobProject, tmp_path: Path, hook: Listener) -> None:
    project.write_groups("bad", groups="a")
    place = str(tmp_path / "jobs.sqlite")
    run = project.run_jobs(queue={"place": place, "notify": "webhook:env:HOOK"}, wait=False)
    serve_until_ended(project, place)
    (told,) = hook.told
    text = json.dumps(told)
    assert "Failed" in text and "shardkit resume" in text and str(project.out) in text
    assert run.summary().status == "failed"


def test_fields_that_cannot_be(project: JobProject) -> None:
    for queue, message in (
        ("sqs://jobs", "expected dynamodb, dynamodb://TABLE, or the path"),
        ({"place": "dynamodb", "notify": "https://hooks.example/T0K3N"}, "queue.notify"),
        ({"notify": []}, "queue.place"),
    ):
        with pytest.raises(sk.PipelineError, match=message) as refused:
            sk.Pipeline(**project.fields(queue=queue))
        assert "T0K3N" not in str(refused.value)
    with pytest.raises(sk.PipelineError, match="queue: only jobs of an engine"):
        sk.Pipeline(**project.fields(queue="dynamodb")).run(quiet=True)


def test_a_policy_is_kept_with_the_jobs(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "jobs.sqlite")
    local = Policy.local()
    assert policy_of(store, local) == local
    set_policy(store, {"ceilings": {"ml.m5.xlarge": 2}, "attempts": {"capacity": 30}})
    assert policy_of(store, local) == Policy.local(ceilings={"ml.m5.xlarge": 2}, attempts={"capacity": 30})
    assert set_policy(store, {"ceilings": None}) == {"attempts": {"capacity": 30}}
    with pytest.raises(JobError, match="A policy has no 'speed'"):
        set_policy(store, {"speed": 3})
    assert policy_of(store).attempts == {"capacity": 30}


def test_submitting_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"ProcessingResources": {"ClusterConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1}}}
    monkeypatch.setenv("SHARDKIT_JOBS", str(tmp_path / "new" / "jobs.sqlite"))
    monkeypatch.setenv("LOGNAME", "ana")
    made = submit(request)
    assert (made.status, made.owner) == ("New", "ana") and made.job_id.startswith("job-")
    assert submit(request, job_id=made.job_id).job_id == made.job_id
    with pytest.raises(JobConflict):
        submit({**request, "RoleArn": "another"}, job_id=made.job_id)
    with pytest.raises(JobError, match="webhook:"):
        submit(request, notify=["https://hooks.example/T0/secret"])
    assert len(SQLiteStore(tmp_path / "new" / "jobs.sqlite").jobs()) == 1


def test_a_queue_that_nobody_serves_names_the_command_that_would(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "the jobs.sqlite") as store:
        told = trouble_of(store, 0.0, place=str(store.path), engine="local")
    command = f"shardkit jobs serve --store '{tmp_path}/the jobs.sqlite' --engine local"
    assert told == f"nobody serves this queue yet: {command}"
