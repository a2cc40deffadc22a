"""``shardkit workflow deploy`` and what else belongs to Kubernetes; and the commands that only its pods run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardkit.cli.commands import Command, echo
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow


@click.command(
    cls=Command,
    epilog="""
shardkit workflow deploy workflow.yaml --output deploy/
shardkit workflow deploy workflow.yaml --output deploy/ --repository https://example.com/team/flows.git
shardkit workflow deploy workflow.yaml --output deploy/ --check
shardkit workflow deploy workflow.yaml --output deploy/ --env dev --apply
shardkit workflow deploy workflow.yaml --output chart/ --helm
""",
)
@click.argument("workflow", metavar="WORKFLOW.yaml")
@click.option("--output", required=True, metavar="DIR", help="The folder of the manifests.")
@click.option("--env", "environments", multiple=True, metavar="NAME", help="Only this environment; may be repeated.")
@click.option("--repository", metavar="URL", help="Write an Application of Argo CD too, for this repository.")
@click.option("--helm", is_flag=True, help="Write a chart instead, whose values differ between environments.")
@click.option("--check", is_flag=True, help="Write nothing; fail if the folder is not as the file says.")
@click.option("--apply", "and_apply", is_flag=True, help="Then show what would change on the cluster, ask, and apply.")
@click.option("--context", metavar="NAME", help="With --apply: which cluster of kubectl's configuration.")
@click.option("--yes", is_flag=True, help="With --apply: do not ask.")
def deploy(
    workflow: str,
    output: str,
    environments: tuple[str, ...],
    repository: str | None,
    *,
    helm: bool,
    check: bool,
    and_apply: bool,
    context: str | None,
    yes: bool,
) -> None:
    """Write a workflow as manifests for Kubernetes with Argo, a folder for each environment.

    A reviewer can read them, and Argo CD or kubectl bring them to a cluster. With --check the exit code is 1 if a file
    is missing, differs or is not of the workflow.
    """
    from shardkit.workflows.kubernetes.folder import files_of, write
    from shardkit.workflows.read import read_workflow

    if check and and_apply:
        raise click.UsageError("Give --check or --apply.")
    if helm and (and_apply or repository or environments):
        raise click.UsageError("A chart has all environments, and helm brings it to a cluster: give --helm alone.")
    read, home = read_workflow(workflow), Path(output)
    if helm:
        from shardkit.workflows.kubernetes.helm import chart_files

        files, names = chart_files(read, home), []
    else:
        names = _environments(read, environments)
        _say_if_shared(read, names)
        files = files_of(read, home, names, repository)
    everything = None if environments else home
    if check:
        _check(files, read.name, home, everything)
        return
    for path in write(files, read.name, everything):
        echo(f"Removed {path}, which is no longer of the workflow.", err=True)
    echo(f"Wrote {len(files)} files in {home}.", err=True)
    for name in names if and_apply else ():
        _apply(home, name, context=context, yes=yes)


def _environments(workflow: Workflow, wanted: tuple[str, ...]) -> list[str | None]:
    """The environments to write: those that were asked for, or all."""
    if wanted:
        return [workflow.of_environment(name).environment for name in wanted]
    return list(workflow.environments) or [None]


def _say_if_shared(workflow: Workflow, names: list[str | None]) -> None:
    """Say which environments have one namespace, as is right only where they are on different clusters."""
    by_namespace: dict[str, list[str]] = {}
    for name in names:
        by_namespace.setdefault(workflow.of_environment(name).namespace or "", []).append(name or "")
    for namespace, several in by_namespace.items():
        if len(several) > 1:
            which = f"{' and '.join(several)} have the same namespace, {namespace}"
            echo(f"{which}: on one cluster they replace each other.", err=True)


def _check(files: dict[Path, str], name: str, home: Path, everything: Path | None) -> None:
    from shardkit.workflows.kubernetes.folder import drift

    drifts = drift(files, name, everything)
    for each in drifts:
        echo(f"{each.file} {each.how}." + (f"\n{each.diff}" if each.diff else ""))
    if drifts:
        echo("Write them: give the command without --check.", err=True)
        sys.exit(1)
    echo(f"{home} is as the workflow says, and its {len(files)} manifests fit together.", err=True)


def _apply(home: Path, environment: str | None, *, context: str | None, yes: bool) -> None:
    from shardkit.workflows.kubernetes.apply import apply
    from shardkit.workflows.kubernetes.folder import NO_ENVIRONMENT

    name = environment or NO_ENVIRONMENT

    def agree() -> bool:
        return yes or click.confirm(f"Apply this to {context or 'the current cluster'}?", err=True)

    echo(f"{name}:", err=True)
    apply(home / name, context=context, say=echo, agree=agree)


@click.command(
    cls=Command,
    epilog="""
