"""Runs a WorkflowTemplate without a cluster: every container is a process of this machine.

It takes the manifests as they are and does what Argo documents: tasks in their order, parameters, the fan-out of
``withParam``, ``parallelism``, ``when``, retries by their expression, the exit handler. A pod sees nothing of other pods but
what is in the object store: its volumes are folders of its own, its environment is what its container says. What is not
a part of this (tags of another kind, unknown fields of a task) is an error, so that nothing is passed over.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import warm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Manifest = dict[str, Any]
SUCCEEDED, FAILED, ERROR, SKIPPED, OMITTED = "Succeeded", "Failed", "Error", "Skipped", "Omitted"
GOOD = {SUCCEEDED, SKIPPED}
TASK_FIELDS = {"name", "template", "depends", "arguments", "withParam", "when"}
TAG = re.compile(r"\{\{([^{}]+)\}\}")
LOSE_NODE = "lose-node"  # a file that a container writes into its TMPDIR: the node is taken away at once
MOST_AT_ONCE = 3  # processes of this machine


@dataclass
class Ended:
    """How a node of the run has ended: a template, or one attempt of a pod."""

    name: str
    status: str
    outputs: dict[str, str] = field(default_factory=dict)
    exit_code: int = 0
    message: str = ""


@dataclass(frozen=True)
class Cluster:
    """What is there before a run: the manifests that were applied, Secrets, images, and what all pods may see.

    ``images`` are folders, which stand for what is in an image: a container begins in it. ``environment`` is what the
    cluster gives to every pod, as EKS does with credentials.
    """

    root: Path
    manifests: Sequence[Manifest]
    images: Mapping[str, Path]
    secrets: Mapping[str, Mapping[str, str]]
    environment: Mapping[str, str]

    def get(self, kind: str, name: str) -> Manifest:
        """A manifest; it has to be there."""
        return next(each for each in self.manifests if each["kind"] == kind and each["metadata"]["name"] == name)


class Run:
    """One run of a WorkflowTemplate."""

    def __init__(self, cluster: Cluster, template: str, name: str, arguments: Mapping[str, str] | None = None) -> None:
        self.cluster, self.name = cluster, name
        self.spec = cluster.get("WorkflowTemplate", template)["spec"]
        assert cluster.get("ServiceAccount", self.spec["serviceAccountName"])
        self.templates = {each["name"]: each for each in self.spec["templates"]}
        declared = self.spec.get("arguments", {}).get("parameters", [])
        values = {each["name"]: each.get("value") for each in declared} | dict(arguments or {})
        assert None not in values.values(), f"a parameter has no value: {values}"
        assert set(values) == {each["name"] for each in declared}
        created = time.gmtime()
        self.tags = {"workflow.name": name, "workflow.namespace": "here"}
        self.tags |= {f"workflow.creationTimestamp.{letter}": time.strftime(f"%{letter}", created) for letter in "Ymd"}
        self.tags |= {f"workflow.parameters.{each}": value for each, value in values.items()}
        self.pods: list[Ended] = []
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()

    def carry_out(self) -> str:
        """Run the entrypoint, then the exit handler; returns the status."""
        status = self._template(self.spec["entrypoint"], {}).status
        status = status if status in {SUCCEEDED, FAILED, ERROR} else FAILED
        if handler := self.spec.get("onExit"):
            self.tags["workflow.status"] = status
            self._template(handler, {})
        return status

    def attempts(self, template: str) -> list[Ended]:
        """The attempts of the pods of a template, in the order in which they ended."""
        return [pod for pod in self.pods if pod.name == template]

    def _template(self, name: str, inputs: Mapping[str, str]) -> Ended:
        template = self.templates[name]
        tags = self.tags | {f"inputs.parameters.{each}": value for each, value in inputs.items()}
        declared = template.get("inputs", {}).get("parameters", [])
        assert set(inputs) == {each["name"] for each in declared}, f"{name}: {inputs}"
        if "dag" in template:
            return self._dag(template, tags)
        return self._with_retries(template, tags)

    # ---- tasks

    def _dag(self, template: Manifest, tags: dict[str, str]) -> Ended:
        tasks = {task["name"]: task for task in template["dag"]["tasks"]}
        ended: dict[str, Ended] = {}
        at_once = template.get("parallelism", len(tasks))
        while left := [name for name in tasks if name not in ended]:
            ready = [name for name in left if all(each in ended for each in _needs(tasks[name]))]
            assert ready, f"{template['name']}: {left} wait for each other"
            with ThreadPoolExecutor(len(ready)) as threads:
                done = [threads.submit(self._task, tasks[name], tags, dict(ended), at_once) for name in ready]
            ended |= {name: each.result() for name, each in zip(ready, done, strict=True)}
        bad = [each for each in ended.values() if each.status in {FAILED, ERROR}]
        return Ended(template["name"], bad[0].status if bad else SUCCEEDED)

    def _task(self, task: Manifest, tags: dict[str, str], ended: Mapping[str, Ended], at_once: int) -> Ended:
        assert set(task) <= TASK_FIELDS, f"{task['name']}: {set(task) - TASK_FIELDS}"
        if any(ended[each].status not in GOOD for each in _needs(task)):
            return Ended(task["name"], OMITTED)
        made = {
            f"tasks.{name}.outputs.parameters.{output}": value
            for name, each in ended.items()
            for output, value in each.outputs.items()
        }
        tags = tags | made
        if "when" in task and not _holds(filled(task["when"], tags)):
            return Ended(task["name"], SKIPPED)
        if "withParam" not in task:
            return self._template(task["template"], _arguments(task, tags))
        items = json.loads(filled(task["withParam"], tags))
        if not items:
            return Ended(task["name"], SKIPPED)
        with ThreadPoolExecutor(min(len(items), at_once, MOST_AT_ONCE)) as threads:
            each_tags = [tags | {"item": str(item)} for item in items]
            done = list(threads.map(lambda one: self._template(task["template"], _arguments(task, one)), each_tags))
        bad = [each for each in done if each.status not in GOOD]
        return Ended(task["name"], bad[0].status if bad else SUCCEEDED)

    # ---- pods

    def _with_retries(self, template: Manifest, tags: dict[str, str]) -> Ended:
        strategy = template.get("retryStrategy", {"limit": "0"})
        assert strategy.get("retryPolicy", "Always") == "Always"
        for attempt in range(int(strategy["limit"]) + 1):
            ended = self._pod(template, tags, attempt)
            if ended.status == SUCCEEDED or not may_try_again(strategy.get("expression"), ended):
                break
        return ended

    def _pod(self, template: Manifest, tags: dict[str, str], attempt: int) -> Ended:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            folder = self.cluster.root / f"pod-{len(os.listdir(self.cluster.root)):04d}-{template['name']}-{attempt}"
            folder.mkdir()
        try:
            ended = self._container(template, tags, folder)
        finally:
            with self._lock:
                self._running -= 1
        with self._lock:
            self.pods.append(ended)
        return ended

    def _container(self, template: Manifest, tags: dict[str, str], folder: Path) -> Ended:
        container = template["container"]
        places = self._mounted(template, folder)
        words = [
            placed(filled(word, tags), places) for word in (*container.get("command", ()), *container.get("args", ()))
        ]
        environment = dict(self.cluster.environment)
        for variable in container["env"]:
            environment[variable["name"]] = placed(self._value(variable, tags), places)
        program = {"shardkit": ["-m", "shardkit"], "python": []}[words[0]]
        log = folder / "log"
        with log.open("w") as out, self._lock:  # the server of warm processes takes one request after the other
            process = warm.start(
                [*program, *words[1:]],
                cwd=placed(container.get("workingDir", ""), places) or self.cluster.images[container["image"]],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        code, lost = _watched(process, Path(environment["TMPDIR"]) / LOSE_NODE)
        name = template["name"]
        if lost:
            return Ended(name, ERROR, exit_code=-1, message="pod deleted")
        if code:
            return Ended(name, FAILED, exit_code=code, message=f"{log.read_text()[-800:]} Error (exit code {code})")
        outputs = {
            each["name"]: Path(placed(each["valueFrom"]["path"], places)).read_text()
            for each in template.get("outputs", {}).get("parameters", [])
        }
        return Ended(name, SUCCEEDED, outputs)

    def _value(self, variable: Manifest, tags: dict[str, str]) -> str:
        if "value" in variable:
            return filled(variable["value"], tags)
        ref = variable["valueFrom"]["secretKeyRef"]
        return self.cluster.secrets[ref["name"]][ref["key"]]

    def _mounted(self, template: Manifest, folder: Path) -> dict[str, str]:
        """The volumes of a pod as folders, by the paths at which the container has them."""
        volumes = {each["name"]: each for each in template["volumes"]}
        places = {}
        for mount in template["container"]["volumeMounts"]:
            place = folder / mount["name"]
            place.mkdir()
            places[mount["mountPath"]] = str(place)
            volume = volumes[mount["name"]]
            if "configMap" not in volume:
                assert {"emptyDir", "ephemeral"} & set(volume)
                continue
            content = self.cluster.get("ConfigMap", volume["configMap"]["name"])
            for item in volume["configMap"]["items"]:
                path = place / item["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                if item["key"] in content["data"]:
                    path.write_text(content["data"][item["key"]])
                else:
                    path.write_bytes(base64.b64decode(content["binaryData"][item["key"]]))
        return places


def _watched(process: Any, lose_node: Path) -> tuple[int, bool]:
    """Wait for a process, or take its node away, with all processes in it, when it asks for that."""
    while process.poll() is None:
        if lose_node.exists():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
            return -1, True
        time.sleep(0.02)
    return process.returncode, False


def filled(text: str, tags: Mapping[str, str]) -> str:
    """The text with the values of its tags; a tag without one is an error."""
    return TAG.sub(lambda match: tags[match[1]], text)


def placed(text: str, places: Mapping[str, str]) -> str:
    """The text with the folder of this machine in the place of a pod's."""
    for inside, here in places.items():
        if text == inside or text.startswith(f"{inside}/"):
            return here + text[len(inside) :]
    return text


