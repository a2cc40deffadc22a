"""Steps in containers of this machine: the words that a container runtime takes."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError
from shardkit.units import first_line
from shardkit.workflows.values import quantity_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.workflows.resolve import Resolved

RUNTIMES = ("docker", "podman")
ANY = "any"
ANSWER_S = 20.0


def runtime_of(asked: str) -> str:
    """The container runtime that was asked for: its path.

    Raises:
        PipelineError: it is not installed here, or does not answer.
    """
    if asked not in (ANY, *RUNTIMES):
        raise PipelineError(f"--containers {asked}: expected {' or '.join(RUNTIMES)}.")
    wanted = RUNTIMES if asked == ANY else (asked,)
    installed = {name: path for name in wanted if (path := shutil.which(name))}
    complaints = {name: _complaint(path) for name, path in installed.items()}
    working = next((name for name, complaint in complaints.items() if not complaint), None)
    if working is not None:
        return installed[working]
    without = "Leave the option out: then each step's command runs as a process of this machine."
    if complaints:
        name, complaint = next(iter(complaints.items()))
        raise PipelineError(f"--containers: {name} does not work here: {complaint}", hint=without)
    raise PipelineError(f"--containers: there is no {' or '.join(wanted)} here.", hint=without)


def _complaint(runtime: str) -> str:
    """Why a runtime does not work; empty if it does."""
    try:
        done = subprocess.run([runtime, "info"], capture_output=True, text=True, timeout=ANSWER_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"it did not answer within {ANSWER_S:g} s."
    except OSError as error:
        return f"{error.strerror}."
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else first_line(lines[-1] if lines else f"exit code {done.returncode}")


def container_words(runtime: str, resolved: Resolved, *, name: str, folder: str, variables: Iterable[str]) -> list[str]:
    """The command that runs a step in a container.

    The step sees the workflow's folder and its own output at the same paths as outside. Of its ``variables`` only the
    names are given: the runtime takes the values from its own environment, so that no list of processes has them.
    """
    needs = resolved.step.resources
    words = [runtime, "run", "--rm", "--init", "--name", name, "--volume", f"{folder}:{folder}", "--workdir", folder]
    if resolved.output and "://" not in resolved.output:
        words += ["--volume", f"{resolved.output}:{resolved.output}"]
    words += [word for variable in sorted(variables) for word in ("--env", variable)]
    words += ["--cpus", f"{needs.cpu:g}"] if needs.cpu else []
    words += ["--memory", str(quantity_bytes(needs.memory))] if needs.memory else []
    words += ["--gpus", str(needs.gpu)] if needs.gpu else []
    return [*words, resolved.image, *resolved.words]
