"""Options and arguments that several commands have."""

from __future__ import annotations

import click

from shardkit.cli.commands import options

SET = click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Override any field; may be repeated."
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end.")
RUN_ID = click.option("--run-id", metavar="ID", help="Which run; by default the latest.")
FOLLOW = click.option("--follow", "-f", is_flag=True, help="Print lines of all as they come, until the end.")
OUTPUT = click.argument("output", metavar="OUTPUT")
ALLOW_EMPTY = click.option(
    "--allow-empty", is_flag=True, default=None, help="Make a dataset without rows if no record gives any."
)
WORK = options(
    click.option("--function", metavar="MODULE:NAME", help="The function that turns a record into rows."),
    click.option("--source-dir", metavar="DIR", help="Where its module is; by default the current directory."),
    click.option(
        "--records",
        metavar="RULE",
        help="file (default), stem, directory, MODULE:NAME; inside files: lines, csv, tar, zip, parquet.",
    ),
    click.option("--pattern", multiple=True, metavar="GLOB", help="A record's main object; may be repeated."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Files that are not input; may be repeated."),
    click.option("--workers", metavar="N", help="How many processes; by default one per CPU."),
    click.option("--memory", metavar="SIZE", help="The most that all may hold together, such as 12GB; default: all."),
    click.option("--chunks", metavar="HOW", help="dynamic (default), balanced or even."),
    click.option("--batch", metavar="N", help="Call the function with a list of N records."),
    click.option("--concurrency", metavar="N", help="Calls of an async def function at once, in each worker."),
    click.option("--rate", metavar="N/s", help="Calls that may begin in a second (or /min, /h) on this machine."),
    click.option("--gpus", metavar="N", help="GPUs of each worker, or a part of one, such as 0.5."),
    click.option("--timeout", metavar="SECONDS", help="How long a record may take (default 3600)."),
    click.option("--max-failures", metavar="N|P%", help="How many records may fail (default 1%)."),
    ALLOW_EMPTY,
)
MERGE = options(
    click.option(
        "--format",
        "format_",
        metavar="FORMAT",
        help="parquet (default), jsonl, csv, arrow, webdataset, hf, mds, tfrecord or lance.",
    ),
    click.option("--rows-per-file", metavar="N", help="Rows of an output file (default 1048576)."),
    click.option("--target-bytes", metavar="SIZE", help="About how large an output file may be, such as 128MB."),
    click.option("--partition-by", multiple=True, metavar="COLUMN", help="Hive partition; may be repeated."),
    click.option("--combine", metavar="MODULE:NAME", help="Your own computation on the merged rows."),
)
DAYS = options(
    click.option("--date", multiple=True, metavar="DAY", help="Only this day, or A..B; may be repeated."),
    click.option("--since", metavar="TIME", help="Only the days since that long ago: 3d, 12h, 2w."),
)
PIPELINE_FIELDS = options(
    click.option("--input", "input_", metavar="DIR", help="The folder with the files, if there is no YAML file."),
    click.option("--manifest", metavar="FILE", help="A list of files, or an S3 Inventory's manifest.json, as input."),
    click.option("--include-list", metavar="FILE", help="Keys that alone are input."),
    click.option("--exclude-list", metavar="FILE", help="Keys that are not input."),
    click.option("--output", metavar="DIR", help="The folder of the dataset."),
    click.option("--name", metavar="NAME", help="The pipeline's name."),
    WORK,
    MERGE,
    click.option("--max-cost", metavar="USD", help="What the instances of an engine's jobs may cost."),
    click.option("--engine", metavar="KIND", help="Where the passes run as jobs: local or sagemaker; none: here."),
    SET,
)
PIPELINE = options(click.argument("pipeline", required=False, metavar="[PIPELINE.yaml]"), PIPELINE_FIELDS)
GO_ON = options(
    OUTPUT,
    RUN_ID,
    click.option("--function", metavar="MODULE:NAME", help="The mended function, if the first was sent by value."),
    SET,
    QUIET,
    JSON,
)
