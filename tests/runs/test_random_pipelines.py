"""Random small pipelines with fixed seeds; ``random_pipelines.py`` tries others, as many as it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from random_pipelines import Counter, Story, plain, try_seed

if TYPE_CHECKING:
    from pathlib import Path

# Of 240 seeds the cheapest that together take the branches of the program that the first thirty take, come to each
# format, combine, kind of record and way of returning rows with days and without, and to each way of failing; and 22,
# which notices files that are kept though the notes on them are of other rows.
SEEDS = ((0, 5, 16, 21), (22, 50, 63, 70, 74), (105, 116, 139, 183, 220, 239))


@pytest.mark.whole
@pytest.mark.parametrize("seeds", SEEDS)
def test_the_dataset_is_that_of_a_plain_loop(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    faults = {seed: fault for seed in seeds if (fault := try_seed(seed, folder=tmp_path)) is not None}
    assert not faults, f"try one again: python tests/random_pipelines.py --count 1 --first {next(iter(faults))}"


@pytest.mark.whole
def test_a_seed_is_the_same_pipeline_each_time(tmp_path: Path) -> None:
    told: list[list[str]] = [[], []]
    for i, said in enumerate(told):
        Story(139, tmp_path / str(i), said.append).tell()
    assert told[0] == told[1] and len(told[0]) > 5


@pytest.mark.whole
def test_a_row_is_the_same_from_whatever_format() -> None:
    loop = {"key": "k", "row": 1, "bool": True, "date": "2020-01-01", "mixed": 2, "text": None, "struct": {"a": 1}}
    csv = {"key": "k", "row": "1", "bool": "true", "date": "2020-01-01", "mixed": "2", "text": None}
    assert Counter([plain(loop | {"struct": None})]) == Counter([plain(csv)])
    assert plain(loop) == plain(loop | {"struct": {"a": 1, "b": None}}) != plain(csv)
