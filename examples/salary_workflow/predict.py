"""Guess the salary of each ad in a file of features, by the model that the variable MODEL names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import joblib
import pandas as pd

if TYPE_CHECKING:
    import shardkit


class Predict:
    """Predicts for one file after the other; each worker loads the model once."""

    def __init__(self) -> None:
        self._model = joblib.load(os.environ["MODEL"])

    def __call__(self, record: shardkit.Record) -> pd.DataFrame:
        """The ads of a file: ``id`` (str), ``salary`` as the ad says (float), ``predicted`` (float)."""
        ads = pd.read_parquet(record)
        guesses = self._model.predict(ads)
        rows: pd.DataFrame = ads[["id"]].assign(salary=ads["salary_mid"], predicted=guesses.round(0))
        return rows
