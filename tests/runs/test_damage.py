"""Damaged files of a run: what other files know is repaired; all else is reported, with the cure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from click.testing import CliRunner
from emulators import s3_client
from obstore import exceptions
from one_database import one_database

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.dataset import switch_steps as switching
from shardkit.errors import Damaged, StorageError, WrittenByNewer
from shardkit.jobs import SQLiteStore
from shardkit.runs.bundle import upload_bundle
from shardkit.storage import object_contents
from shardkit.storage.base import File
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.whole
NUMBERS = itertools.count()
WORK = """
from pathlib import Path

def rows(record):
    number = int(Path(record).read_text())
    if number == 3 and not (Path(__file__).parent / "mended").exists():
        raise ValueError("three")
    return [{"n": number, "i": i} for i in range(50)]
"""
STATE = "_shardkit"
RUN = f"{STATE}/runs/x"
MARKER = f"{RUN}/markers/00000/000000-0001.json"
BEAT = f"{RUN}/progress/all-0001.json"
DOCUMENTS = [
    f"{RUN}/plan.json",
    f"{RUN}/records.parquet",
    f"{RUN}/result.json",
    f"{RUN}/contents.json",
    MARKER,
    BEAT,
    f"{RUN}/taken_over.json",
    f"{RUN}/jobs.json",
    f"{RUN}/stop.json",
    f"{RUN}/function.pkl",
    f"{STATE}/current.json",
    f"{STATE}/latest.json",
    f"{STATE}/commit.json",
    f"{STATE}/schedule.json",
]
THERE = [*DOCUMENTS[:6], f"{STATE}/current.json", f"{STATE}/latest.json"]
DAMAGES = ["empty", "cut", "garbage", "{}", "null", "[]", "types", "flipped", "gone", "a folder"]
# All documents are read in one way, so that it is the same for each of them why it is none: for one, all reasons are
# tried. What each has for itself is what becomes of it if it is none, lacks its fields, is not there or is a folder.
PAIRS = [(name, how) for name in DOCUMENTS for how in ("cut", "{}", "types", "a folder")]
PAIRS += [(name, "gone") for name in THERE]
PAIRS += [(f"{RUN}/plan.json", how) for how in DAMAGES if (f"{RUN}/plan.json", how) not in PAIRS]
PAIRS += [(f"{RUN}/records.parquet", how) for how in ("empty", "garbage", "flipped")]
PAIRS += [(name, "flipped") for name in (f"{STATE}/current.json", f"{STATE}/commit.json", MARKER, BEAT)]
FIELDS: dict[str, Any] = {"workers": 1, "name": "x", "max_failures": "50%", "quiet": True, "incremental": True}


class Place:
    """A folder with an input, a function, and a dataset of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"

    def run(self, run_id: str, **fields: Any) -> sk.Run:
        given = {"source_dir": self.root, "run_id": run_id} | FIELDS | fields
        return sk.run("damage_work:rows", self.root / "data", self.out, **given)

    def rows(self) -> list[tuple[int, int]]:
        table = sk.open_run(self.out).dataset().to_table()
        return sorted(zip(table["n"].to_pylist(), table["i"].to_pylist(), strict=True))

    def files(self) -> set[str]:
        """The names of the dataset's files, as anyone sees them who lists the folder."""
        return {path.name for path in self.out.glob("*.parquet")}

    def damage(self, name: str, how: str) -> None:
        path = self.out / name
        data = path.read_bytes() if path.exists() else b'{"some": 1}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if how == "a folder":
            path.mkdir()
        elif how != "gone":
            path.write_bytes(damaged(data, how))


def damaged(data: bytes, how: str) -> bytes:
    if how == "cut":
        return data[: len(data) // 2]
    if how == "flipped":
        middle = len(data) // 3
        return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    if how == "types" and data.lstrip().startswith(b"{"):
        return json.dumps(of_other_types(json.loads(data))).encode()
    known = {"empty": b"", "garbage": b"\x00\xff\x80 garbage", "types": b'"a text"'}
    return known.get(how, how.encode())


def of_other_types(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: of_other_types(held) for name, held in value.items()}
    if isinstance(value, str):
        return 7
    return {} if isinstance(value, list) else "text"


EXPECTED = sorted((n, i) for n in (1, 2, 4) for i in range(50))


@pytest.fixture(autouse=True, scope="module")
def _one_database() -> Iterator[None]:
    with one_database():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("finished"))
    (place.root / "damage_work.py").write_text(WORK)
    (place.root / "data").mkdir()
    for i in range(1, 5):
        (place.root / f"data/{i}.txt").write_text(str(i))
    place.run("x")
    return place


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Iterator[Place]:
    """A copy of the finished run; the input and the function are the original's."""
    shutil.copytree(finished.out, tmp_path / "out")
    made = Place(finished.root)
    made.out = tmp_path / "out"
    yield made
    (finished.root / "mended").unlink(missing_ok=True)


