"""The example: features of job ads, a model, predictions; killed at each step, and resumed to the same end."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from crashing import Project, dying, wait_for

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "salary_workflow"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("sklearn") is None, reason="the example's model takes scikit-learn, as in CI"),
]


def test_the_example_ends_with_predictions_although_it_is_killed_at_each_step(tmp_path: Path) -> None:
    project = Project(tmp_path)
    shutil.rmtree(project.data)
    said = project.command("workflow", "init", tmp_path / "salaries").stderr
    assert "Run it: cd" in said and "shardkit workflow run workflow.yaml --env dev" in said
    home = tmp_path / "salaries"
    assert {path.name for path in home.iterdir()} >= {path.name for path in EXAMPLE.iterdir()}
    for path in sorted((home / "data").rglob("*.jsonl"))[40:]:
        path.unlink()
    for path in (home / "features.yaml", home / "predictions.yaml"):
        path.write_text(path.read_text() + "workers: 1\n")
    file = home / "workflow.yaml"

    verb, killed = "run", []
    for step in ("features", "train", "predict"):
        with dying(project.start("workflow", verb, file, "--env", "dev")) as command:
            wait_for(lambda step=step: logs_of(home, step), timeout_s=120, what=step)
            command.process.kill()
            command.wait()
        killed.append(step)
        verb = "resume"
    project.command("workflow", "resume", file, "--env", "dev")

    status = json.loads(project.command("workflow", "status", file, "--env", "dev", "--json").stdout)
    assert {step["name"]: (step["state"], step["attempts"]) for step in status["steps"]} == dict.fromkeys(
        killed, ("done", 1)
    )
    assert [len(logs_of(home, step)) for step in killed] == [1, 1, 1]
    scores = json.loads((home / "out/dev/model/scores.json").read_text())
    predictions = pd.read_parquet(home / "out/dev/predictions/")
    features = pd.read_parquet(home / "out/dev/features/")
    assert sorted(predictions["id"]) == sorted(features["id"])
    assert scores["ads"] == features["salary_mid"].notna().sum()
    paid = predictions.dropna(subset=["salary"])
    assert predictions["predicted"].notna().all()
    error = (paid["predicted"] - paid["salary"]).abs().mean()
    assert error < (paid["salary"] - paid["salary"].mean()).abs().mean()  # it has learned something
    assert not (home / "out/prd").exists()


def logs_of(home: Path, step: str) -> list[Path]:
    """The logs of a step's attempts, in all generations of its job."""
    return list(home.glob(f"_shardkit/workflows/*/dev/*/jobs/{step}-*/logs/algo-1.log"))
