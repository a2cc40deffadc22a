"""``shardkit jobs``: the queue of jobs on the command line."""

from __future__ import annotations

import click

from shardkit.cli.commands import Group
from shardkit.cli.jobs_change import again, stop, submit, wait
from shardkit.cli.jobs_look import history, list_jobs, show
from shardkit.cli.jobs_serve import deploy_template, policy, serve


@click.group(cls=Group, epilog="shardkit jobs submit --request request.json\nshardkit jobs list --status Failed")
def jobs() -> None:
    """The queue that Processing and training jobs go through: submit, look, stop, try again."""


# In the order in which users need them.
for command in (submit, list_jobs, show, history, again, stop, wait, serve, policy, deploy_template):
    jobs.add_command(command)
