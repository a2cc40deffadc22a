"""Random small pipelines with fixed seeds; ``random_pipelines.py`` tries others, as many as it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from random_pipelines import Counter, Story, plain, try_seed

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = 30
AT_ONCE = 5


@pytest.mark.whole
@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_the_dataset_is_that_of_a_plain_loop(first: int) -> None:
    faults = {seed: fault for seed in range(first, first + AT_ONCE) if (fault := try_seed(seed)) is not None}
    assert not faults, f"try one again: python tests/random_pipelines.py --count 1 --first {next(iter(faults))}"


@pytest.mark.whole
def test_a_seed_is_the_same_pipeline_each_time(tmp_path: Path) -> None:
    told: list[list[str]] = [[], []]
    for i, said in enumerate(told):
        Story(3, tmp_path / str(i), said.append).tell()
    assert told[0] == told[1] and len(told[0]) > 5


@pytest.mark.whole
def test_a_row_is_the_same_from_whatever_format() -> None:
    loop = {"key": "k", "row": 1, "bool": True, "date": "2020-01-01", "mixed": 2, "text": None, "struct": {"a": 1}}
    csv = {"key": "k", "row": "1", "bool": "true", "date": "2020-01-01", "mixed": "2", "text": None}
    assert Counter([plain(loop | {"struct": None})]) == Counter([plain(csv)])
    assert plain(loop) == plain(loop | {"struct": {"a": 1, "b": None}}) != plain(csv)
