"""Fit a small model of the salaries in job ads.

    python train.py out/features --trees 40

writes ``model.joblib`` and ``scores.json`` to the folder that the variable SHARDKIT_OUTPUT names.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import joblib
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

NUMBERS = ["title_length", "description_length", "n_tokens", "n_unique_tokens", "n_tags", "hour_posted"]
COLUMNS = ["country", *NUMBERS]


def train(features: str, output: Path, *, trees: int) -> dict[str, float]:
    """Fit the model, and write it with its score on ads that it has not seen; returns the score.

    Raises:
        SystemExit: fewer than ten ads say what they pay.
    """
    ads = pd.read_parquet(features, columns=[*COLUMNS, "salary_mid"]).dropna(subset=["salary_mid"])
    if len(ads) < 10:
        raise SystemExit(f"{features} has {len(ads)} ads with a salary: too few to learn from.")
    seen, unseen = train_test_split(ads, random_state=0)
    countries = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((countries, ["country"]), ("passthrough", NUMBERS))
    model = make_pipeline(columns, HistGradientBoostingRegressor(max_iter=trees, random_state=0))
    model.fit(seen[COLUMNS], seen["salary_mid"])
    scores = {"ads": len(ads), "r2": round(float(model.score(unseen[COLUMNS], unseen["salary_mid"])), 3)}
    output.mkdir(parents=True, exist_ok=True)
    joblib.dump(model, output / "model.part")
    (output / "model.part").replace(output / "model.joblib")  # whole, or not at all
    (output / "scores.json").write_text(json.dumps(scores))
    return scores


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fit a small model of the salaries in job ads.")
    parser.add_argument("features", help="the dataset of the first step")
    parser.add_argument("--trees", type=int, default=40)
    given = parser.parse_args()
    print(train(given.features, Path(os.environ["SHARDKIT_OUTPUT"]), trees=given.trees))


if __name__ == "__main__":
    main()
