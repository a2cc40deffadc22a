"""The commands that make a cluster and put Argo on it, as a script to read and to run line by line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

REPOSITORY = "https://argoproj.github.io/argo-helm"
# The official charts, each with its version, the version of what it installs, and its namespace.
CHARTS = {
    "argo-workflows": ("1.1.1", "4.1.0", "argo"),
    "argo-events": ("2.4.25", "1.9.11", "argo-events"),
    "argo-cd": ("10.3.3", "3.5.1", "argocd"),
}


@dataclass(frozen=True)
class Place:
    """What one environment has on the cluster: its namespace, the buckets of its steps, and its secrets."""

    namespace: str
    buckets: tuple[str, ...]
    secrets: tuple[str, ...]


def script(name: str, places: Sequence[Place], *, kind: bool, with_values: Collection[str]) -> str:
    """The script: the cluster, the charts, namespaces and, as comments, the Secrets, whose values only you have.

    These come from a file, because everybody on the machine can read the words of a command that runs.
    """
    make = (
        f"kind create cluster --name {name} --config cluster.yaml" if kind else "eksctl create cluster -f cluster.yaml"
    )
    lines = [
        "#!/bin/sh",
        "# Written by `shardkit workflow cluster`. Read it first: it makes a cluster, which costs money in AWS.",
        "set -eu",
        'cd "$(dirname "$0")"',
        "",
        make,
        "",
    ]
    for chart, (version, app, namespace) in CHARTS.items():
        lines.append(f"# {chart} {app}")
        values = f" --values {chart}.yaml" if chart in with_values else ""
        lines.append(
            f"helm upgrade --install {chart} {chart} --repo {REPOSITORY} --version {version} \\\n"
            f"    --namespace {namespace} --create-namespace --wait{values}"
        )
    lines.append("")
    for place in dict.fromkeys(places):
        lines.append(f"kubectl create namespace {place.namespace}")
        if place.secrets:
            file = f"{place.namespace}.env"
            lines += [
                f"# {file} has a line NAME=value for each of {', '.join(place.secrets)}; delete it afterwards.",
                f"# kubectl --namespace {place.namespace} create secret generic {name} --from-env-file {file}",
            ]
    return "\n".join(lines) + "\n"
