"""A workflow's file: what it may say, what an environment says instead, and what is refused, with line and cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shardkit as sk
from shardkit.workflows.expressions import Reference, parse
from shardkit.workflows.order import levels, needs
from shardkit.workflows.read import read_workflow

if TYPE_CHECKING:
    from pathlib import Path

    from shardkit.workflows.document import Workflow

WHOLE = """\
name: recommender
mode: calendar
calendar: {schedule: "0 */3 * * *", interval: 30m, zone: Europe/Paris}
webhook: {port: 12000, token: env:HOOK_TOKEN}
params: {date: 2026-01-01, limit: {default: 10, pattern: "[0-9]+"}}
image: registry/base:1
retries: 1
steps:
  - {name: features, pipeline: ads.yaml, set: {output: "out-{{workflow.environment}}"}, timeout: 3h}
  - name: train
    after: features
    image: "registry/trainer:{{variables.TAG}}"
    command: [python, train.py, "{{steps.features.output}}", "{{ params.date }}"]
    env: {PASSWORD: env:DB_PASSWORD, BUCKET: "{{variables.BUCKET}}"}
    resources: {cpu: 4, memory: 16Gi, gpu: 1}
    machines: {volume: 200Gi}
  - {name: predict, after: [features, train], image: "registry/predictor:1.4", retries: 0}
machines: {instance_type: m5.4xlarge, spot: true, spot_price: 0.30, volume: 100Gi}
notify: {failed: slack:env:SLACK_HOOK}
variables: {TAG: "1.4"}
environments:
  dev: {namespace: ml-dev, mode: workflow, variables: {BUCKET: dev-data}, machines: {instance_type: t3.large}}
  prd:
    variables: {BUCKET: prd-data, TAG: "1.3"}
    notify: {completed: "webhook:env:TEAM"}