def told(arguments: list[str]) -> tuple[int, str]:
    """The output of a command, in which there must be no traceback."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.output


@pytest.mark.whole
@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_whoever_looks_is_answered_or_told_which_file_it_is(place: Place, name: str, how: str) -> None:
    place.damage(name, how)
    out = str(place.out)
    for command in (["status", out], ["failures", out], ["query", "select count(*) as n from dataset", out]):
        code, text = told(command)
        assert code == 0 or name.rpartition("/")[2] in text or how in {"gone", "a folder"}
        if command[0] == "query" and code == 0:
            assert "150" in text
    code, text = told(["clean", out, "--dry-run"])
    assert code == 0 or "current.json" in text or how == "a folder"


@pytest.mark.parametrize("how", ["empty", "{}", "types", "flipped", "garbage"])
def test_a_damaged_heartbeat_does_not_matter(place: Place, how: str) -> None:
    place.damage(BEAT, how)
    assert sk.open_run(place.out).summary().status == "done"
    before = place.files()
    sk.open_run(place.out).resume(quiet=True)
    assert place.files() == before


def test_the_chunk_of_a_damaged_marker_is_computed_again(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.damage(MARKER, "flipped")
    assert "is damaged" in str(sk.open_run(place.out).summary())
    sk.open_run(place.out).resume()
    assert "is computed again" in capsys.readouterr().err
    assert place.rows() == EXPECTED
    assert "is damaged" not in str(sk.open_run(place.out).summary())


def test_a_marker_of_records_that_do_not_exist_does_not_count(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    marker = json.loads((place.out / MARKER).read_bytes())
    (place.out / MARKER).write_text(json.dumps({**marker, "ids": [0, 99]}))
    assert f"{MARKER.removeprefix(f'{RUN}/')} is damaged" in str(sk.open_run(place.out).summary())
    sk.open_run(place.out).resume()
    assert "is computed again" in capsys.readouterr().err
    assert place.rows() == EXPECTED


@pytest.mark.parametrize("how", ["{}", "cut", "flipped", "gone"])
def test_what_describes_the_dataset_is_made_again_from_the_results(place: Place, how: str) -> None:
    good = (place.out / STATE / "current.json").read_bytes()
    place.damage(f"{STATE}/current.json", how)
    assert told(["query", "select count(*) as n from dataset", str(place.out)])[0] == 0
    assert (place.out / STATE / "current.json").read_bytes() == good


def test_where_nothing_tells_what_the_dataset_is_no_run_replaces_it(place: Place) -> None:
    place.damage(f"{STATE}/current.json", "cut")
    place.damage(f"{RUN}/result.json", "cut")
    before = place.files()
    with pytest.raises(Damaged, match=r"current\.json is damaged.*result\.json is damaged"):
        place.run("y", incremental=False)
    assert place.files() == before


def test_a_result_whose_file_was_cut_short_does_not_say_what_the_dataset_is(place: Place) -> None:
    place.damage(f"{STATE}/current.json", "gone")
    name = place.files().pop()
    place.damage(name, "cut")
    with pytest.raises(Damaged, match=f"lists {name}, which is not there as it was written"):
        place.run("y")


def test_a_result_that_is_damaged_is_told_by_the_dataset(place: Place) -> None:
    place.damage(f"{RUN}/result.json", "flipped")
    assert sk.open_run(place.out).summary().rows == 150
    assert place.rows() == EXPECTED


def test_a_later_format_is_refused_not_guessed_at(place: Place) -> None:
    for name in (f"{RUN}/plan.json", f"{STATE}/current.json"):
        path = place.out / name
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | {"version": 99}))
        with pytest.raises(WrittenByNewer, match="newer shardkit"):
            place.run("y") if "current" in name else sk.open_run(place.out)
        path.write_text(text)


@pytest.mark.parametrize("name", [f"{RUN}/records.parquet", f"{RUN}/plan.json"])
def test_a_new_run_needs_nothing_of_a_damaged_one(place: Place, name: str) -> None:
    place.damage(name, "cut")
    (place.root / "mended").touch()
    place.run("y", incremental=name.endswith("parquet"))
    assert len(place.rows()) == 200
    assert told(["clean", str(place.out)])[0] == 0


def test_clean_names_and_leaves_a_run_whose_plan_cannot_be_read(place: Place) -> None:
    shutil.copytree(place.out / RUN, place.out / STATE / "runs/old")
    shutil.copytree(place.out / RUN, place.out / STATE / "runs/older")
    (place.out / STATE / "runs/old/plan.json").write_text("{")
    text = str(sk.clean(place.out))
    assert "old/plan.json is damaged" in text
    assert (place.out / STATE / "runs/old/plan.json").exists()
    assert not (place.out / STATE / "runs/older/plan.json").exists()


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_the_plan_does_not_name_is_not_loaded(place: Place, tmp_path: Path) -> None:
    for name in ("function.pkl", "combine.pkl"):
        (place.out / RUN / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    place.damage(MARKER, "gone")
    sk.open_run(place.out).resume(quiet=True)
    assert place.rows() == EXPECTED
    assert not (tmp_path / "sprung").exists()


def test_a_function_sent_by_value_is_the_one_that_was_sent(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.txt").write_text("1")
    run = sk.run(lambda record: {"key": record.key}, tmp_path / "data", tmp_path / "out", workers=1, quiet=True)
    (run.path / "function.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(Damaged, match=r"function\.pkl is damaged"):
        sk.open_run(tmp_path / "out").resume(quiet=True)
    assert not (tmp_path / "sprung").exists()


def test_folders_of_before_have_no_checksums_and_are_read(place: Place) -> None:
    for path in (place.out / STATE).rglob("*.json"):
        content = json.loads(path.read_text())
        for name in ("crc32", "pickles", "version") if path.name != "plan.json" else ("crc32", "pickles", "files"):
            content.pop(name, None)
        for part in content.get("parts", []) if "markers" in path.parts else []:
            del part["sums"]
        path.write_text(json.dumps(content))
    (place.root / "mended").touch()
    sk.open_run(place.out).retry(quiet=True)
    assert len(place.rows()) == 200


# ---- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["data", "header", "footer"])
def test_a_flipped_bit_of_a_part_is_found_and_its_chunk_computed_again(place: Place, where: str) -> None:
    part = min((place.out / RUN / "parts").rglob("*.parquet"))
    data = bytearray(part.read_bytes())
    data[{"data": 60, "header": 8, "footer": len(data) - 40}[where]] ^= 1
    part.write_bytes(data)
    (place.root / "mended").touch()
    with pytest.raises(Damaged, match="checksum") as caught:
        sk.open_run(place.out).retry(quiet=True)
    assert str(part) in str(caught.value)
    assert caught.value.hint.endswith(f"sk.open_run({str(place.out)!r}, 'x').resume()")
    assert "shardkit resume" in caught.value.command_text
    sk.open_run(place.out).resume(quiet=True)
    assert len(place.rows()) == 200


# ---- the switch --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(finished: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose second run did not come through its switch, because the store accepted no file."""

    def refuse(source: Any, target: Any) -> None:
        raise StorageError(f"Cannot write {target}: the store refuses it.", hint="Ask for the permission.")

    place = Place(finished.root)
    place.out = tmp_path_factory.mktemp("stopped") / "out"
    shutil.copytree(finished.out, place.out)
    (place.root / "mended").touch()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(switching, "_publish", refuse)
        with pytest.raises(StorageError, match="the store refuses it"):
            place.run("y", incremental=False)
    (place.root / "mended").unlink()
    return place.out


