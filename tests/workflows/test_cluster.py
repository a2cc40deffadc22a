"""`workflow cluster` and `workflow notebook`: what a fresh cluster gets, and a Jupyter that really starts."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from crashing import wait_for
from strict_schemas import problems
from test_manifests import Deployment

if TYPE_CHECKING:
    from conftest import RunCommand

Manifest = dict[str, Any]


@pytest.fixture
def deployment(tmp_path: Path, shardkit: RunCommand) -> Deployment:
    return Deployment(tmp_path, shardkit)


def cluster_of(deployment: Deployment, shardkit: RunCommand, *words: str) -> dict[str, str]:
    shardkit("workflow", "cluster", "workflow.yaml", "--output", "cluster", *words)
    return {path.name: path.read_text() for path in (deployment.root / "cluster").iterdir()}


def test_a_cluster_in_aws_has_the_nodes_and_the_role_that_the_steps_need(
    deployment: Deployment, shardkit: RunCommand
) -> None:
    files = cluster_of(deployment, shardkit, "--region", "eu-west-1", "--bucket", "my-logs")
    config = yaml.safe_load(files["cluster.yaml"])
    assert config["metadata"] == {"name": "recommender", "region": "eu-west-1"}
    managed = {group["name"]: group for group in config["managedNodeGroups"]}
    assert set(managed) == {"argo", "t3-large", "m5-4xlarge"}  # of `train`, which wants no spot instances
    assert [taint["key"] for taint in managed["t3-large"]["taints"]] == ["nvidia.com/gpu"]
    priced = {group["name"]: group for group in config["nodeGroups"]}
    assert set(priced) == {"t3-large-spot", "m5-4xlarge-spot"}
    assert priced["m5-4xlarge-spot"]["instancesDistribution"] == {
        "instanceTypes": ["m5.4xlarge"],
        "maxPrice": 0.3,
        "onDemandBaseCapacity": 0,
        "onDemandPercentageAboveBaseCapacity": 0,
    }

    # What the steps' pods ask for is what these nodes have.
    deployment.deploy("--env", "prd")
    templates = deployment.get("prd", "WorkflowTemplate")["spec"]["templates"]
    pod = next(each for each in templates if each["name"] == "features-pass1")
    tolerated = {each["key"] for each in pod["tolerations"]}
    assert {taint["key"] for taint in priced["m5-4xlarge-spot"]["taints"]} == tolerated == {"spot"}
    rule = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    wanted = {(e["key"], *e["values"]) for term in rule["nodeSelectorTerms"] for e in term["matchExpressions"]}
    assert set(priced["m5-4xlarge-spot"]["labels"].items()) <= wanted

    roles = config["iam"]["podIdentityAssociations"]
    assert [(each["namespace"], each["serviceAccountName"]) for each in roles] == [
        ("ml-dev", "recommender"),
        ("ml", "recommender"),
    ]
    resources = [statement["Resource"] for statement in roles[0]["permissionPolicy"]["Statement"]]
    assert resources == [
        ["arn:aws:s3:::dev-data", "arn:aws:s3:::my-logs"],
        ["arn:aws:s3:::dev-data/*", "arn:aws:s3:::my-logs/*"],
    ]
    assert "*" not in [one for statement in roles[0]["permissionPolicy"]["Statement"] for one in statement["Action"]]

    # The event bus that `deploy` asks for is one that the controller is told of.
    bus = deployment.get("prd", "EventBus")["spec"]["jetstream"]["version"]
    versions = yaml.safe_load(files["argo-events.yaml"])["configs"]["jetstream"]["versions"]
    assert [each["version"] for each in versions] == [bus]
    assert yaml.safe_load(files["argo-workflows.yaml"])["artifactRepository"]["s3"]["bucket"] == "my-logs"


@pytest.mark.parametrize("kind", [False, True])
def test_the_commands_are_those_of_the_official_charts_at_pinned_versions(
    deployment: Deployment,
    shardkit: RunCommand,
    kind: bool,  # noqa: FBT001
) -> None:
    files = cluster_of(deployment, shardkit, *(["--kind"] if kind else []))
    programs = deployment.root / "bin"
    programs.mkdir()
    for name in ("eksctl", "kind", "helm", "kubectl"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {programs}/log\n')
        (programs / name).chmod(stat.S_IRWXU)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", deployment.root / "cluster/install.sh"], env={"PATH": path}, check=True, timeout=60)
    lines = (programs / "log").read_text().splitlines()
    first = "kind create cluster --name recommender --config cluster.yaml"
    assert lines[0] == (first if kind else "eksctl create cluster -f cluster.yaml")
    charts = [line.split() for line in lines if line.startswith("helm")]
    assert [words[3] for words in charts] == ["argo-workflows", "argo-events", "argo-cd"]
    for words in charts:
        assert words[words.index("--version") + 1].count(".") == 2
        for value in [words[i + 1] for i, word in enumerate(words) if word == "--values"]:
            assert value in files
    assert lines[-2:] == ["kubectl create namespace ml-dev", "kubectl create namespace ml"]
    assert "# ml.env has a line NAME=value for each of HOOK_TOKEN, KEY_OF_MODEL, SLACK_HOOK" in files["install.sh"]
    assert "create secret generic recommender --from-env-file ml.env" in files["install.sh"]
    assert "from-literal" not in files["install.sh"]


def test_a_cluster_of_containers_has_a_node_for_each_kind(deployment: Deployment, shardkit: RunCommand) -> None:
    config = yaml.safe_load(cluster_of(deployment, shardkit, "--kind")["cluster.yaml"])
    assert [node["role"] for node in config["nodes"]] == ["control-plane", *["worker"] * 4]
    spot = {"node.kubernetes.io/instance-type": "t3.large", "eks.amazonaws.com/capacityType": "SPOT"}
    assert spot in [node.get("labels") for node in config["nodes"]]


def notebook_of(deployment: Deployment, shardkit: RunCommand, *words: str) -> dict[str, Manifest]:
    shardkit("workflow", "notebook", "workflow.yaml", "--env", "dev", "--output", "notebook", *words)
    documents = [yaml.safe_load(path.read_text()) for path in (deployment.root / "notebook").iterdir()]
    return {each["kind"]: each for each in documents}


@pytest.mark.whole
def test_a_notebook_has_a_disk_and_the_steps_account_and_no_address(
    deployment: Deployment, shardkit: RunCommand
) -> None:
    made = notebook_of(deployment, shardkit, "--image", "registry/shardkit:lab", "--volume", "100Gi")
    assert {kind: problems(each) for kind, each in made.items()} == {"StatefulSet": [], "Service": []}
    pod = made["StatefulSet"]["spec"]["template"]["spec"]
    deployment.deploy("--env", "dev")
    assert pod["serviceAccountName"] == deployment.get("dev", "ServiceAccount")["metadata"]["name"]
    assert pod["containers"][0]["image"] == "registry/shardkit:lab"
    assert made["Service"]["spec"]["clusterIP"] == "None"
    assert "type" not in made["Service"]["spec"]
    claim = made["StatefulSet"]["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "100Gi"
    assert "JUPYTER_TOKEN" in json.dumps(made["StatefulSet"])
    said = shardkit("workflow", "notebook", "workflow.yaml", "--env", "dev", "--output", "n", "--volume", "big", code=2)
    assert "expected a size such as 100Gi" in said.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab is not installed")
def test_jupyters_command_starts_on_the_loopback_interface_and_wants_the_token(
    deployment: Deployment, shardkit: RunCommand, tmp_path: Path
) -> None:
    pod = notebook_of(deployment, shardkit)["StatefulSet"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    home = tmp_path / "home"
    home.mkdir()
    # As it stands, but for the port, which may be taken here, and the disk.
    words = [word.replace("8888", port).replace("/home/work", str(home)) for word in container["command"]]
    variables = {each["name"] for each in container["env"]}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # A grammar that Jupyter reads at its start, which takes a second, is not there; it is for addresses in schemas.
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "rfc3987_syntax.py").write_text("raise ImportError")
    environment = {"PATH": path, "HOME": str(home), "JUPYTER_TOKEN": "the-token"}
    environment["PYTHONPATH"] = str(tmp_path / "modules")
    assert {"HOME", "JUPYTER_TOKEN"} <= variables
    words += ["--allow-root"] if os.geteuid() == 0 else []  # in the pod it is no special user
    words[0] = str(Path(sys.executable).parent / words[0])
    server = subprocess.Popen(words, env=environment, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: answer(port, "the-token") == 200, timeout_s=60, every_s=0.3)
        assert answer(port, "another") == 403
        assert answer(port, "") == 403
        others = {line.split()[1].partition(":")[0] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                  if line.split()[1].endswith(f":{int(port):04X}") and line.split()[3] == "0A"}  # fmt: skip
        assert others == {"0100007F"}
    finally:
        server.terminate()
        server.wait(30)


def answer(port: str, token: str) -> int:
    """The status of the answer to a call with that token; 0 if there is none."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/contents")
    if token:
        request.add_header("Authorization", f"token {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
