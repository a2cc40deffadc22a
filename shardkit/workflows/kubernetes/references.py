"""Whether manifests fit together: what no schema sees, because it is in several places.

Templates, parameters, tasks, volumes, ConfigMaps, accounts, events and tags ``{{...}}``: what is named has to be there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shardkit.workflows.kubernetes.names import Manifest

TAG = re.compile(r"\{\{(=?)\s*(.*?)\s*\}\}")
GLOBAL = re.compile(r"workflow\.(name|namespace|uid|status|creationTimestamp(\.[A-Za-z]+)?|scheduledTime)")
LOOPS = ("withParam", "withItems", "withSequence")
_RESULT = re.compile(r"\b(Succeeded|Failed|Errored|Skipped|Omitted|Daemoned|AnySucceeded|AllFailed)\b")


def texts_in(value: Any) -> Iterator[str]:
    """The texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_in(each)


def tags_in(value: Any) -> list[str]:
    """What stands between the braces, in all texts of plain data."""
    return [match[2] for text in texts_in(value) for match in TAG.finditer(text)]


def problems_in(manifests: Sequence[Manifest]) -> list[str]:
    """What does not fit, each as a sentence without a full stop."""
    problems: list[str] = []
    for manifest in manifests:
        if manifest["kind"] == "WorkflowTemplate":
            problems += _of_template(manifest, manifests)
        if manifest["kind"] == "CronWorkflow":
            problems += _of_template_ref(manifest["spec"]["workflowSpec"], manifests, "CronWorkflow")
        if manifest["kind"] == "Sensor":
            problems += _of_sensor(manifest, manifests)
        if manifest["kind"] == "EventSource":
            problems += _missing("EventBus", [manifest["spec"]["eventBusName"]], manifests, "EventSource")
        if manifest["kind"] == "RoleBinding":
            subjects = [each["name"] for each in manifest["subjects"]]
            problems += _missing("ServiceAccount", subjects, manifests, "RoleBinding")
            problems += _missing("Role", [manifest["roleRef"]["name"]], manifests, "RoleBinding")
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    problems += [f"there are two {kind} {name}" for kind, name in dict.fromkeys(names) if names.count((kind, name)) > 1]
    return problems


def _names(kind: str, manifests: Iterable[Manifest]) -> set[str]:
    return {each["metadata"]["name"] for each in manifests if each["kind"] == kind}


def _missing(kind: str, names: Iterable[str], manifests: Iterable[Manifest], where: str) -> list[str]:
    known = _names(kind, manifests)
    return [f"{where}: there is no {kind} {name}" for name in names if name not in known]


