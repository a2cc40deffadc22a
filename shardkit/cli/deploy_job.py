"""``shardkit deploy``: what an account needs so that a pipeline runs there by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Command, Group, echo
from shardkit.cli.given import read_pipeline
from shardkit.cli.options import DAYS, PIPELINE
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from shardkit.runs.driver_job import DriverJob

FORMS = ("request", "policy", "trust", "starter-policy", "step-functions", "pipelines", "airflow", "scheduler")


@click.group(cls=Group, epilog="shardkit deploy job pipeline.yaml --write deploy")
def deploy() -> None:
    """Write what runs a pipeline in your account, without this machine."""


@deploy.command(
    cls=Command,
    epilog="""
shardkit deploy job pipeline.yaml --dry-run
shardkit deploy job pipeline.yaml > request.json
aws sagemaker create-processing-job --cli-input-json file://request.json
shardkit deploy job pipeline.yaml --since 2d --write deploy
shardkit deploy job pipeline.yaml --for scheduler --schedule 'cron(0 2 * * ? *)' > schedule.json
shardkit deploy job pipeline.yaml --run-id 20261121-184259-7f3a > go-on.json
""",
)
@PIPELINE
@DAYS
@click.option("--run-id", metavar="ID", help="Go on with that run; by default each job is a run of its own.")
@click.option("--role", metavar="ARN", help="The driver's role; by default one named after the pipeline.")
@click.option(
    "--instance-type", metavar="TYPE", default="ml.t3.medium", show_default=True, help="What the driver runs on."
)
@click.option("--max-runtime", type=click.IntRange(60, 777600), default=432000, help="Seconds; by default five days.")
@click.option("--schedule", metavar="EXPRESSION", help="For EventBridge Scheduler, such as 'rate(3 hours)'.")
@click.option("--for", "form", type=click.Choice(FORMS), default="request", help="What to print (default request).")
@click.option("--write", "folder", metavar="DIR", help="Write all of these as files there, and print none.")
@click.option("--dry-run", is_flag=True, help="Upload nothing.")
def job(
    pipeline: str | None,
    *,
    date: tuple[str, ...],
    since: str | None,
    run_id: str | None,
    role: str | None,
    instance_type: str,
    max_runtime: int,
    schedule: str | None,
    form: str,
    folder: str | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Print a CreateProcessingJob request for a job that runs the pipeline: it plans, makes the other jobs, and merges.

    The pipeline and its code are uploaded to the output. The request is JSON for boto3 and the AWS CLI; with --for it
    is printed as Step Functions, SageMaker Pipelines, Airflow or EventBridge Scheduler take it, or what the roles of
    the driver and of its starter may do.
    """
    driver = read_pipeline(pipeline, given).driver_job(
        role=role,
        run_id=run_id,
        dates=date,
        since=since,
        instance_type=instance_type,
        max_runtime=max_runtime,
        schedule=schedule,
        dry_run=dry_run,
    )
    if dry_run:
        echo("Nothing was uploaded.", err=True)
    if folder is None:
        echo(_json(driver.forms()[form]))
    else:
        _write(driver, Path(folder))


def _write(driver: DriverJob, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in driver.forms().items():
            (folder / f"{name}.json").write_text(f"{_json(content)}\n", "utf-8")
    except OSError as error:
        raise PipelineError(f"{error.filename} cannot be written: {error.strerror}.") from error
    echo(f"Wrote {', '.join(f'{name}.json' for name in FORMS)} in {folder}.", err=True)
    role = driver.template["RoleArn"].rpartition("/")[2]
    echo(f"The driver's role is {role}; if it is not there yet, make it:", err=True)
    echo(f"  cd {folder}", err=True)
    echo(f"  aws iam create-role --role-name {role} --assume-role-policy-document file://trust.json", err=True)
    echo(
        f"  aws iam put-role-policy --role-name {role} --policy-name driver --policy-document file://policy.json",
        err=True,
    )
    echo("Start it: aws sagemaker create-processing-job --cli-input-json file://request.json", err=True)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2)
