"""Runs as PyTorch's DataLoader reads them: dealt to workers and ranks, as tensors, in an order, from where it was."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import pyarrow.parquet as pq
import pytest
from emulators import s3_client, use_emulator

import shardkit as sk
from shardkit.dataset.formats.json_lines import JsonLines
from shardkit.dataset.formats.kinds import FORMATS
from shardkit.dataset.loaders import order

torch = pytest.importorskip("torch", reason="there is no build of PyTorch without CUDA here")
stateful = pytest.importorskip("torchdata.stateful_dataloader")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES, ROWS = 6, 50
TOTAL = FILES * ROWS
CODE = """
import datetime
import numpy as np

def rows(record):
    number = int(record.key.removesuffix(".txt"))
    for i in range(50):
        n = number * 50 + i
        yield {
            "n": n, "text": None if n % 2 else f"t{n}", "jpg": bytes([n % 256]) * (n % 5), "embedding": np.full(8, n, np.float32),
            "tokens": list(range(n % 4 + 1)), "flag": n % 3 == 0, "share": None if n % 7 == 0 else n / 2,
            "picture": [[n, 1, 2], [3, 4, 5]], "sparse": None if n % 5 else n, "words": [[["a"]], []],
        }

def texts(record):
    for row in rows(record):
        del row["jpg"]
        yield row
