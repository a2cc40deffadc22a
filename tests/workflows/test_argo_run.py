"""What `workflow deploy` writes runs: its tasks, arguments, fan-out, retries and exit handler, up to the dataset."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import argo_here
import boto3
import pytest
import warm
import yaml
from argo_here import Cluster, Run
from emulators import CREDENTIALS, use_emulator

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from conftest import RunCommand

NUMBERS = itertools.count()
WORKFLOW = """
name: flow
image: shardkit
output: s3://{{{{variables.BUCKET}}}}/made
params:
  least: {{default: "1", pattern: "[0-9]+"}}
steps:
  - name: features
    pipeline: words.yaml
    set: {{input.uri: "s3://{{{{variables.BUCKET}}}}/texts", output.uri: "s3://{{{{variables.BUCKET}}}}/features"}}
    env: {{STATE: "{state}", WORDS: "of {{{{params.least}}}}"}}
    resources: {{cpu: 1, memory: 1Gi}}
    max_jobs: 3
    jobs_at_once: 2
  - {{name: count, after: features, image: trainer, command: [python, count.py, "{{{{steps.features.output}}}}",
     "{{{{params.least}}}}"], env: {{KEY: "env:COUNT_KEY"}}}}
  - {{name: list, after: count, image: trainer, command: [python, list.py, "{{{{steps.count.output}}}}"]}}
notify: {{failed: "webhook:env:HOOK", completed: "webhook:env:HOOK"}}
environments:
  dev: {{namespace: ml-dev, variables: {{BUCKET: {bucket}}}}}
"""
PIPELINE = """
name: words
input: {uri: data/, pattern: "*.txt"}
function: words:rows
source_dir: src
shards: {by: directory, depth: 1}
max_failures: 0
output: {uri: out/}
"""
FUNCTION = """
import os, pathlib, time

def rows(record):
    text = pathlib.Path(record).read_text()
    first = pathlib.Path(os.environ["STATE"], record.key.replace("/", "-"))
    if text == "lose" and not first.exists():  # the node goes when half of this job is done
        first.touch()
        pathlib.Path(os.environ["TMPDIR"], "lose-node").touch()
        time.sleep(60)
    if text == "bad":
        raise ValueError("no words")
    return {"key": record.key, "text": text, "words": os.environ["WORDS"]}
"""
COUNT = """
import json, os, sys
import boto3, pyarrow.parquet as pq, io
s3, out = boto3.client("s3"), os.environ["SHARDKIT_OUTPUT"]
def split(uri): return uri.removeprefix("s3://").split("/", 1)
bucket, prefix = split(sys.argv[1])
keys = [each["Key"] for each in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
parts = [key for key in keys if key.endswith(".parquet") and "/_shardkit/" not in key]
rows = sum(pq.read_table(io.BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read())).num_rows for key in parts)
assert os.environ["KEY"] == "the key" and rows >= int(sys.argv[2]), rows
s3.put_object(Bucket=split(out)[0], Key=split(out)[1] + "/model.json", Body=json.dumps({"rows": rows}))
"""
LIST = """
import json, os, sys, boto3
bucket, prefix = sys.argv[1].removeprefix("s3://").split("/", 1)
s3 = boto3.client("s3")
model = json.loads(s3.get_object(Bucket=bucket, Key=prefix + "/model.json")["Body"].read())
out = os.environ["SHARDKIT_OUTPUT"].removeprefix(f"s3://{bucket}/")
s3.put_object(Bucket=bucket, Key=out + "/list.json", Body=json.dumps(list(range(model["rows"]))))
"""
TEXTS = {f"{group}/{name}.txt": f"{group}{name}" for group in "abcde" for name in "12"}


@pytest.fixture
def notices() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a server for notices, and those that it has got."""
    got: list[dict[str, Any]] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Taker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


