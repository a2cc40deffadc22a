"""The templates of pods: of a pipeline's three parts, of a step with a command, and of shardkit's own small tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.workflows.kubernetes.code import SOURCE
from shardkit.workflows.kubernetes.machines import CODE_MOUNT, SCRATCH_MOUNT, placement, resources, scratch_volume
from shardkit.workflows.kubernetes.names import CODE_FOLDER, OUTPUTS, SCRATCH, USER, Manifest, labels_of, secret_ref
from shardkit.workflows.kubernetes.retries import retry_strategy
from shardkit.workflows.kubernetes.words import RUN_NAME, setting_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.parts import Step
    from shardkit.workflows.resolve import Resolved

TASK_DEADLINE_S = 600  # of a task that checks or notifies
CONTAINER = {"allowPrivilegeEscalation": False}
OWN_CONTAINER = {**CONTAINER, "capabilities": {"drop": ["ALL"]}}
OWN_POD = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def command_template(workflow: Workflow, resolved: Resolved, code: Mapping[str, Any] | None) -> Manifest:
    """The template of a step with a command, in an image of the user's; with ``code``, it runs in its folder."""
    step = resolved.step
    container: Manifest = {"image": resolved.image}
    if resolved.words:  # without words the image says what it runs
        container["command"] = list(resolved.words)
    container |= {
        "env": [*variables(workflow, resolved), {"name": "TMPDIR", "value": SCRATCH}],
        "volumeMounts": [dict(SCRATCH_MOUNT)],
        "securityContext": dict(CONTAINER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if needs := resources(step.resources):
        container["resources"] = needs
    volumes = [scratch_volume(step)]
    if code is not None:
        container["workingDir"] = f"{CODE_FOLDER}/{SOURCE}"
        container["volumeMounts"] = [*container["volumeMounts"], dict(CODE_MOUNT)]
        volumes.append(dict(code))
    return _template(workflow, step, step.name) | {**placement(step), "volumes": volumes, "container": container}


def pipeline_templates(workflow: Workflow, resolved: Resolved, code: Mapping[str, Any]) -> list[Manifest]:
    """The templates of a pipeline's pods: the plan, a job of pass 1, pass 2. ``code`` is the volume with the code."""
    plan = [
        *("plan", f"{CODE_FOLDER}/pipeline.yaml", "--run-id", RUN_NAME, "--max-jobs", str(resolved.step.max_jobs)),
        *("--outputs", OUTPUTS, "--source-dir", f"{CODE_FOLDER}/{SOURCE}"),
    ]
    if resolved.step.resources.cpu:
        plan += ["--workers", str(max(int(resolved.step.resources.cpu), 1))]
    for field, value in resolved.settings.items():
        plan += setting_words(field, value)
    run, job = "{{inputs.parameters.run}}", "{{inputs.parameters.job}}"
    outputs = [{"name": each, "valueFrom": {"path": f"{OUTPUTS}/{each}"}} for each in ("run", "jobs")]
    own = _Part(workflow, resolved, code)
    return [
        own.template("plan", plan, has_disk=False) | {"outputs": {"parameters": outputs}},
        own.template("pass1", ["pass1", "--run", run, "--job", job], has_gpu=True)
        | {"inputs": {"parameters": [{"name": "run"}, {"name": "job"}]}},
        own.template("pass2", ["pass2", "--run", run]) | {"inputs": {"parameters": [{"name": "run"}]}},
    ]


@dataclass(frozen=True)
class _Part:
    """Makes the templates of one pipeline's pods; only those that call the function get its GPUs."""

    workflow: Workflow
    resolved: Resolved
    code: Mapping[str, Any]

    def template(self, part: str, words: list[str], *, has_gpu: bool = False, has_disk: bool = True) -> Manifest:
        step = self.resolved.step
        container = own_container(self.resolved.image, words, variables(self.workflow, self.resolved))
        container["volumeMounts"] = [*container["volumeMounts"], dict(CODE_MOUNT)]
        if needs := resources(step.resources, gpu=has_gpu):
            container["resources"] = needs
        return _template(self.workflow, step, f"{step.name}-{part}") | {
            **placement(step, gpu=has_gpu),
            "securityContext": dict(OWN_POD),
            "volumes": [scratch_volume(step if has_disk else None), dict(self.code)],
            "container": container,
        }


def task_template(
    workflow: Workflow, name: str, image: str, words: list[str], env: Iterable[dict[str, Any]] = ()
) -> Manifest:
    """The template of a small task of shardkit's own, which needs neither the user's code nor a machine of its own."""
    return {
        "name": name,
        "metadata": {"labels": labels_of(workflow, name)},
        "activeDeadlineSeconds": TASK_DEADLINE_S,
        "retryStrategy": retry_strategy(None),
        "securityContext": dict(OWN_POD),
        "volumes": [scratch_volume(None)],
        "container": own_container(image, words, env),
    }


def own_container(image: str, words: list[str], env: Iterable[dict[str, Any]]) -> Manifest:
    """A container that runs shardkit, as no special user."""
    return {
        "image": image,
        "command": ["shardkit"],
        "args": words,
        # HOME, for libraries that keep something there, must be where this user may write.
        "env": [*env, {"name": "TMPDIR", "value": SCRATCH}, {"name": "HOME", "value": SCRATCH}],
        "volumeMounts": [dict(SCRATCH_MOUNT)],
        "securityContext": dict(OWN_CONTAINER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def variables(workflow: Workflow, resolved: Resolved) -> list[dict[str, Any]]:
    """The variables of a step: plain ones with their values, secrets by the names of their places."""
    plain = [{"name": name, "value": value} for name, value in resolved.env.items()]
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": secret_ref(workflow, place)}}
        for name, place in resolved.step.secrets.items()
    ]
    return plain + secrets


def _template(workflow: Workflow, step: Step, name: str) -> Manifest:
    template: Manifest = {"name": name, "metadata": {"labels": labels_of(workflow, step.name)}}
    if step.timeout is not None:
        template["activeDeadlineSeconds"] = max(int(step.timeout), 1)
    return template | {"retryStrategy": retry_strategy(step)}