"""


class World:
    """A few files, and runs over them that are each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "functions_for_torch.py").write_text(CODE)
        (root / "data").mkdir()
        for number in range(FILES):
            (root / "data" / f"{number}.txt").write_text("x")
        self._made: dict[str, sk.Run] = {}

    def run(self, format: str = "parquet", uri: Any = None, **output: Any) -> sk.Run:
        name = f"{format}-{sorted(output.items())}-{uri or ''}"
        if name not in self._made:
            uri = uri or self.root / str(len(self._made))
            self._made[name] = sk.Pipeline(
                name="out",
                function=f"functions_for_torch:{'texts' if format in {'jsonl', 'foreign'} else 'rows'}",
                source_dir=self.root,
                input=self.root / "data",
                output={"uri": uri, "format": format, "rows_per_file": 70, **output},
                workers=1,
            ).run(quiet=True)
        return self._made[name]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("torch"))


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these few rows are many windows."""
    monkeypatch.setattr(order, "BATCH_ROWS", 16)


def numbers(batches: Any) -> list[int]:
    return list(itertools.chain.from_iterable(batch["n"].reshape(-1).tolist() for batch in batches))


def loader(run: sk.Run, workers: int = 0, **how: Any) -> Any:
    about = {"columns": ["n"], "batch_size": 8} | how
    return torch.utils.data.DataLoader(run.torch(**about), batch_size=None, num_workers=workers)


def ranks(monkeypatch: pytest.MonkeyPatch, of: int) -> Iterator[int]:
    monkeypatch.setenv("WORLD_SIZE", str(of))
    for rank in range(of):
        monkeypatch.setenv("RANK", str(rank))
        yield rank


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("format", ["parquet", "arrow", "hf", "webdataset", "jsonl"])
def test_each_row_comes_once_over_all_ranks(
    world: World, monkeypatch: pytest.MonkeyPatch, format: str, *, shuffle: bool
) -> None:
    run = world.run(format)
    shares = [numbers(loader(run, shuffle=shuffle)) for _ in ranks(monkeypatch, 7)]
    found = list(itertools.chain.from_iterable(shares))
    assert sorted(found) == list(range(TOTAL))
    assert (found == list(range(TOTAL))) is not shuffle
    assert {len(share) for share in shares} == {TOTAL // 7, TOTAL // 7 + 1}
    even = [numbers(loader(run, shuffle=shuffle, even=True)) for _ in ranks(monkeypatch, 7)]
    assert Counter(map(len, even)) == {TOTAL // 7: 7}
    assert len(set(itertools.chain.from_iterable(even))) == TOTAL - TOTAL % 7


def test_row_groups_of_a_file_are_mixed_and_dealt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.run(target_bytes=20_000, rows_per_file=None)
    groups = [pq.read_metadata(path).num_row_groups for path in run.files()]
    assert min(groups) > 1
    shares = [numbers(loader(run, shuffle=True)) for _ in ranks(monkeypatch, 3)]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(TOTAL))
    for _ in ranks(monkeypatch, 3):
        rows = run.torch(columns=["n"], batch_size=10)
        rows.load_state_dict({**rows.state_dict(), "rows": 40})  # in the midst of a row group
        assert numbers(rows) == numbers(run.torch(columns=["n"], batch_size=10))[40:]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_two_ranks_share_the_rows(world: World, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    shares = [numbers(loader(world.run(), workers, shuffle=True)) for _ in ranks(monkeypatch, 2)]
    assert [len(share) for share in shares] == [TOTAL // 2] * 2
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(TOTAL))


def _rank_of_two(run: sk.Run, store: str, rank: int, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.put((rank, numbers(loader(run))))
    torch.distributed.destroy_process_group()


def test_the_ranks_of_a_process_group_share_the_rows(world: World, tmp_path: Path) -> None:
    run, forked = world.run(), multiprocessing.get_context("fork")
    results = forked.Queue()
    started = [forked.Process(target=_rank_of_two, args=(run, tmp_path / "store", rank, results)) for rank in range(2)]
    for process in started:
        process.start()
    found = dict(results.get(timeout=120) for _ in started)
    for process in started:
        process.join()
    assert found == {0: list(range(TOTAL // 2)), 1: list(range(TOTAL // 2, TOTAL))}


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_numbers_and_lists_of_them_are_tensors(world: World, format: str) -> None:
    columns = ["n", "text", "jpg", "embedding", "tokens", "flag", "share", "words"]
    batch = list(world.run(format).torch(columns=columns, batch_size=64))[1]
    those = range(64, 128)
    assert list(batch) == columns
    assert batch["n"].tolist() == list(those)
    assert batch["n"].dtype == torch.int64
    assert batch["embedding"].dtype == torch.float32
    assert batch["embedding"].tolist() == [[float(n)] * 8 for n in those]
    assert [tokens.tolist() for tokens in batch["tokens"]] == [list(range(n % 4 + 1)) for n in those]
    assert batch["flag"].dtype == torch.bool
    assert batch["flag"].tolist() == [n % 3 == 0 for n in those]
    assert torch.isnan(batch["share"]).tolist() == [n % 7 == 0 for n in those]
    assert batch["text"] == [None if n % 2 else f"t{n}" for n in those]
    assert batch["jpg"] == [bytes([n % 256]) * (n % 5) for n in those]
    assert batch["words"] == [[[["a"]], []]] * 64
    batch["n"] += 1  # memory of its own


def test_matrices_and_single_rows(world: World) -> None:
    run = world.run()
    batch = next(iter(run.torch(columns=["picture"], batch_size=10, shuffle=True)))
    assert batch["picture"].shape == (10, 2, 3)
    rows = list(run.torch(columns=["n", "embedding", "text"]))
    assert [row["n"].item() for row in rows] == list(range(TOTAL))
    assert rows[4]["embedding"].tolist() == [4.0] * 8
    collated = next(iter(torch.utils.data.DataLoader(run.torch(columns=["n", "picture"]), batch_size=3)))
    assert collated["n"].tolist() == [0, 1, 2]
    assert collated["picture"].shape == (3, 2, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_an_order_of_its_own(world: World, workers: int) -> None:
    def orders(seed: int) -> list[list[int]]:
        rows = world.run().torch(columns=["n"], batch_size=8, shuffle=True, seed=seed)
        kept = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
        found = []
        for epoch in range(2):
            rows.set_epoch(epoch)
            found.append(numbers(kept))
        return found

    first = orders(1)
    assert sorted(first[0]) == sorted(first[1]) == list(range(TOTAL))
    assert first[0] != first[1]
    assert orders(1) == first
    assert orders(2)[0] not in first
    jumps = sum(abs(one - other) for one, other in itertools.pairwise(first[0])) / TOTAL
    assert jumps > TOTAL / 10  # rows of several places are mixed


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("format", ["parquet", "hf"])
def test_an_epoch_goes_on_where_it_was(world: World, format: str, workers: int) -> None:
    def stateful_loader() -> Any:
        rows = world.run(format).torch(columns=["n"], batch_size=8, shuffle=True, seed=3)
        rows.set_epoch(5)
        return stateful.StatefulDataLoader(rows, batch_size=None, num_workers=workers)

    whole = [batch["n"].tolist() for batch in stateful_loader()]
    interrupted = stateful_loader()
    first = [batch["n"].tolist() for batch in itertools.islice(interrupted, 13)]
    state = pickle.loads(pickle.dumps(interrupted.state_dict()))
    again = stateful_loader()
    again.load_state_dict(state)
    assert first + [batch["n"].tolist() for batch in again] == whole


def test_a_state_of_another_order_or_place_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = world.run().torch(batch_size=8, columns=["n"], seed=1, shuffle=True)
    state = rows.state_dict()
    with pytest.raises(sk.PipelineError, match="with seed 1, not 2"):
        world.run().torch(seed=2, shuffle=True, columns=["n"]).load_state_dict(state)
    rows.load_state_dict(state)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(sk.PipelineError, match=r"rank 0 of 1, and this is worker 0 of 1 in rank 0 of 2"):
        next(iter(rows))


def test_what_is_no_tensor_is_refused_before_an_epoch(world: World) -> None:
    with pytest.raises(sk.PipelineError, match="'sparse' has nulls"):
        world.run().torch()
    with pytest.raises(sk.PipelineError, match="'sparse' has nulls"):  # a format that does not note them
        list(world.run("webdataset").torch(columns=["sparse"]))
    with pytest.raises(sk.PipelineError, match=r"no column 'embeding'. Did you mean 'embedding'"):
        world.run().torch(columns=["embeding"])
    with pytest.raises(sk.PipelineError, match="batch_size"):
        world.run().torch(columns=["n"], batch_size=0)


class Foreign(JsonLines):
    """A format whose files only another library reads."""

    suffix: ClassVar[str] = ".foreign"
    tabular: ClassVar[bool] = False

    def reader(self, columns: Any) -> Any:
        raise sk.PipelineError("Read it with its own loader.")


def test_a_format_of_another_loader_is_refused_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS._loaded, "foreign", Foreign)
    run = world.run("foreign")
    for opened in (run.torch, run.hf):
        with pytest.raises(sk.PipelineError, match="its own loader"):
            opened(columns=["n"])


@pytest.mark.parametrize("format", ["parquet", "hf"])
def test_objects_are_read_by_other_processes(
    world: World, s3_url: str, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    use_emulator(monkeypatch, s3_url)
    bucket = f"torch-{format}"
    s3_client(s3_url).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    rows = world.run(format, uri=f"s3://{bucket}/out").torch(columns=["n"], batch_size=8)
    assert numbers(rows) == list(range(TOTAL))
    start = "spawn" if format == "parquet" else "fork"  # a new program loads PyTorch, which takes long
    other = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=1, multiprocessing_context=start)
    assert numbers(other) == list(range(TOTAL))
    with pytest.raises(sk.PipelineError, match="A boto3 session does not go"):
        pickle.dumps(sk.open_run(f"s3://{bucket}/out", boto_session=boto3.Session()).torch(columns=["n"]))
