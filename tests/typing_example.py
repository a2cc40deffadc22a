"""A user's code, for a type checker: it is checked with ``mypy --strict`` and never run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import shardkit
import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def frame(record: sk.Record) -> pd.DataFrame:
    return pd.read_csv(record, sep="\t")


def one_row(record: sk.Record) -> dict[str, int | str]:
    with open(record, encoding="utf-8") as file:
        first: str = file.readline()
    return {"key": record.key, "bytes": record.bytes, "first": first}


def many_rows(record: sk.Record) -> Iterator[dict[str, Any]]:
    for path, name in zip(record.paths, record.objects, strict=True):
        yield {"name": name, "size": path.stat().st_size, "stem": record.stem.upper()}


def nothing(record: sk.Record) -> None:
    folder: Path = record.path.parent
    folder.exists()


class Model:
    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, record: shardkit.Record) -> list[dict[str, float]]:
        return [{"threshold": self.threshold}]


def patient(key: str) -> str | None:
    return None if key.startswith("index") else key.split("/", maxsplit=1)[0]


def normalise(batches: Iterable[Any]) -> Iterator[Any]:
    yield from batches


run: sk.Run = sk.run(frame, "data/", Path("out"), pattern=["*.csv", "*.tsv"], records=patient, timeout=60, quiet=True)
summary: sk.Summary = run.summary()
done: int = summary.records["done"]
seconds: float = summary.seconds
failures: pd.DataFrame = run.failures()
rows: int = run.dataset().count_rows()
run.resume(max_failures="5%").retry(function=one_row, quiet=True)

for function in (one_row, many_rows, nothing, Model, Model(0.7)):
    sk.run(function, "data/", "out/")
sk.run("features:rows", "data/", "out/", run_id="mine")

pipeline = sk.Pipeline.from_yaml("pipeline.yaml", overrides={"input.uri": "other/"})
pipeline = sk.Pipeline(
    function=many_rows, input="data/", output={"uri": "out/", "format": "csv"}, combine=normalise, workers=4
)
pipeline = pipeline.replace(timeout=None)
text: str = f"{pipeline.plan().digest} {pipeline.sample(10)}"
run = pipeline.run(run_id="mine", quiet=True)

try:
    run = sk.open_run("out/")
except sk.RunNotFound as error:
    code: int = error.exit_code
    hint: str = error.hint
except sk.BudgetExceeded as error:
    message: str = error.message
