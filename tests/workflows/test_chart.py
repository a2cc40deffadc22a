"""`workflow deploy --helm`: the chart renders the manifests that `deploy` writes, and its values change them."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from test_manifests import Deployment

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunCommand

HELM = shutil.which(os.environ.get("HELM", "helm"))
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not installed")


def helm(*words: str, cwd: Path) -> str:
    done = subprocess.run([str(HELM), *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(text: str) -> dict[tuple[str, str], Any]:
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text) if each}


@pytest.fixture
def deployment(tmp_path: Path, shardkit: RunCommand) -> Deployment:
    made = Deployment(tmp_path, shardkit)
    made.deploy()
    made.deploy("--helm", output="chart")
    return made


def test_the_chart_is_in_order_and_renders_what_deploy_writes(deployment: Deployment) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", "chart", cwd=deployment.root)
    for environment in ("dev", "prd"):
        text = helm("template", "any", "chart", "--set", f"environment={environment}", cwd=deployment.root)
        plain = {(each["kind"], each["metadata"]["name"]): each for each in deployment.of(environment)}
        assert rendered(text) == plain
    assert "is as the workflow says" in deployment.deploy("--helm", "--check", output="chart")


COMMANDS = """
name: plain
image: "{{variables.REGISTRY}}/shardkit:0.2"
params: {day: {pattern: "[0-9-]{10}"}}
notify: {completed: "webhook:env:HOOK"}
steps:
  - {name: first, image: "registry/first:1", command: [python, first.py, "{{params.day}}", "{{variables.PLACE}}"]}
  - {name: second, after: first, command: [shardkit, --version], output: "{{variables.PLACE}}/second"}
namespace: ml
variables: {REGISTRY: registry, PLACE: "s3://my-bucket/made"}
"""


def test_a_workflow_of_commands_alone_has_a_chart_too(deployment: Deployment) -> None:
    deployment.write(COMMANDS)
    shutil.rmtree(deployment.root / "chart")
    deployment.deploy()
    deployment.deploy("--helm", output="chart")
    plain = {(each["kind"], each["metadata"]["name"]): each for each in deployment.of("default")}
    assert rendered(helm("template", "any", "chart", cwd=deployment.root)) == plain
    templates = plain["WorkflowTemplate", "plain"]["spec"]["templates"]
    images = {each["name"]: each["container"]["image"] for each in templates if "container" in each}
    assert images["parameters"] == images["notice-completed"] == images["second"] == "registry/shardkit:0.2"


def test_values_change_what_is_rendered(deployment: Deployment) -> None:
    odd = 'a "b": {c} #d'
    (deployment.root / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "environments": {
                    "dev": {
                        "namespace": "other",
                        "images": {"train": "registry/trainer:2.0"},
                        "variables": {"BUCKET": odd},
                        "schedule": "5 5 * * *",
                    }
                }
            }
        )
    )
    made = rendered(helm("template", "any", "chart", "--values", "mine.yaml", cwd=deployment.root))
    assert {each["metadata"]["namespace"] for each in made.values()} == {"other"}
    assert made["CronWorkflow", "recommender"]["spec"]["schedules"] == ["5 5 * * *"]
    steps = {each["name"]: each for each in made["WorkflowTemplate", "recommender"]["spec"]["templates"]}
    assert steps["train"]["container"]["image"] == "registry/trainer:2.0"
    assert {"name": "BUCKET", "value": odd} in steps["train"]["container"]["env"]
    assert steps["features-plan"]["container"]["image"] == "registry/shardkit:0.2"
