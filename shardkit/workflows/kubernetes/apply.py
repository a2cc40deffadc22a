"""Bringing a folder of manifests to a cluster, by kubectl: first what would change, then the change."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError, RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIFFERENT = 1  # the exit code of `kubectl diff` where something differs


def apply(folder: Path, *, context: str | None, say: Callable[[str], object], agree: Callable[[], bool]) -> bool:
    """Show how a cluster differs from a folder, and change it if ``agree`` says so; returns whether it was changed.

    Args:
        folder: the manifests of one environment, which name their namespace.
        context: that of kubectl's configuration; by default its current one.
        say: gets the differences.
        agree: asks.

    Raises:
        PipelineError: there is no kubectl.
        RunFailed: kubectl failed; it has said why.
    """
    words = ["kubectl", *(["--context", context] if context else [])]
    shown = _kubectl([*words, "diff", "--filename", str(folder)])
    if shown.returncode == 0:
        say("The cluster has this already.")
        return False
    if shown.returncode != DIFFERENT:
        raise RunFailed(
            f"kubectl diff failed: {shown.stderr.strip()}", hint="Is there the namespace, and are the CRDs?"
        )
    say(shown.stdout.rstrip())
    if not agree():
        return False
    done = _kubectl([*words, "apply", "--filename", str(folder)])
    if done.returncode:
        raise RunFailed(f"kubectl apply failed: {done.stderr.strip()}")
    say(done.stdout.rstrip())
    return True


def _kubectl(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  the words are ours
    except FileNotFoundError:
        raise PipelineError(
            "There is no kubectl on the PATH.", hint="Install it; or let Argo CD bring the folder to the cluster."
        ) from None