@pytest.fixture
def half_switched(finished: Place, stopped: Path, tmp_path: Path) -> Place:
    """A copy of it; the input and the function are the original's."""
    place = Place(finished.root)
    place.out = tmp_path / "out"
    shutil.copytree(stopped, place.out)
    return place


def test_a_switch_that_fails_keeps_nobody_from_looking(half_switched: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place = half_switched

    def refuse(source: Any, target: Any) -> None:
        raise StorageError(f"Cannot write {target}: the store refuses it.", hint="Ask for the permission.")

    with monkeypatch.context() as patched:
        patched.setattr(switching, "_publish", refuse)
        assert told(["status", str(place.out)])[0] == 0
        assert told(["failures", str(place.out)])[0] == 0
        code, text = told(["query", "select count(*) as n from dataset", str(place.out)])
        assert code == 0
        assert "150" in text
        with pytest.raises(StorageError, match="is not finished.*Ask for the permission.*resume"):
            place.run("z", incremental=False)
    sk.open_run(place.out).resume(quiet=True)
    assert len(place.rows()) == 200
    assert len(place.files()) == 1


@pytest.mark.parametrize("how", ["empty", "{}", "cut", "flipped"])
def test_a_damaged_note_of_a_switch_gives_it_up(half_switched: Place, how: str) -> None:
    place = half_switched
    before = place.files()
    place.damage(f"{STATE}/commit.json", how)
    code, text = told(["query", "select count(*) as n from dataset", str(place.out)])
    assert code == 0
    assert "150" in text
    assert "is given up" in text
    assert place.files() == before
    sk.open_run(place.out).resume(quiet=True)
    assert len(place.rows()) == 200
    assert len(place.files()) == 1


@pytest.mark.parametrize("how", ["gone", "shorter"])
def test_a_switch_whose_file_is_lost_is_given_up(half_switched: Place, how: str) -> None:
    place = half_switched
    for path in (place.out / STATE / "runs/y/dataset").rglob("*.parquet"):
        if how == "gone":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size - 1)
    code, text = told(["query", "select count(*) as n from dataset", str(place.out)])
    assert code == 0
    assert "150" in text
    assert "is lost" in text
    sk.open_run(place.out).resume(quiet=True)
    assert len(place.rows()) == 200


