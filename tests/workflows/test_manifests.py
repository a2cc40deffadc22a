"""The manifests of `workflow deploy`: strictly valid, fitting together, different as the file says, and checked for drift."""

from __future__ import annotations

import copy
import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from strict_schemas import NEEDED, problems

from shardkit.runs import prepare
from shardkit.workflows import parts
from shardkit.workflows.kubernetes.references import problems_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunCommand

WORKFLOW = """\
name: recommender
mode: calendar
calendar: {schedule: "0 */3 * * 7", zone: Europe/Paris}
webhook: {port: 12000, token: "env:HOOK_TOKEN", path: /begin, max_body: 5000}
image: registry/shardkit:0.2
output: s3://{{variables.BUCKET}}/recommender
params:
  country: {default: fr, pattern: "[a-z]{2}"}
steps:
  - name: features
    pipeline: ads.yaml
    set: {input.uri: "s3://{{variables.BUCKET}}/ads", output.uri: "s3://{{variables.BUCKET}}/features/{{params.country}}"}
    resources: {cpu: 2, memory: 4Gi}
    env: {LIMIT: "10", MODEL_KEY: "env:KEY_OF_MODEL"}
    jobs_at_once: 20
  - {name: train, after: features, image: "registry/trainer:1.4", timeout: 2h, machines: {spot: false, volume: 20Gi},
     command: [python, train.py, "{{steps.features.output}}", "{{run.date}}"], resources: {cpu: 4, memory: 16Gi, gpu: 1}}
  - {name: predict, after: train, image: "registry/predictor:1.4", retries: 2, command: [python, "{{steps.train.output}}"]}
machines: {instance_type: m5.4xlarge, spot: true, spot_price: 0.30, volume: 100Gi}
notify: {failed: "slack:env:SLACK_HOOK"}
environments:
  dev: {namespace: ml-dev, variables: {BUCKET: dev-data}, machines: {instance_type: t3.large}}
  prd:
    namespace: ml
    mode: webhook
    variables: {BUCKET: prd-data}
    notify: {completed: ["slack:env:SLACK_HOOK", "arn:aws:sns:eu-west-1:111122223333:done"]}
"""
PIPELINE = """
name: ads
input: {uri: data/, pattern: "*.jsonl"}
function: ads:rows
source_dir: src
shards: {by: directory, depth: 1}
output: {uri: out/}
"""
Manifest = dict[str, Any]


class Deployment:
    """A workflow's folder, and what `deploy` makes of it."""

    def __init__(self, root: Path, shardkit: RunCommand) -> None:
        self.root, self._shardkit = root, shardkit
        (root / "src").mkdir()
        (root / "data").mkdir()
        (root / "data/large.jsonl").write_text("x" * 2_000_000)  # of the input on this machine, which is no code
        (root / "src/ads.py").write_text(
            "TEXT = '{{workflow.name}}'\ndef rows(record):\n    return {'key': record.key}\n"
        )
        (root / "src/table.bin").write_bytes(bytes(range(256)))
        (root / "ads.yaml").write_text(PIPELINE)
        self.write(WORKFLOW)

    def write(self, text: str) -> None:
        (self.root / "workflow.yaml").write_text(text)

    def deploy(self, *words: str, code: int = 0, output: str = "deploy") -> str:
        done = self._shardkit("workflow", "deploy", "workflow.yaml", "--output", output, *words, code=code)
        return done.stdout + done.stderr

    def of(self, environment: str) -> list[Manifest]:
        folder = self.root / "deploy" / environment
        return [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]

    def get(self, environment: str, kind: str) -> Manifest:
        return next(each for each in self.of(environment) if each["kind"] == kind)


@pytest.fixture
def deployment(tmp_path: Path, shardkit: RunCommand) -> Deployment:
    return Deployment(tmp_path, shardkit)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """The manifests of both environments, from a process of this test's own."""
    import contextlib
    import io

    from shardkit.cli.app import cli

    root = tmp_path_factory.mktemp("flow")
    made = Deployment(root, lambda *words, code=0: None)  # type: ignore[arg-type,return-value]
    words = ["workflow", "deploy", str(root / "workflow.yaml"), "--output", str(root / "deploy")]
    with contextlib.redirect_stderr(io.StringIO()):
        cli.main([*words, "--repository", "https://example.com/flows.git"], standalone_mode=False)
    return {name: made.of(name) for name in ("dev", "prd", "argocd")}


def templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    template = next(each for each in manifests if each["kind"] == "WorkflowTemplate")
    return {each["name"]: each for each in template["spec"]["templates"]}


# ---- valid


@NEEDED
@pytest.mark.parametrize("environment", ["dev", "prd", "argocd"])
def test_every_manifest_is_strictly_valid(manifests: dict[str, list[Manifest]], environment: str) -> None:
    kinds = [each["kind"] for each in manifests[environment]]
    assert {
        kind: problems(each) for kind, each in zip(kinds, manifests[environment], strict=True) if problems(each)
    } == {}
    wanted = {
        "dev": {"ConfigMap", "CronWorkflow", "Role", "RoleBinding", "ServiceAccount", "WorkflowTemplate"},
        "prd": {
            "ConfigMap",
            "EventBus",
            "EventSource",
            "Role",
            "RoleBinding",
            "Sensor",
            "ServiceAccount",
            "WorkflowTemplate",
        },
        "argocd": {"Application"},
    }
    assert set(kinds) == wanted[environment]


def misspell(*path: str | int, name: str) -> Callable[[Manifest], None]:
    """A field is called otherwise."""

    def change(manifest: Manifest) -> None:
        place: Any = manifest
        for step in path[:-1]:
            place = place[step]
        place[name] = place.pop(path[-1])

    return change


TYPOS: list[tuple[str, str, Callable[[Manifest], None]]] = [
    ("dev", "WorkflowTemplate", misspell("spec", "entrypoint", name="entryPoint")),
    ("dev", "WorkflowTemplate", misspell("spec", "ttlStrategy", "secondsAfterSuccess", name="secondsAfterSucces")),
    ("dev", "WorkflowTemplate", misspell("spec", "templates", 2, "retryStrategy", name="retrySrategy")),
    ("dev", "WorkflowTemplate", misspell("spec", "templates", 2, "container", "args", name="arguments")),
    ("dev", "WorkflowTemplate", misspell("spec", "templates", 2, "container", "env", 0, "value", name="val")),
    ("dev", "WorkflowTemplate", misspell("spec", "templates", 1, "dag", "tasks", 1, "withParam", name="withParams")),
    ("dev", "CronWorkflow", misspell("spec", "schedules", name="schedule")),
    ("dev", "CronWorkflow", misspell("spec", "timezone", name="timeZone")),
    ("dev", "Role", misspell("rules", 0, "apiGroups", name="apiGroup")),
    ("dev", "RoleBinding", misspell("roleRef", name="roleref")),
    ("dev", "ConfigMap", misspell("data", name="datas")),
    ("prd", "EventSource", misspell("spec", "webhook", "run", "authSecret", name="auth")),
    ("prd", "EventBus", misspell("spec", "jetstream", "version", name="versions")),
    ("prd", "Sensor", misspell("spec", "dependencies", 0, "eventName", name="event")),
    ("prd", "Sensor", misspell("spec", "triggers", 0, "template", "k8s", name="kubernetes")),
    ("argocd", "Application", misspell("spec", "syncPolicy", "automated", "selfHeal", name="selfheal")),
]


@NEEDED
@pytest.mark.parametrize(("environment", "kind", "change"), TYPOS)
def test_a_misspelt_field_is_caught(
    manifests: dict[str, list[Manifest]], environment: str, kind: str, change: Callable[[Manifest], None]
) -> None:
    manifest = copy.deepcopy(next(each for each in manifests[environment] if each["kind"] == kind))
    assert problems(manifest) == []
    change(manifest)
    assert problems(manifest)


# ---- fitting together: what no schema sees


def renamed(kind: str, *path: str | int, to: Any) -> Callable[[list[Manifest]], None]:
    """A value is another one."""

    def change(manifests: list[Manifest]) -> None:
        place: Any = next(each for each in manifests if each["kind"] == kind)
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


