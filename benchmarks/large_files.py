"""One large JSON Lines file on all workers, and a tar of many small members."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from typing import TYPE_CHECKING

from clusters import ray_cluster
from common import DATA, HERE, SHARDKIT, contestant, generated, shardkit_ads

if TYPE_CHECKING:
    import contextlib
    from pathlib import Path

FILE_BYTES = 200_000_000
SAMPLES = 50_000
MEMBER_BYTES = 3000
LARGEST_PIECE = 64_000_000


def lines(workers: int, scale: float, stack: contextlib.ExitStack) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """The commands of the contestants over one file of 200 MB, and the sessions of the one that has a cluster."""
    data = _one_file(int(FILE_BYTES * scale))
    piece = min(LARGEST_PIECE, int(FILE_BYTES * scale / 4 / workers))
    ray = stack.enter_context(ray_cluster(workers))
    rule = json.dumps({"inside": "lines", "target_bytes": piece})
    commands = {
        "shardkit": [*shardkit_ads(data, workers), "--set", f"records={rule}"],
        "split": contestant("lines_by_split.py", data / "ads.jsonl", "tmp", "out", workers, piece),
        "ray data": contestant("lines_by_ray_data.py", ray.address, data / "ads.jsonl", "out"),
    }
    return commands, {"ray data": ray.sessions}


def members(workers: int, scale: float) -> dict[str, list[str]]:
    """The commands of the contestants over one tar of 50,000 samples of two members."""
    data = _tar(int(SAMPLES * scale))
    where = ["--input", str(data), "--output", "out", "--workers", str(workers), "--quiet"]
    function = ["--function", "samples:sample", "--source-dir", str(HERE / "contestants"), "--records", "tar"]
    return {
        "shardkit": [*SHARDKIT, "run", *function, *where],
        "webdataset": contestant("tar_by_webdataset.py", data / "train.tar", "out"),
    }


def _one_file(size: int) -> Path:
    """The same job ads over and over, in one file of about that size in bytes."""
    folder: Path = DATA / f"one-file-{size}"
    if not folder.exists():
        ads = b"".join(
            p.read_bytes() for p in sorted(generated("talent_jsonl", files=200, ads=100, bad=0).rglob("*.jsonl"))
        )
        making = folder.with_name(f".{folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        with open(making / "ads.jsonl", "wb") as file:
            while file.tell() < size:
                file.write(ads)
        making.rename(folder)
    return folder


def _tar(count: int) -> Path:
    folder: Path = DATA / f"tar-{count}"
    if not folder.exists():
        making = folder.with_name(f".{folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        with tarfile.open(making / "train.tar", "w") as archive:
            for number in range(count):
                for suffix, content in (("cls", b"%d" % number), ("jpg", b"\xff" * MEMBER_BYTES)):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        making.rename(folder)
    return folder