def _of_template(manifest: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    templates = {each["name"]: each for each in spec["templates"]}
    if len(templates) < len(spec["templates"]):
        yield "two templates have one name"
    yield from _missing("ServiceAccount", [spec["serviceAccountName"]], manifests, "WorkflowTemplate")
    for field in ("entrypoint", "onExit"):
        if field in spec and spec[field] not in templates:
            yield f"{field}: there is no template {spec[field]}"
    params = {each["name"] for each in spec.get("arguments", {}).get("parameters", [])}
    used = {spec["entrypoint"], spec.get("onExit")}
    for name, template in templates.items():
        tasks = template.get("dag", {}).get("tasks", [])
        used |= {task["template"] for task in tasks}
        yield from _of_pod(name, template, manifests)
        yield from _of_tasks(name, tasks, templates)
        yield from _of_tags(name, template, params)
    yield from (f"nothing uses the template {name}" for name in templates if name not in used)


def _of_pod(name: str, template: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is wrong with a pod's volumes."""
    volumes = {each["name"]: each for each in template.get("volumes", [])}
    mounts = template.get("container", {}).get("volumeMounts", [])
    yield from (f"{name}: there is no volume {each['name']}" for each in mounts if each["name"] not in volumes)
    for volume in volumes.values():
        source = volume.get("configMap")
        if source is None:
            continue
        yield from _missing("ConfigMap", [source["name"]], manifests, name)
        keys = {
            key
            for each in manifests
            if each["kind"] == "ConfigMap" and each["metadata"]["name"] == source["name"]
            for key in (*each.get("data", {}), *each.get("binaryData", {}))
        }
        yield from (f"{name}: there is no key {each['key']}" for each in source["items"] if each["key"] not in keys)
    paths = [each["mountPath"] for each in mounts]
    for output in template.get("outputs", {}).get("parameters", []):
        if not any(output["valueFrom"]["path"].startswith(f"{path}/") for path in paths):
            yield f"{name}: the output {output['name']} is in no volume"


def _of_tasks(name: str, tasks: Sequence[Manifest], templates: Mapping[str, Manifest]) -> Iterator[str]:
    """What is wrong with the tasks of one template."""
    by_name = {task["name"]: task for task in tasks}
    if len(by_name) < len(tasks):
        yield f"{name}: two tasks have one name"
    for task in tasks:
        where = f"{name}.{task['name']}"
        for other in _needed(task):
            if other not in by_name:
                yield f"{where}: there is no task {other}"
        target = templates.get(task["template"])
        if target is None:
            yield f"{where}: there is no template {task['template']}"
            continue
        yield from _of_arguments(where, task, target)
        before = _all_needed(task, by_name)
        made = {other: _outputs(templates.get(by_name[other]["template"], {})) for other in before}
        for tag in tags_in(task):
            if why := _misfit_of_tag(tag, task, by_name, made):
                yield f"{where}: {{{{{tag}}}}}: {why}"


def _of_arguments(where: str, task: Manifest, target: Manifest) -> Iterator[str]:
    given = {each["name"] for each in task.get("arguments", {}).get("parameters", [])}
    inputs = target.get("inputs", {}).get("parameters", [])
    yield from (f"{where}: it gives {name}, which nobody takes" for name in given - {each["name"] for each in inputs})
    needed = {each["name"] for each in inputs if "value" not in each and "default" not in each}
    yield from (f"{where}: it does not give {name}" for name in sorted(needed - given))


def _outputs(template: Manifest) -> set[str]:
    return {each["name"] for each in template.get("outputs", {}).get("parameters", [])}


def _misfit_of_tag(tag: str, task: Manifest, tasks: Iterable[str], made: Mapping[str, set[str]]) -> str:
    """What is wrong with a tag of a task; ``made`` are the outputs of the tasks that come before it."""
    if tag == "item" or tag.startswith("item."):
        return "" if any(loop in task for loop in LOOPS) else "there is no loop"
    match = re.fullmatch(r"tasks\.([\w-]+)\.outputs\.parameters\.([\w-]+)", tag)
    if match is None:
        return ""
    other, output = match[1], match[2]
    if other not in tasks:
        return f"there is no task {other}"
    if other not in made:
        return f"it does not come after {other}"
    return "" if output in made[other] else f"{other} gives no {output}"


def _needed(task: Manifest) -> set[str]:
    """The tasks that a task waits for."""
    text = _RESULT.sub("", task.get("depends", ""))
    return set(re.findall(r"[A-Za-z0-9][\w-]*", text)) | set(task.get("dependencies", ()))


def _all_needed(task: Manifest, tasks: Mapping[str, Manifest]) -> set[str]:
    found: set[str] = set()
    left = list(_needed(task))
    while left:
        name = left.pop()
        if name not in found and name in tasks:
            found.add(name)
            left += _needed(tasks[name])
    return found


def _of_tags(name: str, template: Manifest, params: set[str]) -> Iterator[str]:
    """What is wrong with the tags of a template that name what the whole run has, or the template's inputs."""
    inputs = {each["name"] for each in template.get("inputs", {}).get("parameters", [])}
    for tag in tags_in(template):
        kind, _, _rest = tag.partition(".")
        if tag.startswith("workflow.parameters."):
            known = tag.removeprefix("workflow.parameters.") in params
        elif tag.startswith("inputs.parameters."):
            known = tag.removeprefix("inputs.parameters.") in inputs
        elif kind in {"item", "tasks"}:
            known = "dag" in template
        else:
            known = GLOBAL.fullmatch(tag) is not None
        if not known:
            yield f"{name}: {{{{{tag}}}}} names nothing"


def _of_template_ref(spec: Manifest, manifests: Sequence[Manifest], where: str) -> Iterator[str]:
    name = spec["workflowTemplateRef"]["name"]
    yield from _missing("WorkflowTemplate", [name], manifests, where)
    target = next((e for e in manifests if e["kind"] == "WorkflowTemplate" and e["metadata"]["name"] == name), None)
    if target is None:
        return
    params = {each["name"]: each for each in target["spec"].get("arguments", {}).get("parameters", [])}
    given = {each["name"] for each in spec.get("arguments", {}).get("parameters", [])}
    yield from (f"{where}: {name} has no parameter {each}" for each in sorted(given - set(params)))
    needed = {name for name, each in params.items() if "value" not in each}
    yield from (f"{where}: it does not give the parameter {each}" for each in sorted(needed - given))


def _of_sensor(manifest: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    yield from _missing("EventBus", [spec["eventBusName"]], manifests, "Sensor")
    yield from _missing("ServiceAccount", [spec["template"]["serviceAccountName"]], manifests, "Sensor")
    sources = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "EventSource"}
    for dependency in spec["dependencies"]:
        source = sources.get(dependency["eventSourceName"])
        if source is None or dependency["eventName"] not in source["spec"].get("webhook", {}):
            yield f"Sensor: there is no event {dependency['eventName']} of {dependency['eventSourceName']}"
    calls = {each["name"] for each in spec["dependencies"]}
    for trigger in spec["triggers"]:
        begun = trigger["template"]["k8s"]["source"]["resource"]["spec"]
        yield from _of_template_ref(begun, manifests, "Sensor")
        count = len(begun.get("arguments", {}).get("parameters", []))
        for each in trigger["template"]["k8s"].get("parameters", []):
            if each["src"]["dependencyName"] not in calls:
                yield f"Sensor: there is no dependency {each['src']['dependencyName']}"
            place = re.fullmatch(r"spec\.arguments\.parameters\.(\d+)\.value", each["dest"])
            if place is None or int(place[1]) >= count:
                yield f"Sensor: {each['dest']} is no place of a parameter"