# ---- code and queues ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
@pytest.mark.parametrize("name", ["source.zip", "bootstrap.py", "contents.json"])
def test_damaged_code_is_uploaded_again(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/work.py").write_text("def rows(record): ...")

    def upload() -> Path:
        return Path(upload_bundle(LocalFolder(tmp_path), str(tmp_path / "src"), requirements=None, mode="none"))

    home = upload()
    good = (home / name).read_bytes()
    (home / name).unlink()
    if how != "gone":
        (home / name).write_bytes(damaged(good, how))
    assert upload() == home
    assert (home / name).read_bytes() == good


@pytest.mark.parametrize("how", ["cut", "garbage", "a folder", "newer", "tables gone"])
def test_a_store_of_jobs_that_cannot_be_used_says_why(tmp_path: Path, how: str) -> None:
    path = tmp_path / "jobs.sqlite"
    with SQLiteStore(path) as store:
        if how == "newer":
            store._db.execute("PRAGMA user_version = 99")
        if how == "tables gone":
            store._db.execute("DROP TABLE jobs")
    if how in {"cut", "garbage"}:
        path.write_bytes(path.read_bytes()[:5000] if how == "cut" else damaged(b"", how) * 100)
    if how == "a folder":
        path.unlink()
        path.mkdir()
    for command in ("list", "show some"):
        code, text = told(["jobs", *command.split(), "--store", str(path)])
        assert code == 1
        assert str(path) in text
        assert len(text.splitlines()) == 1


# ---- in S3 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    url, name = request.getfixturevalue("s3_url"), f"damage-{next(NUMBERS)}-{os.getpid()}"
    known = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": url}
    for variable, value in known.items():
        monkeypatch.setenv(f"AWS_{variable}", value)
    s3_client(url, "us-east-1").create_bucket(Bucket=name)
    return name


class NoLargeCopies:
    """A store that copies nothing in one request, as S3 does with objects over 5 GiB."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def copy(self, source: str, target: str) -> None:
        text = "<Code>InvalidRequest</Code> The specified copy source is larger than the maximum allowable size"
        raise exceptions.GenericError(f"{source} to {target}: {text}")


def test_what_is_too_large_for_one_copy_is_copied_in_parts(
    finished: Place, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = object_contents.open_bucket

    def without_large_copies(*given: Any) -> Any:
        found = opened(*given)
        return dataclasses.replace(found, store=NoLargeCopies(found.store), patient=NoLargeCopies(found.patient))

    monkeypatch.setattr(object_contents, "open_bucket", without_large_copies)
    out = folder(f"s3://{bucket}/out")
    out.write("staged", b"some rows")
    out.copy_to("staged", File(out, "copy"))
    assert out.read("copy") == b"some rows"


@pytest.mark.whole
def test_damage_in_s3_is_found_as_on_a_disk(finished: Place, bucket: str) -> None:
    store, out = boto3.client("s3"), f"s3://{bucket}/out"
    for path in (path for path in finished.out.rglob("*") if path.is_file()):
        store.upload_file(str(path), bucket, f"out/{path.relative_to(finished.out)}")
    for name in (f"{STATE}/current.json", BEAT, MARKER):
        good = (finished.out / name).read_bytes()
        store.put_object(Bucket=bucket, Key=f"out/{name}", Body=damaged(good, "flipped"))
    code, text = told(["query", "select count(*) as n from dataset", out])
    assert code == 0
    assert "150" in text
    run = sk.open_run(out)
    assert "is damaged" in str(run.summary())
    store.put_object(Bucket=bucket, Key=f"out/{RUN}/records.parquet", Body=b"PAR1")
    with pytest.raises(Damaged, match=r"s3://.*records\.parquet is damaged"):
        sk.open_run(out).summary()