class Flow:
    """A workflow's files, what `deploy` makes of them, and the bucket that stands for S3."""

    def __init__(self, root: Path, shardkit: RunCommand, s3_url: str, hook: str) -> None:
        self.root, self._shardkit, self._url, self._hook = root, shardkit, s3_url, hook
        self.bucket = f"flow-{next(NUMBERS)}-{os.getpid()}"
        self.s3 = boto3.client("s3", endpoint_url=s3_url, region_name="us-east-1")
        self.s3.create_bucket(Bucket=self.bucket)
        for folder in ("src", "images/shardkit", "images/trainer", "pods", "state"):
            (root / folder).mkdir(parents=True)
        (root / "src/words.py").write_text(FUNCTION)
        (root / "words.yaml").write_text(PIPELINE)
        (root / "images/trainer/count.py").write_text(COUNT)
        (root / "images/trainer/list.py").write_text(LIST)
        (root / "workflow.yaml").write_text(WORKFLOW.format(bucket=self.bucket, state=root / "state"))

    def put(self, texts: Mapping[str, str]) -> None:
        for key, text in texts.items():
            self.s3.put_object(Bucket=self.bucket, Key=f"texts/{key}", Body=text.encode())

    def deployed(self) -> list[dict[str, Any]]:
        self._shardkit("workflow", "deploy", "workflow.yaml", "--output", "deploy")
        return [yaml.safe_load(path.read_text()) for path in sorted((self.root / "deploy/dev").iterdir())]

    def run(self, name: str, **arguments: str) -> Run:
        credentials = CREDENTIALS | {"AWS_ENDPOINT_URL": self._url, "PATH": os.environ["PATH"]}
        cluster = Cluster(
            self.root / "pods",
            self.deployed(),
            {image: self.root / "images" / image for image in ("shardkit", "trainer")},
            {"flow": {"COUNT_KEY": "the key", "HOOK": self._hook}},
            credentials | warm.read_at_start(os.environ),
        )
        return Run(cluster, "flow", name, arguments)

    def json(self, key: str) -> Any:
        return json.loads(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def dataset(self, name: str = "features") -> list[dict[str, Any]]:
        table = sk.open_run(f"s3://{self.bucket}/{name}").dataset().to_table()
        return sorted(table.to_pylist(), key=lambda row: row["key"])


@pytest.fixture
def flow(
    tmp_path: Path,
    shardkit: RunCommand,
    s3_url: str,
    notices: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> Flow:
    use_emulator(monkeypatch, s3_url)
    return Flow(tmp_path, shardkit, s3_url, notices[0])


@pytest.mark.slow
def test_the_steps_run_up_to_the_same_dataset_though_a_node_is_lost(
    flow: Flow, notices: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TEXTS | {"c/2.txt": "lose"}
    flow.put(texts)
    run = flow.run("flow-x1", least="7")
    assert run.carry_out() == argo_here.SUCCEEDED, [(pod.name, pod.message) for pod in run.pods]

    # The fan-out: three jobs of whole folders, two of them at once; the one that lost its node went on at its markers.
    jobs = run.attempts("features-pass1")
    assert [job.status for job in jobs].count(argo_here.SUCCEEDED) == 3
    assert [job.message for job in jobs if job.status != argo_here.SUCCEEDED] == ["pod deleted"]
    assert run.most_at_once == 2
    assert [len(run.attempts(f"features-{name}")) for name in ("plan", "pass2")] == [1, 1]

    # The same dataset as that of a run on one machine.
    monkeypatch.setenv("STATE", str(flow.root / "state"))
    monkeypatch.setenv("WORDS", "of 7")
    here = f"s3://{flow.bucket}/here"
    sk.Pipeline.from_yaml(
        flow.root / "words.yaml", overrides={"input.uri": f"s3://{flow.bucket}/texts", "output.uri": here}
    ).run(quiet=True)
    assert flow.dataset() == flow.dataset("here")
    assert [row["key"] for row in flow.dataset()] == sorted(texts)
    assert flow.json("made/list/list.json") == list(range(len(texts)))

    # The run folder is the same from here: its id is the name of Argo's workflow.
    handle = sk.open_run(f"s3://{flow.bucket}/features")
    assert (handle.run_id, handle.summary().status) == ("flow-x1", "done")
    (notice,) = notices[1]
    assert (notice["run"], notice["status"], notice["again"]) == ("flow flow-x1 in dev", "Completed", "")


@pytest.mark.whole
def test_a_failed_function_is_not_tried_again_and_the_rest_can_be_done_on_a_laptop(
    flow: Flow, notices: tuple[str, list[dict[str, Any]]], shardkit: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.put(TEXTS | {"e/1.txt": "bad"})
    run = flow.run("flow-x1")
    assert run.carry_out() == argo_here.FAILED
    statuses = [job.status for job in run.attempts("features-pass1")]
    assert sorted(statuses) == [argo_here.FAILED, argo_here.SUCCEEDED, argo_here.SUCCEEDED]
    assert not [pod for pod in run.pods if pod.name in {"features-pass2", "count", "list"}]
    (notice,) = notices[1]
    assert (notice["status"], notice["again"]) == ("Failed", "argo retry flow-x1")

    # `argo retry` runs what failed again, under the same name; here the function is mended, on a laptop.
    monkeypatch.setenv("STATE", str(flow.root / "state"))
    monkeypatch.setenv("WORDS", "of 1")
    (flow.root / "src/words.py").write_text(FUNCTION.replace('raise ValueError("no words")', "text = 'good'"))
    output = f"s3://{flow.bucket}/features"
    assert "1 quarantined" in shardkit("status", output).stdout
    shutil.rmtree(flow.root / "pods")  # with the folder in which the plan has found the function
    assert "Say where they are here: shardkit retry" in shardkit("retry", output, code=2).stderr
    shardkit("retry", output, "--set", "source_dir=src", "--quiet")
    assert {row["key"]: row["text"] for row in flow.dataset()} == TEXTS | {"e/1.txt": "good"}


@pytest.mark.whole
def test_a_parameter_that_will_not_do_stops_the_run_before_its_first_step(
    flow: Flow, notices: tuple[str, list[dict[str, Any]]]
) -> None:
    run = flow.run("flow-x1", least="1; rm")
    assert run.carry_out() == argo_here.FAILED
    assert [pod.name for pod in run.pods] == ["parameters", "notice-failed"]
    assert "'1; rm' does not match [0-9]+" in run.pods[0].message
    assert len(notices[1]) == 1


SMALL = """
name: small
mode: webhook
webhook: {port: 12000, token: "env:TOKEN"}
image: tools
namespace: ml
params: {day: {pattern: "[0-9-]{10}"}, country: fr}
steps:
  - {name: flaky, retries: 2, command: [python, flaky.py], env: {STATE: "STATE_FOLDER"}}
  - {name: said, after: flaky, command: [python, say.py, "{{params.day}} {{params.country}}"], env: {STATE: "STATE_FOLDER"}}
  - {name: worse, command: [python, -c, "raise SystemExit(3)"]}
  - {name: never, after: [said, worse], command: [python, say.py, never]}
"""
FLAKY = """
import os, pathlib
before = pathlib.Path(os.environ["STATE"], "before")
if not before.exists():
    before.touch()
    raise SystemExit(1)
"""
SAY = """
import os, pathlib, sys
pathlib.Path(os.environ["STATE"], "said").write_text(sys.argv[1])
"""


def test_a_call_begins_a_run_whose_steps_are_tried_again_as_often_as_the_file_says(
    tmp_path: Path, shardkit: RunCommand
) -> None:
    state, image, files = tmp_path / "state", tmp_path / "tools", tmp_path / "files"
    for folder in (state, image, files, tmp_path / "pods"):
        folder.mkdir()
    (image / "flaky.py").write_text(FLAKY)
    (files / "say.py").write_text(SAY)  # not in the image: it travels
    (files / "workflow.yaml").write_text(SMALL.replace("STATE_FOLDER", str(state)))
    shardkit("workflow", "deploy", "workflow.yaml", "--output", "deploy", cwd=files)
    manifests = [yaml.safe_load(path.read_text()) for path in (files / "deploy/default").iterdir()]
    sensor = next(each for each in manifests if each["kind"] == "Sensor")
    with pytest.raises(KeyError, match="day"):
        argo_here.begun_by(sensor, {"country": "de"})
    template, arguments = argo_here.begun_by(sensor, {"day": "2026-01-31", "more": "x"})
    assert (template, arguments) == ("small", {"day": "2026-01-31", "country": "fr"})

    environment = {"PATH": os.environ["PATH"], **warm.read_at_start(os.environ)}
    cluster = Cluster(tmp_path / "pods", manifests, {"tools": image}, {}, environment)
    run = Run(cluster, template, "small-x1", arguments)
    assert run.carry_out() == argo_here.FAILED
    assert [pod.status for pod in run.attempts("flaky")] == [argo_here.FAILED, argo_here.SUCCEEDED]
    assert [pod.exit_code for pod in run.attempts("worse")] == [3]
    assert [each["data"] for each in manifests if each["kind"] == "ConfigMap"] == [{"source__say.py": SAY}]
    assert (state / "said").read_text() == "2026-01-31 fr"
    assert not run.attempts("never")


@pytest.mark.parametrize(
    ("ended", "again"),
    [
        (argo_here.Ended("x", argo_here.ERROR, message="pod deleted", exit_code=-1), True),
        (argo_here.Ended("x", argo_here.FAILED, message="Pod was terminated by imminent node shutdown"), True),
        (argo_here.Ended("x", argo_here.FAILED, exit_code=75, message="Error (exit code 75)"), True),
        (argo_here.Ended("x", argo_here.FAILED, exit_code=143, message="Error (exit code 143)"), True),
        (argo_here.Ended("x", argo_here.FAILED, exit_code=137, message="OOMKilled (exit code 137)"), False),
        (argo_here.Ended("x", argo_here.FAILED, exit_code=143, message="longer than the specified deadline"), False),
        (argo_here.Ended("x", argo_here.FAILED, exit_code=1, message="Error (exit code 1)"), False),
        (argo_here.Ended("x", argo_here.FAILED, exit_code=2, message="Error (exit code 2)"), False),
    ],
)
def test_lost_nodes_are_told_from_failed_functions(ended: argo_here.Ended, again: bool) -> None:  # noqa: FBT001
    from shardkit.workflows.kubernetes.retries import retry_strategy

    assert argo_here.may_try_again(retry_strategy(None)["expression"], ended) == again
