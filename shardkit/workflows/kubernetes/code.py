"""The code of a step as a ConfigMap.

    /code/pipeline.yaml     of a pipeline: its file
    /code/source/...        what its source_dir holds; of a command: what is in the workflow's folder

The name has a digest of the content, so that a run that is in progress keeps the code that it began with. An image that
has all the libraries will do then; only code that is too large for a ConfigMap has to be in the image too.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.masking import holds_secret
from shardkit.runs.bundle import source_files
from shardkit.spec.spec import Spec
from shardkit.storage.base import is_remote
from shardkit.units import human_bytes
from shardkit.workflows.kubernetes.names import metadata

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.kubernetes.names import Manifest
    from shardkit.workflows.resolve import Resolved

PIPELINE, SOURCE = "pipeline.yaml", "source"
COMMANDS = "commands"  # the part of the names of code that several steps share
MOST_BYTES = 700_000  # of all files; a ConfigMap may have 1 MiB, in which some of them take more room
_NOT_IN_KEYS = re.compile(r"[^-._a-zA-Z0-9]")
KEEP = {"argocd.argoproj.io/sync-options": "Prune=false"}  # runs that are in progress need it


@dataclass(frozen=True)
class Code:
    """The code of one step: its manifest, and the volume through which a pod sees it."""

    manifest: Manifest
    volume: dict[str, Any]


def code_of(workflow: Workflow, resolved: Resolved, leave_out: Iterable[str] = ()) -> Code:
    """The code of a step that is a pipeline; without the folders that are no code.

    Raises:
        PipelineError: it is too large, or a file cannot be read.
    """
    file = Path(workflow.path(str(resolved.step.pipeline)))
    pipeline = resolved.pipeline
    source = pipeline.source_dir if pipeline is not None else None
    files = {PIPELINE: _read(file)}
    about = {file.resolve(), *([workflow.file.resolve()] if workflow.file is not None else [])}
    if source is not None:
        no_code = (*leave_out, *_data_folders(file, pipeline))
        for name, path in sorted(source_files(source, no_code)):
            if path.resolve() not in about:
                files[f"{SOURCE}/{name}"] = _read(path)
    return _code(workflow, resolved, resolved.step.name, files)


def code_of_command(workflow: Workflow, resolved: Resolved, leave_out: Iterable[str] = ()) -> Code | None:
    """The code of a step with a command that names a file or module of the workflow's folder; None if it names none.

    Raises:
        PipelineError: the folder holds too much, or a file cannot be read.
    """
    if not _names_a_file(workflow.folder, resolved.step.command):
        return None
    pipelines = [Path(workflow.path(step.pipeline)) for step in workflow.steps if step.pipeline is not None]
    data = [folder for file in pipelines for folder in _data_folders(file, None)]
    own = workflow.file.resolve() if workflow.file is not None else None
    found = sorted(source_files(str(workflow.folder), (*leave_out, *data)))
    files = {f"{SOURCE}/{name}": _read(path) for name, path in found if path.resolve() != own}
    return _code(workflow, resolved, COMMANDS, files)


def _names_a_file(folder: Path, words: Iterable[str]) -> bool:
    """Whether a command has a file of the folder among its words, or a module of it after ``-m``."""
    before = ""
    for word in words:
        path = f"{word.replace('.', '/')}.py" if before == "-m" else word
        if "{{" not in word and not os.path.isabs(path) and (folder / path).is_file():
            return True
        before = word
    return False


def _code(workflow: Workflow, resolved: Resolved, part: str, files: dict[str, bytes]) -> Code:
    _check_size(resolved, files)
    _check_secrets(resolved, files)
    digest = hashlib.sha256()
    for path, data in files.items():
        digest.update(path.encode() + b"\0" + hashlib.sha256(data).digest())
    name = f"{workflow.name[:20].rstrip('-')}-{part[:20].rstrip('-')}-code-{digest.hexdigest()[:10]}"
    texts: dict[str, str] = {}
    binary: dict[str, str] = {}
    items = []
    for number, (path, data) in enumerate(files.items()):
        key = _NOT_IN_KEYS.sub("_", path.replace("/", "__"))[-200:]
        key = f"{number}-{key}" if key in texts or key in binary else key
        text = _as_text(data)
        if text is None:
            binary[key] = base64.b64encode(data).decode()
        else:
            texts[key] = text
        items.append({"key": key, "path": path})
    about = metadata(workflow, name) | {"annotations": dict(KEEP)}
    manifest: Manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "immutable": True, "data": texts}
    if binary:
        manifest["binaryData"] = binary
    return Code(manifest, {"name": "code", "configMap": {"name": name, "items": items}})


def _as_text(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if "\0" not in text and "\r" not in text else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}.") from None


def _data_folders(file: Path, pipeline: Spec | None) -> list[str]:
    """The input and output of the pipeline, as its file has them and as the workflow sets them, if they are folders."""
    pipelines = [Spec.from_yaml(file), *([pipeline] if pipeline is not None else [])]
    uris = [uri for each in pipelines for uri in (*each.input.uris(), each.output.uri)]
    return [uri for uri in uris if not is_remote(uri)]


def _check_size(resolved: Resolved, files: dict[str, bytes]) -> None:
    total = sum(map(len, files.values()))
    if total > MOST_BYTES:
        largest = max(files, key=lambda name: len(files[name]))
        most = human_bytes(MOST_BYTES)
        raise PipelineError(
            f"{resolved.step.name}: its code has {human_bytes(total)}, and a ConfigMap takes {most}; the largest file "
            f"is {largest.removeprefix(f'{SOURCE}/')} of {human_bytes(len(files[largest]))}.",
            hint="Keep the code in a folder of its own, and name that as source_dir in the pipeline; or install it in "
            "the image, and name the function as package.module:callable.",
        )


def _check_secrets(resolved: Resolved, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        if holds_secret(data.decode("utf-8", errors="replace")):
            raise PipelineError(
                f"{resolved.step.name}: {name.removeprefix(f'{SOURCE}/')} holds what looks like a secret, and all "
                "who see the manifests would see it.",
                hint="Give it to the step as a variable, in env: {NAME: env:NAME}.",
            )
