"""The WorkflowTemplate: the steps in their order, each pipeline fanned out, and what happens at the end.

main        one task a step, after those that it comes after
NAME        of a pipeline: plan -> pass 1, once for each job -> pass 2
ending      the exit handler: notices
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.workflows.kubernetes.code import code_of, code_of_command
from shardkit.workflows.kubernetes.names import ARGO, Manifest, labels_of, metadata, secret_ref
from shardkit.workflows.kubernetes.pods import command_template, pipeline_templates, task_template
from shardkit.workflows.kubernetes.words import RUN_NAME, argo_facts, fixed_text
from shardkit.workflows.resolve import resolve
from shardkit.workflows.values import secret_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.parts import Step
    from shardkit.workflows.resolve import Resolved

MAIN, ENDING, PARAMETERS = "main", "ending", "parameters"
KEPT_S = {"secondsAfterSuccess": 3 * 86_400, "secondsAfterFailure": 14 * 86_400}


def workflow_manifests(workflow: Workflow, leave_out: Iterable[str] = ()) -> list[Manifest]:
    """The WorkflowTemplate of one environment, and the ConfigMaps with the code of its pipelines.

    Raises:
        PipelineError: something in the workflow cannot be had on a cluster.
    """
    if workflow.engine is not None:
        where = f"in {workflow.environment}" if workflow.environment else "of the workflow"
        raise PipelineError(
            f"{workflow.file}: the steps {where} are jobs of engine: {workflow.engine.kind}, not pods.",
            hint="Take engine: away; or name the environments that are on Kubernetes: --env NAME.",
        )
    steps = _resolved(workflow)
    codes: list[Manifest] = []
    templates: list[Manifest] = []
    for resolved in steps:
        _check(workflow, resolved)
        if resolved.pipeline is None:
            own = code_of_command(workflow, resolved, leave_out)
            codes += [own.manifest] if own is not None and own.manifest not in codes else []
            templates.append(command_template(workflow, resolved, own.volume if own is not None else None))
            continue
        code = code_of(workflow, resolved, leave_out)
        codes.append(code.manifest)
        templates.append(_fan_out(resolved.step))
        templates += pipeline_templates(workflow, resolved, code.volume)
    names = [template["name"] for template in templates]
    if twice := next((name for name in names if names.count(name) > 1 or name in {MAIN, ENDING, PARAMETERS}), None):
        raise PipelineError(f"{workflow.file}: two templates would have the name {twice}.", hint="Rename a step.")
    spec: Manifest = {
        "entrypoint": MAIN,
        "serviceAccountName": workflow.name,
        "arguments": {"parameters": _parameters(workflow)},
        # One run after the other: two would take the dataset from each other.
        "synchronization": {"mutexes": [{"name": workflow.name}]},
        "ttlStrategy": dict(KEPT_S),
        "podGC": {"strategy": "OnPodSuccess", "deleteDelayDuration": "600s"},
        "workflowMetadata": {"labels": labels_of(workflow)},
        "templates": [_main(workflow), *templates],
    }
    if workflow.params:
        spec["templates"].append(_check_of_parameters(workflow, steps))
    if ending := _ending(workflow, steps):
        spec["onExit"] = ENDING
        spec["templates"] += ending
    template = {"apiVersion": ARGO, "kind": "WorkflowTemplate", "metadata": metadata(workflow), "spec": spec}
    return [*codes, template]


def _resolved(workflow: Workflow) -> list[Resolved]:
    try:
        return resolve(workflow, argo_facts(workflow))
    except PipelineError as error:
        if "{{workflow." not in error.message:
            raise
        raise PipelineError(
            error.message, hint="Argo fills in parameters when a run begins: they can be texts only, and no numbers."
        ) from None


def _check(workflow: Workflow, resolved: Resolved) -> None:
    """See that a step can run in pods, which share no folder."""
    step = resolved.step
    if not resolved.image:
        raise PipelineError(
            f"{workflow.file}: the step {step.name} has no image, and on Kubernetes each step runs in one.",
            hint="Give it, or the workflow, an image; for a pipeline one with shardkit (docker/Dockerfile).",
        )
    places = {"output": resolved.output}
    if resolved.pipeline is not None:
        uris = resolved.pipeline.input.uris()
        places["input.uri"] = next((uri for uri in uris if "://" not in uri), uris[0])
        if resolved.pipeline.engine is not None or resolved.pipeline.parallel is not None:
            field = "engine" if resolved.pipeline.engine is not None else "parallel"
            raise PipelineError(
                f"{workflow.file}: the pipeline of {step.name} has {field}, and on Kubernetes its jobs are pods.",
                hint=f"Take it away for this environment: set: {{{field}: null}}.",
            )
    for field, uri in places.items():
        if uri and "://" not in uri:
            raise PipelineError(
                f"{workflow.file}: {field} of the step {step.name} is {uri}, a folder that pods do not share.",
                hint="Give s3://bucket/prefix; for a pipeline in set: {input.uri: ..., output.uri: ...}.",
            )


def _parameters(workflow: Workflow) -> list[Manifest]:
    return [
        {"name": name} | ({"value": parameter.default} if parameter.default is not None else {})
        for name, parameter in workflow.params.items()
    ]


def _main(workflow: Workflow) -> Manifest:
    """The template with a task for each step."""
    tasks: list[Manifest] = [{"name": PARAMETERS, "template": PARAMETERS}] if workflow.params else []
    for step in workflow.steps:
        after = list(step.after) or ([PARAMETERS] if workflow.params else [])
        task: Manifest = {"name": step.name, "template": step.name}
        tasks.append(task | ({"depends": " && ".join(after)} if after else {}))
    template: Manifest = {"name": MAIN, "dag": {"tasks": tasks}}
    if workflow.parallelism is not None:
        template["parallelism"] = workflow.parallelism
    return template


def _fan_out(step: Step) -> Manifest:
    """The template of a pipeline: its plan says how many jobs of pass 1 there are."""
    run = {"name": "run", "value": "{{tasks.plan.outputs.parameters.run}}"}
    tasks = [
        {"name": "plan", "template": f"{step.name}-plan"},
        {
            "name": "pass1",
            "template": f"{step.name}-pass1",
            "depends": "plan",
            "withParam": "{{tasks.plan.outputs.parameters.jobs}}",
            "arguments": {"parameters": [run, {"name": "job", "value": "{{item}}"}]},
        },
        {"name": "pass2", "template": f"{step.name}-pass2", "depends": "pass1", "arguments": {"parameters": [run]}},
    ]
    return {"name": step.name, "parallelism": step.jobs_at_once, "dag": {"tasks": tasks}}


def _own_image(workflow: Workflow, steps: list[Resolved], why: str) -> str:
    """An image that has shardkit: that of a pipeline, or else of the workflow."""
    image = next((each.image for each in steps if each.pipeline is not None), None)
    if image is None and workflow.image is not None:
        image = fixed_text(workflow, workflow.image)
    if image is None:
        raise PipelineError(
            f"{workflow.file}: {why} needs an image with shardkit, and the workflow names none.",
            hint="Write image: REGISTRY/shardkit:VERSION, of docker/Dockerfile, for the workflow.",
        )
    return image


def _check_of_parameters(workflow: Workflow, steps: list[Resolved]) -> Manifest:
    """The template that checks the values of parameters before anything is done with them."""
    rules = {name: each.model_dump(include={"pattern"}) for name, each in workflow.params.items()}
    words = ["workflow", "check-parameters", json.dumps(rules, ensure_ascii=False, sort_keys=True)]
    for name in workflow.params:
        words += ["--param", f"{name}={{{{workflow.parameters.{name}}}}}"]
    return task_template(workflow, PARAMETERS, _own_image(workflow, steps, "params"), words)


def _ending(workflow: Workflow, steps: list[Resolved]) -> list[Manifest]:
    """The templates of the exit handler; none if nobody is to be told."""
    notify = workflow.notify
    whom = {"completed": notify.completed, "failed": (*notify.failed, *notify.stopped)}
    tasks, templates = [], []
    for how, targets in whom.items():
        if not targets:
            continue
        sign = "==" if how == "completed" else "!="
        name = f"notice-{how}"
        tasks.append({"name": name, "template": name, "when": f"{{{{workflow.status}}}} {sign} Succeeded"})
        templates.append(_notice(workflow, steps, name, list(dict.fromkeys(targets))))
    return [{"name": ENDING, "dag": {"tasks": tasks}}, *templates] if tasks else []


def _notice(workflow: Workflow, steps: list[Resolved], name: str, targets: list[str]) -> Manifest:
    words = ["workflow", "notice", workflow.name, "--run-id", RUN_NAME, "--status", "{{workflow.status}}"]
    words += ["--env", workflow.environment] if workflow.environment else []
    words += [word for target in targets for word in ("--to", target)]
    env: list[dict[str, Any]] = []
    for target in targets:
        variable = secret_name(target.partition(":")[2])
        if variable:
            env.append({"name": variable, "valueFrom": {"secretKeyRef": secret_ref(workflow, variable)}})
    return task_template(workflow, name, _own_image(workflow, steps, "notify"), words, env)