def _needs(task: Manifest) -> list[str]:
    names: list[str] = task["depends"].split(" && ") if "depends" in task else []
    assert all(re.fullmatch(r"[\w-]+", name) for name in names), names
    return names


def _arguments(task: Manifest, tags: Mapping[str, str]) -> dict[str, str]:
    parameters = task.get("arguments", {}).get("parameters", [])
    return {each["name"]: filled(each["value"], tags) for each in parameters}


def _holds(condition: str) -> bool:
    left, sign, right = condition.split()
    return {"==": left == right, "!=": left != right}[sign]


def may_try_again(expression: str | None, ended: Ended) -> bool:
    """What a retryStrategy's expression says: Argo's language as far as it is used here, as Python."""
    if expression is None:
        return True
    text = re.sub(r'lastRetry\.message matches ("[^"]*")', r"matches(\1)", expression)
    text = text.replace("lastRetry.exitCode", "exit_code").replace("lastRetry.status", "status")
    text = text.replace("||", " or ").replace("&&", " and ").replace("!(", " not (")
    names: dict[str, Callable[..., Any] | str] = {
        "matches": lambda pattern: re.search(pattern, ended.message) is not None,
        "asInt": int,
        "exit_code": str(ended.exit_code),
        "status": ended.status,
    }
    return bool(eval(text, {"__builtins__": {}}, names))


def begun_by(sensor: Manifest, body: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """What a Sensor begins for the body of a call: the name of the WorkflowTemplate, and the arguments.

    A parameter without a default that the body does not have is a KeyError: Argo begins nothing then.
    """
    (trigger,) = sensor["spec"]["triggers"]
    k8s = trigger["template"]["k8s"]
    spec = k8s["source"]["resource"]["spec"]
    arguments = {each["name"]: each["value"] for each in spec.get("arguments", {}).get("parameters", [])}
    names = list(arguments)
    for each in k8s.get("parameters", []):
        number = int(each["dest"].removeprefix("spec.arguments.parameters.").removesuffix(".value"))
        key = each["src"]["dataKey"].removeprefix("body.")
        arguments[names[number]] = str(body[key]) if key in body or "value" not in each["src"] else each["src"]["value"]
    return spec["workflowTemplateRef"]["name"], arguments