shardkit workflow cluster workflow.yaml --output cluster/ --region eu-west-1 --bucket my-logs
shardkit workflow cluster workflow.yaml --output cluster/ --kind
""",
)
@click.argument("workflow", metavar="WORKFLOW.yaml")
@click.option("--output", required=True, metavar="DIR", help="The folder of the files.")
@click.option("--kind", is_flag=True, help="A cluster of containers on one machine, instead of one in AWS.")
@click.option("--region", default="us-east-1", show_default=True, metavar="REGION", help="The region of AWS.")
@click.option("--bucket", metavar="NAME", help="Where Argo keeps the logs of pods that are gone.")
def cluster(workflow: str, output: str, *, kind: bool, region: str, bucket: str | None) -> None:
    """Write what a fresh cluster needs: its configuration for eksctl or kind, and the commands that install Argo."""
    from shardkit.workflows.kubernetes.cluster import cluster_files
    from shardkit.workflows.kubernetes.folder import write
    from shardkit.workflows.read import read_workflow

    home = Path(output)
    read = read_workflow(workflow)
    files = cluster_files(read, home, kind=kind, region=region, bucket=bucket)
    write(files, read.name)
    echo(f"Wrote {len(files)} files in {home}; the commands are in {home / 'install.sh'}.", err=True)


@click.command(
    cls=Command,
    epilog="""
shardkit workflow notebook workflow.yaml --env dev --output notebook/ --image REGISTRY/shardkit:lab
kubectl apply -f notebook/
kubectl --namespace ml-dev port-forward statefulset/recommender-notebook 8888
""",
)
@click.argument("workflow", metavar="WORKFLOW.yaml")
@click.option("--env", "environment", metavar="NAME", help="Which of the file's environments.")
@click.option("--output", required=True, metavar="DIR", help="The folder of the manifests.")
@click.option("--image", metavar="IMAGE", help="An image with shardkit and jupyterlab; by default the workflow's.")
@click.option("--volume", metavar="SIZE", help="The size of its disk, such as 100Gi; by default 20Gi.")
def notebook(workflow: str, environment: str | None, output: str, *, image: str | None, volume: str | None) -> None:
    """Write the manifests of a notebook server, with a disk of its own and the rights of the workflow's steps."""
    from shardkit.workflows.kubernetes.folder import as_text, named, write
    from shardkit.workflows.kubernetes.notebook import USUAL_SIZE, notebook_manifests
    from shardkit.workflows.read import read_workflow
    from shardkit.workflows.values import quantity_bytes

    merged = read_workflow(workflow).of_environment(environment)
    chosen = image or merged.image
    if chosen is None:
        raise PipelineError("The workflow names no image.", hint="Give --image, one with shardkit and jupyterlab.")
    if volume is not None and not quantity_bytes(volume):
        raise PipelineError(f"--volume: expected a size such as 100Gi, not {volume!r}.")
    manifests = notebook_manifests(merged, chosen, size=volume or USUAL_SIZE)
    files = {Path(output) / file: as_text(manifest, merged.name) for file, manifest in named(manifests).items()}
    write(files, merged.name)
    echo(f"Wrote {len(manifests)} files in {output}.", err=True)


@click.command(
    "check-parameters",
    cls=Command,
    hidden=True,
    epilog="""shardkit workflow check-parameters '{"date": {"pattern": "[0-9-]+"}}' --param date=2026-01-31""",
)
@click.argument("rules")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A value; may be repeated.")
def check_parameters(rules: str, params: tuple[str, ...]) -> None:
    """Check the values of a run's parameters; the first task of a workflow on Kubernetes."""
    from shardkit.workflows.parts import Parameter

    for text in params:
        name, _, value = text.partition("=")
        if why := Parameter(**json.loads(rules)[name]).refusal(value):
            raise PipelineError(f"Parameter {name}: {why}")


@click.command(
    "notice",
    cls=Command,
    hidden=True,
    epilog="shardkit workflow notice recommender --run-id recommender-x7d2k --status Failed --to slack:env:SLACK_HOOK",
)
@click.argument("name")
@click.option("--run-id", required=True, metavar="ID", help="The run.")
@click.option("--status", required=True, metavar="STATUS", help="How it has ended, in Argo's word.")
@click.option("--env", "environment", default="", metavar="NAME", help="Its environment.")
@click.option("--to", "targets", multiple=True, required=True, metavar="TARGET", help="Who is told; may be repeated.")
def notice(name: str, run_id: str, status: str, environment: str, targets: tuple[str, ...]) -> None:
    """Tell people how a run has ended; the exit handler of a workflow on Kubernetes."""
    from shardkit.workflows.kubernetes.notice import send_notice

    if not send_notice(name, run_id, status, environment=environment, targets=targets, say=lambda t: echo(t, err=True)):
        sys.exit(1)


ON_KUBERNETES = (deploy, cluster, notebook, check_parameters, notice)