"""
SMALL = "name: small\nsteps:\n  - {name: one, command: [echo, hello]}\n"


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "ads.yaml").write_text("{name: ads, input: data/, function: 'f:f', output: out/}\n")
    path = tmp_path / "workflow.yaml"
    path.write_text(text)
    return path


def whole(tmp_path: Path) -> Workflow:
    return read_workflow(written(tmp_path, WHOLE))


def test_an_environment_says_what_differs(tmp_path: Path) -> None:
    workflow = whole(tmp_path)
    dev, prd = workflow.of_environment("dev"), workflow.of_environment("prd")
    assert (dev.environment, dev.namespace, dev.mode) == ("dev", "ml-dev", "workflow")
    assert (prd.environment, prd.namespace, prd.mode) == ("prd", None, "calendar")
    assert dev.variables == {"TAG": "1.4", "BUCKET": "dev-data"}
    assert prd.variables == {"TAG": "1.3", "BUCKET": "prd-data"}
    assert (dev.notify.completed, dev.notify.failed) == ((), ("slack:env:SLACK_HOOK",))
    assert (prd.notify.completed, prd.notify.failed) == (("webhook:env:TEAM",), ("slack:env:SLACK_HOOK",))
    assert dev.environments == {}
    assert [step.machines.instance_type for step in dev.steps] == ["t3.large"] * 3
    assert [step.machines.volume for step in prd.steps] == ["100Gi", "200Gi", "100Gi"]
    assert [step.retries for step in dev.steps] == [1, 1, 0]
    assert [step.timeout for step in dev.steps] == [3 * 3600.0, None, None]
    assert [step.image for step in dev.steps] == [
        "registry/base:1", "registry/trainer:{{variables.TAG}}", "registry/predictor:1.4",
    ]  # fmt: skip


def test_what_the_fields_become(tmp_path: Path) -> None:
    workflow = whole(tmp_path)
    assert workflow.calendar is not None
    assert workflow.calendar.when().cron == "0 */3 * * *"  # which wins over the interval
    assert workflow.webhook is not None
    assert (workflow.webhook.host, workflow.webhook.token_name) == ("127.0.0.1", "HOOK_TOKEN")
    assert {name: each.default for name, each in workflow.params.items()} == {"date": "2026-01-01", "limit": "10"}
    train = workflow.step("train")
    assert train.secrets == {"PASSWORD": "DB_PASSWORD"}
    assert train.plain_env == {"BUCKET": "{{variables.BUCKET}}"}
    assert parse(train.command[3]).parts == (Reference("params", "date"),)
    assert workflow.path("ads.yaml") == str(tmp_path / "ads.yaml")


def test_the_order_of_the_steps(tmp_path: Path) -> None:
    steps = whole(tmp_path).steps
    assert needs(steps, "predict") == {"features", "train"}
    assert [[step.name for step in level] for level in levels(steps)] == [["features"], ["train"], ["predict"]]


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    template = parse("a {{params.x}} b {{run.id}}")
    assert template.filled(lambda reference: f"<{reference}>") == "a <{{params.x}}> b <{{run.id}}>"


MISTAKES = {
    "a field": ("calendar: {schedule", "calender: {schedule", 3, "calender: unknown field; did you mean calendar?"),
    "a step's field": ("after: features", "aftr: features", 11, "steps.1.aftr: unknown field; did you mean after?"),
    "a step's section": ("memory: 16Gi", "memry: 16Gi", 15, "steps.1.resources.memry: unknown field; did you mean memory"),
    "an environment's field": ("namespace: ml-dev", "namspace: x", 22, "environments.dev.namspace: unknown field; did you"),
    "a mode": ("mode: calendar", "mode: calender", 2, "mode: expected 'workflow', 'calendar' or 'webhook', not \"calender\""),
    "a size": ("16Gi", "16 gigs", 15, "expected a size such as 500Mi or 16Gi, not '16 gigs'."),
    "a cron line that never fires": ("0 */3 * * *", "0 0 31 2,4 *", 3, "or one that is never due (Bad day-of-month)"),
    "a cron line": ("0 */3 * * *", "every day", 3, "calendar.schedule: 'every day' is no cron expression"),
    "a zone": ("Europe/Paris", "Europe/Pari", 3, "there is no time zone 'Europe/Pari'"),
    "an unknown step": ("after: features", "after: featurs", 11, "there is no step featurs; did you mean features?"),
    "a circle": ("pipeline: ads.yaml", "after: predict, pipeline: ads.yaml", 9, "features after predict after features"),
    "a token in clear": ("env:HOOK_TOKEN", "hunter2", 4, "webhook.token: this looks like a secret"),
    "a password in clear": ("env:DB_PASSWORD", "hunter2", 14, "steps.1.env.PASSWORD: this looks like a secret"),
    "a secret among the variables": ('TAG: "1.3"', "API_KEY: hunter2", 24, "variables.API_KEY: this looks like a secret"),
    "a secret on the command line": ("train.py,", "--token, hunter2,", 13, "steps.1.command.2: this looks like a secret"),
    "a URL to notify": ("slack:env:SLACK_HOOK", "https://a.example/b", 19, "notify.failed: Notices cannot be sent to"),
    "an unknown expression": ("{{ params.date }}", "{{ parms.date }}", 13, "did you mean {{params.date}}?"),
    "an operator": ("{{ params.date }}", "{{ 1 + 1 }}", 13, "{{ 1 + 1 }} is no expression: expected {{params.NAME}}"),
    "no end": ("{{ params.date }}", "{{ params.date", 13, "the end is missing"),
    "an unknown parameter": ("{{ params.date }}", "{{ params.dat }}", 13, "there is no parameter dat in environment dev; did"),
    "a variable of one environment": ("BUCKET: dev-data", "X: y", 14, "there is no variable BUCKET in environment dev"),
    "a parameter that chooses an image": ("{{variables.TAG}}", "{{params.date}}", 12, "{{params.date}} has no place here"),
    "a program from outside": ("[python, train.py,", "[sh, -c, 'ls {{params.date}}',", 13, "sh would run what is in {{params.date}}"),
    "a parameter that chooses a program": ("[python, train.py", "['{{params.date}}', train.py", 13, "{{params.date}} has no place here"),
    "a parameter that chooses a function": ("set: {output:", "set: {function: '{{params.date}}', output:", 9, "{{params.date}} has no place here"),
    "a parameter that chooses a library": ("env: {PASSWORD", "env: {LD_PRELOAD: '{{params.date}}', PASSWORD", 14, "{{params.date}} has no place here"),
    "no pipeline": ("pipeline: ads.yaml", "pipeline: adz.yaml", 9, "there is no file"),
    "a pipeline's field": ("set: {output:", "set: {wokers: 2, output:", 9, "wokers: unknown field; did you mean workers?"),
    "a default outside its pattern": ("default: 10", "default: ten", 5, "'ten' does not match [0-9]+."),
    "no default on a calendar": ("default: 10, ", "", 5, "params.limit: a calendar gives no parameters"),
    "a queue without an engine": ("retries: 1", "queue: jobs.sqlite", 7, "queue: only jobs of an engine go into a queue"),
    "no calendar": ("calendar: {schedule", "# {schedule", 2, "mode: calendar needs calendar:"),
    "two steps of a name": ("name: predict", "name: train", 17, "there are two steps train."),
    "a name": ("name: recommender", "name: Recommender 1", 1, "expected a name of small letters"),
    "a retry": ("retries: 0", "retries: -1", 17, "steps.2.retries: should be greater than or equal to 0"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_cure(tmp_path: Path, mistake: str) -> None:
    right, wrong, line, says = MISTAKES[mistake]
    assert right in WHOLE
    path = written(tmp_path, WHOLE.replace(right, wrong, 1))
    with pytest.raises(sk.PipelineError) as refused:
        read_workflow(path)
    first = str(refused.value).splitlines()[0]
    assert first.startswith(f"{path}, line {line}: "), first
    assert says in first
    assert "hunter2" not in str(refused.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = WHOLE.replace("after: features", "after: featurs").replace("{{ params.date }}", "{{ params.dat }}")
    with pytest.raises(sk.PipelineError) as refused:
        read_workflow(written(tmp_path, text))
    assert [line.split(": ")[0][-7:] for line in str(refused.value).splitlines()[:2]] == ["line 11", "line 13"]


def test_the_output_of_a_step_that_is_not_before(tmp_path: Path) -> None:
    text = WHOLE.replace("[features, train]", "[]").replace("retries: 0", "env: {MODEL: '{{steps.train.output}}'}")
    with pytest.raises(sk.PipelineError, match="predict does not come after train; write after: train"):
        read_workflow(written(tmp_path, text))


def test_an_environment_has_to_be_named(tmp_path: Path) -> None:
    workflow = whole(tmp_path)
    with pytest.raises(sk.PipelineError, match="has the environments dev, prd. Say which: --env NAME"):
        workflow.of_environment()
    with pytest.raises(sk.PipelineError, match="no environment 'prod'; did you mean prd"):
        workflow.of_environment("prod")
    small = read_workflow(written(tmp_path, SMALL))
    assert small.of_environment().environment is None
    with pytest.raises(sk.PipelineError, match="has no environments, and so no dev. Leave out --env"):
        small.of_environment("dev")
    with pytest.raises(sk.PipelineError, match="Cannot read the workflow .*: No such file"):
        read_workflow(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("x" * 1001, "more than 1,000 characters"),
        ("a\nb", "control a terminal"),
        ("{{params.a}}", "it has an expression"),
        ("--rm", "take it for an option"),
        ("../../etc", "leads out of a folder"),
        ("a/..", "leads out of a folder"),
    ],
)
def test_values_that_no_parameter_may_have(tmp_path: Path, value: str, why: str) -> None:
    workflow = whole(tmp_path)
    assert why in workflow.params["date"].refusal(value)
    assert not workflow.params["date"].refusal("-1.5")
    assert "does not match" in workflow.params["limit"].refusal("-1")