TASKS = ("spec", "templates", 1, "dag", "tasks")
MISFITS: list[tuple[str, Callable[[list[Manifest]], None], str]] = [
    ("dev", renamed("WorkflowTemplate", "spec", "entrypoint", to="mian"), "entrypoint: there is no template mian"),
    ("dev", renamed("WorkflowTemplate", "spec", "onExit", to="end"), "onExit: there is no template end"),
    ("dev", renamed("WorkflowTemplate", "spec", "serviceAccountName", to="x"), "there is no ServiceAccount x"),
    ("dev", renamed("WorkflowTemplate", *TASKS, 1, "depends", to="plans"), "there is no task plans"),
    ("dev", renamed("WorkflowTemplate", *TASKS, 1, "template", to="pass1"), "there is no template pass1"),
    ("dev", renamed("WorkflowTemplate", *TASKS, 1, "withParam", to="{{tasks.plan.outputs.parameters.job}}"), "plan gives no job"),
    ("dev", renamed("WorkflowTemplate", *TASKS, 2, "depends", to=""), "it does not come after plan"),
    ("dev", renamed("WorkflowTemplate", *TASKS, 2, "arguments", to={}), "it does not give run"),
    ("dev", renamed("WorkflowTemplate", *TASKS, 2, "arguments", "parameters", 0, "value", to="{{item}}"), "there is no loop"),
    ("dev", renamed("WorkflowTemplate", "spec", "templates", 2, "container", "args", 3, to="{{workflow.nam}}"), "names nothing"),
    ("dev", renamed("WorkflowTemplate", "spec", "templates", 3, "container", "args", 2, to="{{inputs.parameters.r}}"), "names nothing"),
    ("dev", renamed("WorkflowTemplate", "spec", "arguments", "parameters", to=[]), "{{workflow.parameters.country}} names nothing"),
    ("dev", renamed("WorkflowTemplate", "spec", "templates", 2, "volumes", to=[]), "there is no volume scratch"),
    ("dev", renamed("ConfigMap", "metadata", "name", to="code"), "there is no ConfigMap"),
    ("dev", renamed("ConfigMap", "data", to={}), "there is no key pipeline.yaml"),
    ("dev", renamed("RoleBinding", "roleRef", "name", to="x"), "there is no Role x"),
    ("dev", renamed("CronWorkflow", "spec", "workflowSpec", "workflowTemplateRef", "name", to="x"), "there is no WorkflowTemplate x"),
    ("prd", renamed("Sensor", "spec", "dependencies", 0, "eventName", to="x"), "there is no event x of recommender"),
    ("prd", renamed("Sensor", "spec", "eventBusName", to="x"), "there is no EventBus x"),
    ("prd", renamed("Sensor", "spec", "template", "serviceAccountName", to="x"), "there is no ServiceAccount x"),
    ("prd", renamed("Sensor", "spec", "triggers", 0, "template", "k8s", "parameters", 0, "dest", to="spec.x"), "no place of a parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "change", "problem"), MISFITS)
def test_what_does_not_fit_is_found(
    manifests: dict[str, list[Manifest]],
    environment: str,
    change: Callable[[list[Manifest]], None],
    problem: str,
) -> None:
    changed = copy.deepcopy(manifests[environment])
    assert problems_in(changed) == []
    change(changed)
    assert problem in "\n".join(problems_in(changed))


# ---- what they say


def test_environments_differ_as_the_file_says(manifests: dict[str, list[Manifest]]) -> None:
    dev, prd = templates(manifests["dev"]), templates(manifests["prd"])
    assert dev["train"]["nodeSelector"] == {"node.kubernetes.io/instance-type": "t3.large"}
    assert prd["train"]["nodeSelector"] == {"node.kubernetes.io/instance-type": "m5.4xlarge"}
    assert dev["train"]["container"]["command"][2] == "s3://dev-data/features/{{workflow.parameters.country}}"
    assert prd["predict"]["container"]["command"] == ["python", "s3://prd-data/recommender/train"]
    assert {each["metadata"]["namespace"] for each in manifests["dev"]} == {"ml-dev"}
    assert {each["metadata"]["namespace"] for each in manifests["prd"]} == {"ml"}
    assert "notice-completed" in prd
    assert "notice-completed" not in dev


@pytest.mark.whole
def test_the_calendar_is_in_argos_words(deployment: Deployment) -> None:
    deployment.deploy("--env", "dev")
    spec = deployment.get("dev", "CronWorkflow")["spec"]
    assert (spec["schedules"], spec["timezone"], spec["concurrencyPolicy"]) == (
        ["0 */3 * * 0"],
        "Europe/Paris",
        "Forbid",
    )
    for interval, line in (("30m", "*/30 * * * *"), ("6h", "0 */6 * * *"), ("1d", "0 0 * * *")):
        deployment.write(WORKFLOW.replace('schedule: "0 */3 * * 7"', f"interval: {interval}"))
        deployment.deploy("--env", "dev")
        assert deployment.get("dev", "CronWorkflow")["spec"]["schedules"] == [line]
    deployment.write(WORKFLOW.replace('schedule: "0 */3 * * 7"', "interval: 50m"))
    assert "50m is no cron line" in deployment.deploy(code=2)
    deployment.write(WORKFLOW.replace("0 */3 * * 7", "0 3 * * 5-7"))
    assert "Argo does not know '0 3 * * 5-7'" in deployment.deploy(code=2)


def test_machines_are_chosen_by_selector_affinity_and_toleration(manifests: dict[str, list[Manifest]]) -> None:
    made = templates(manifests["dev"])
    spot, other = made["features-pass1"], made["train"]

    def terms(template: Manifest) -> list[Any]:
        rule = template["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return [[(e["key"], e["operator"]) for e in term["matchExpressions"]] for term in rule["nodeSelectorTerms"]]

    eks, karpenter = "eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type"
    assert terms(spot) == [[(eks, "In")], [(karpenter, "In")]]  # one of both
    assert terms(other) == [[(eks, "NotIn"), (karpenter, "NotIn")]]  # and neither
    assert [each["key"] for each in spot["tolerations"]] == ["spot"]
    assert [each["key"] for each in other["tolerations"]] == ["nvidia.com/gpu"]
    claim = other["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"]["storage"] == "20Gi"
    assert other["container"]["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    assert other["activeDeadlineSeconds"] == 7200
    assert "affinity" not in made["notice-failed"]


def test_a_pipeline_becomes_plan_jobs_and_merge(manifests: dict[str, list[Manifest]]) -> None:
    made = templates(manifests["dev"])
    assert made["features"]["parallelism"] == 20
    assert made["features-plan"]["container"]["args"] == [
        *("plan", "/code/pipeline.yaml", "--run-id", "{{workflow.name}}", "--max-jobs", "200"),
        *("--outputs", "/scratch/outputs", "--source-dir", "/code/source", "--workers", "2"),
        *("--set", "input.uri=s3://dev-data/ads"),
        *("--set", 'output.uri="s3://dev-data/features/{{workflow.parameters.country}}"'),
    ]
    assert made["features-pass1"]["container"]["args"] == [
        *("pass1", "--run", "{{inputs.parameters.run}}", "--job", "{{inputs.parameters.job}}"),
    ]
    assert (parts.USUAL_JOBS, parts.MOST_JOBS) == (prepare.USUAL_JOBS, prepare.MOST_JOBS)


def test_code_goes_into_a_config_map_whose_name_changes_with_it(deployment: Deployment) -> None:
    deployment.deploy("--env", "dev")
    code = deployment.get("dev", "ConfigMap")
    assert set(code["data"]) == {"pipeline.yaml", "source__ads.py"}
    assert set(code["binaryData"]) == {"source__table.bin"}
    assert code["data"]["source__ads.py"] == (deployment.root / "src/ads.py").read_text()
    assert code["immutable"]
    (deployment.root / "src/ads.py").write_text("def rows(record):\n    return {'key': 1}\n")
    deployment.deploy("--env", "dev")
    assert deployment.get("dev", "ConfigMap")["metadata"]["name"] != code["metadata"]["name"]
    (deployment.root / "src/large.txt").write_text("x" * 800_000)
    assert "the largest file is large.txt of 800.0 kB" in " ".join(deployment.deploy(code=2).split())


# ---- security


def test_secrets_are_named_and_never_shown(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOOK_TOKEN", "SLACK_HOOK", "KEY_OF_MODEL"):
        monkeypatch.setenv(name, f"the-value-of-{name}")
    deployment.deploy()
    texts = [path.read_text() for path in (deployment.root / "deploy").rglob("*.yaml")]
    assert not [text for text in texts if "the-value-of" in text]
    environment = templates(deployment.of("dev"))["features-pass1"]["container"]["env"]
    refs = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in environment if "valueFrom" in each}
    assert refs == {"MODEL_KEY": {"name": "recommender", "key": "KEY_OF_MODEL"}}
    call = deployment.get("prd", "EventSource")["spec"]["webhook"]["run"]
    assert call["authSecret"] == {"name": "recommender", "key": "HOOK_TOKEN"}
    assert (call["method"], call["endpoint"], call["maxPayloadSize"]) == ("POST", "/begin", 5000)
    assert not [each for each in deployment.of("prd") if each["kind"] == "Secret"]
    (deployment.root / "src/keys.py").write_text("KEY = 'AKIAIOSFODNN7EXAMPLE'\n")
    assert "keys.py holds what looks like a secret" in deployment.deploy(code=2)
    url = "https://me:hunter22@example.com/flows.git"
    (deployment.root / "src/keys.py").unlink()
    assert "the URL has a password" in deployment.deploy("--repository", url, code=2)


def test_accounts_may_do_the_least_that_will_do(manifests: dict[str, list[Manifest]]) -> None:
    rules = {
        (each["metadata"]["name"], tuple(rule["resources"]), tuple(rule["verbs"]))
        for each in (*manifests["dev"], *manifests["prd"])
        if each["kind"] == "Role"
        for rule in each["rules"]
    }
    assert rules == {
        ("recommender", ("workflowtaskresults",), ("create", "patch")),
        ("recommender-starter", ("workflows",), ("create",)),
    }
    kinds = {each["kind"] for each in (*manifests["dev"], *manifests["prd"])}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "Ingress", "Secret"}
    for name, template in templates(manifests["prd"]).items():
        if "container" in template:
            assert template["container"]["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert template.get("securityContext", {}).get("runAsNonRoot", name in {"train", "predict"}), name


# ---- the folder


@pytest.mark.whole
def test_drift_is_found_and_what_is_no_longer_needed_goes(deployment: Deployment) -> None:
    deployment.deploy("--repository", "https://example.com/flows.git")
    assert "is as the workflow says" in deployment.deploy("--check")  # the repository is known by now
    file = deployment.root / "deploy/dev/cron-workflow.yaml"
    file.write_text(file.read_text().replace("Europe/Paris", "UTC"))
    (deployment.root / "deploy/prd/role.yaml").unlink()
    (deployment.root / "deploy/prd/extra.yaml").write_text("kind: Secret\n")
    said = deployment.deploy("--check", code=1)
    assert "-  timezone: UTC" in said
    assert "+  timezone: Europe/Paris" in said
    assert "role.yaml is missing" in said
    assert "extra.yaml is not of this workflow" in said
    deployment.write(WORKFLOW.replace("mode: calendar", "mode: workflow"))
    assert "Removed deploy/dev/cron-workflow.yaml" in deployment.deploy()
    assert (deployment.root / "deploy/prd/extra.yaml").exists()
    lines = WORKFLOW.replace("mode: calendar", "mode: workflow").splitlines(keepends=True)
    deployment.write("".join(line for line in lines if not line.startswith("  dev:")))
    other = deployment.root / "deploy/dev/other.yaml"
    other.write_text((deployment.root / "deploy/dev/role.yaml").read_text().replace("recommender", "another"))
    assert "dev/workflow-template.yaml is not of this workflow" in deployment.deploy("--check", code=1)
    assert "is not of this workflow" not in deployment.deploy("--env", "prd", "--check", code=1).replace(
        "extra.yaml is", ""
    )
    deployment.deploy()
    left = sorted(path.parent.name for path in (deployment.root / "deploy").rglob("*.yaml"))
    assert other.exists()  # which is another workflow's
    assert set(left) == {"argocd", "dev", "prd"}
    assert left.count("dev") == 1
    assert left.count("argocd") == 1
    assert "extra.yaml is not of this workflow" in deployment.deploy("--check", code=1)


def test_a_parameter_that_is_to_be_a_number_is_refused(deployment: Deployment) -> None:
    text = WORKFLOW.replace("params:\n", "params:\n  seconds: 60\n")
    deployment.write(text.replace("set: {input", 'set: {timeout: "{{params.seconds}}", input'))
    assert "they can be texts only, and no numbers" in " ".join(deployment.deploy(code=2).split())


def test_environments_that_would_replace_each_other_are_said(deployment: Deployment) -> None:
    assert "replace each other" not in deployment.deploy()
    deployment.write(WORKFLOW.replace("namespace: ml-dev", "namespace: ml"))
    assert "dev and prd have the same namespace, ml: on one cluster they replace each other." in deployment.deploy()


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("namespace: ml-dev, ", "", "environments.dev has no namespace"),
        ("image: registry/shardkit:0.2\n", "", "the step features has no image"),
        ('set: {input.uri: "s3://{{variables.BUCKET}}/ads", ', "set: {", "input.uri of the step features is"),
        (
            "set: {input",
            "set: {engine: local, input",
            "has engine, and on Kubernetes its jobs are pods: set: {engine: null}",
        ),
        ("output: s3://{{variables.BUCKET}}/recommender\n", "output: made/\n", "output of the step train is"),
        ("name: predict,", "name: features-plan,", "two templates would have the name features-plan"),
        ("name: predict,", "name: main,", "two templates would have the name main"),
        ("jobs_at_once: 20", "max_jobs: 1001", "max_jobs"),
        ("namespace: ml-dev, ", "namespace: ml-dev, engine: local, ", "the steps in dev are jobs of engine: local"),
    ],
)
def test_what_cannot_be_had_on_a_cluster_is_refused_with_the_cure(
    deployment: Deployment, before: str, after: str, complaint: str
) -> None:
    assert before in WORKFLOW
    deployment.write(WORKFLOW.replace(before, after))
    said = " ".join(deployment.deploy(code=2).split())
    assert complaint in said.replace("pods. Take it away for this environment:", "pods:")
    assert not (deployment.root / "deploy").exists()


# ---- the cluster


KUBECTL = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
*diff*) cat {answer}; exit $(cat {code});;
*apply*) echo "workflowtemplate.argoproj.io/recommender configured";;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], Path]:
    """A kubectl that notes what it is asked, and whose `diff` ends as it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log, answer, code = (folder / name for name in ("log", "answer", "code"))
    (folder / "kubectl").write_text(KUBECTL.format(log=log, answer=answer, code=code))
    (folder / "kubectl").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def will_say(exit_code: int, text: str = "") -> Path:
        answer.write_text(text)
        code.write_text(str(exit_code))
        log.write_text("")
        return log

    return will_say


def test_apply_shows_the_difference_first(deployment: Deployment, kubectl: Callable[..., Path]) -> None:
    log = kubectl(1, "-  schedule: old\n+  schedule: new\n")
    said = deployment.deploy("--env", "dev", "--apply", "--yes", "--context", "staging")
    assert said.index("+  schedule: new") < said.index("configured")
    folder = "--context staging {} --filename deploy/dev"
    assert log.read_text().splitlines() == [folder.format("diff"), folder.format("apply")]

    assert "Apply this to the current cluster?" in deployment.deploy(
        "--env", "dev", "--apply", code=1
    )  # nobody says yes
    log = kubectl(0)
    assert "has this already" in deployment.deploy("--env", "dev", "--apply")
    assert log.read_text().splitlines() == ["diff --filename deploy/dev"]
    kubectl(2)
    assert "kubectl diff failed" in deployment.deploy("--env", "dev", "--apply", "--yes", code=1)


def test_the_application_follows_the_folder_in_the_repository(manifests: dict[str, list[Manifest]]) -> None:
    first = manifests["argocd"][0]
    assert first["spec"]["source"]["repoURL"] == "https://example.com/flows.git"
    assert first["spec"]["source"]["path"].endswith("deploy/dev")
    assert first["spec"]["destination"]["namespace"] == "ml-dev"
    assert first["spec"]["syncPolicy"]["automated"] == {"prune": True, "selfHeal": True}
    assert json.dumps(first).count("ml-dev") == 1
