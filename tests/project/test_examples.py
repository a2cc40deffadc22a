"""The examples: their functions on what their generators write, on real files, and through the command line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import socket
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import in_process
import numpy as np
import pyarrow.parquet as pq
import pytest
import warm

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SHARED_DATA = Path(os.environ.get("SHARDKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))

shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"the real files are not here: no folder {SHARED_DATA} (SHARDKIT_SHARED_DATA)"
)


class FileRecord(os.PathLike[str]):
    """A record as the functions see it, without shardkit."""

    def __init__(self, root: Path, key: str, paths: list[Path]) -> None:
        self.key = key
        self.paths = tuple(paths)
        self.stem = str(root / key)
        self.bytes = sum(path.stat().st_size for path in paths)

    def __fspath__(self) -> str:
        return str(self.paths[0])


def load(example: str, module: str) -> ModuleType:
    """A module of an example, under a name of its own: all examples have a generate.py."""
    spec = importlib.util.spec_from_file_location(f"{example}_{module}", EXAMPLES / example / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb's own import uses what pandas is about to drop
        spec.loader.exec_module(loaded)
    return loaded


def files_under(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files_under(root)}


def records_by(key_of: Any, root: Path) -> dict[str, FileRecord]:
    """The records under ``root``, formed by a key function."""
    paths: dict[str, list[Path]] = {}
    for path in files_under(root):
        key = key_of(path.relative_to(root).as_posix())
        if key is not None:
            paths.setdefault(key, []).append(path)
    return {key: FileRecord(root, key, own) for key, own in paths.items()}


def file_record(root: Path, key: str) -> FileRecord:
    return FileRecord(root, key, [root / key])


def plain_loop(function: Any, records: dict[str, FileRecord]) -> tuple[list[dict[str, Any]], dict[str, Exception]]:
    """What a run should give: the rows of the records that work, the errors of those that do not."""
    rows: list[dict[str, Any]] = []
    errors: dict[str, Exception] = {}
    for key, record in records.items():
        try:
            result = function(record)
            rows += [result] if isinstance(result, dict) else list(result)
        except Exception as error:
            errors[key] = error
    return rows, errors


def column_types(rows: list[dict[str, Any]]) -> dict[str, set[type]]:
    return {name: {type(row[name]) for row in rows} - {type(None)} for name in rows[0]}


# ---- mimic_waveforms: the function -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waveforms() -> ModuleType:
    pytest.importorskip("wfdb")
    return load("mimic_waveforms", "waveforms")


@pytest.fixture(scope="module")
def waveform_generator() -> ModuleType:
    pytest.importorskip("wfdb")
    return load("mimic_waveforms", "generate")


@pytest.fixture(scope="module")
def waveform_data(waveform_generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("waveforms")
    return folder, waveform_generator.generate(folder, records=24, seconds=20, bad=3)


@pytest.fixture(scope="module")
def waveform_rows(
    waveforms: ModuleType, waveform_data: tuple[Path, Any]
) -> tuple[list[dict[str, Any]], dict[str, Exception]]:
    records = records_by(waveforms.record_key, waveform_data[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*inplace.*")  # wfdb's, not ours
        return plain_loop(waveforms.segment_features, records)


def write_ecg(folder: Path, name: str, signals: dict[str, np.ndarray], *, rate: float = 250) -> FileRecord:
    import wfdb

    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV"] * len(signals),
        sig_name=list(signals),
        p_signal=np.column_stack(list(signals.values())),
        fmt=["16"] * len(signals),
        adc_gain=[1000.0] * len(signals),
        baseline=[0] * len(signals),
        write_dir=str(folder),
    )
    return FileRecord(folder, name, sorted(folder.glob(f"{name}.*")))


def ecg(seconds: float, heart_rate: float, *, rate: float = 250) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    since_beat = (times + 0.5) % (60 / heart_rate) - 0.2
    return np.exp(-((since_beat / 0.012) ** 2) / 2) + 0.2 * np.exp(-(((since_beat - 0.25) / 0.05) ** 2) / 2)


@pytest.mark.whole
def test_each_record_of_the_generator_is_one_record(waveforms: ModuleType, waveform_data: tuple[Path, Any]) -> None:
    folder, made = waveform_data
    records = records_by(waveforms.record_key, folder)
    assert len(records) == made.records
    assert set(records) == set(made.heart_rates) | set(made.bad)
    assert set(made.kinds) == {
        "one file", "several files", "several rates", "fixed layout", "variable layout", "bad",
    }  # fmt: skip


@pytest.mark.whole
def test_bad_records_fail_and_no_others(
    waveform_rows: tuple[list[dict[str, Any]], dict[str, Exception]], waveform_data: tuple[Path, Any]
) -> None:
    rows, errors = waveform_rows
    made = waveform_data[1]
    assert {row["record"] for row in rows} == set(made.heart_rates)
    assert set(errors) == set(made.bad)
    says = {
        "the signal file is truncated": r"truncated",
        "the header names a signal file that is absent": r"which is not there",
        "the header is garbage": r"is not a WFDB header",
    }
    for key, reason in made.bad.items():
        assert says[reason] in str(errors[key])
        assert key.rpartition("/")[2] in str(errors[key]), "the message names the file"


@pytest.mark.whole
def test_heart_rates_are_those_generated(
    waveform_rows: tuple[list[dict[str, Any]], dict[str, Exception]], waveform_data: tuple[Path, Any]
) -> None:
    truth = waveform_data[1].heart_rates
    leads = [row for row in waveform_rows[0] if row["signal"] in ("II", "V")]
    found = [row for row in leads if row["heart_rate"] is not None]
    for row in found:
        assert row["heart_rate"] == pytest.approx(truth[row["record"]], rel=0.03)
    assert len(found) > 0.9 * len(leads)
    assert all(row["missing_share"] > 0.5 for row in leads if row["heart_rate"] is None)
    assert all(row["heart_rate"] is None for row in waveform_rows[0] if row["signal"] not in ("II", "V"))


@pytest.mark.whole
def test_features_equal_one_reading_of_the_whole_record(
    waveform_rows: tuple[list[dict[str, Any]], dict[str, Exception]], waveform_data: tuple[Path, Any]
) -> None:
    by_record: dict[str, list[dict[str, Any]]] = {}
    for row in waveform_rows[0]:
        by_record.setdefault(row["record"], []).append(row)
    for key, rows in by_record.items():
        assert_equal_to_one_reading(rows, waveform_data[0] / key)


def one_of_each_kind(headers: Iterable[Path]) -> list[Path]:
    """The headers, but for those that tell the same as an earlier one about signals, formats, files and segments."""
    kinds: dict[object, Path] = {}
    for header in headers:
        text = header.read_text("ascii", "ignore").splitlines()
        first, *lines = (line.split() for line in text if line.strip() and line[0] != "#")
        is_master, names = "/" in first[0], [line[0] for line in lines]
        formats = () if is_master else (len(first), len(set(names)), *(line[1] for line in lines))
        kinds.setdefault((is_master, names[0].endswith("_layout"), formats), header)
    return list(kinds.values())


def assert_equal_to_one_reading(rows: list[dict[str, Any]], stem: Path) -> None:
    """Compare the rows of one WFDB record with plain NumPy over ``wfdb.rdrecord``."""
    import wfdb

    whole = wfdb.rdrecord(str(stem), smooth_frames=False)
    assert [row["signal"] for row in rows] == whole.sig_name
    for row, samples, per_frame in zip(rows, whole.e_p_signal, whole.samps_per_frame, strict=True):
        present = samples[~np.isnan(samples)]
        assert row["n_samples"] == len(samples)
        assert row["sampling_rate"] == whole.fs * per_frame
        assert row["missing_share"] == pytest.approx(1 - len(present) / len(samples))
        if len(present) == 0:
            assert [row[name] for name in ("mean", "std", "min", "max", "skewness", "kurtosis", "heart_rate")] == [
                None
            ] * 7
            continue
        assert (row["min"], row["max"]) == (present.min(), present.max())
        assert row["mean"] == pytest.approx(present.mean(), rel=1e-9, abs=1e-12)
        assert row["std"] == pytest.approx(present.std(), rel=1e-9, abs=1e-12)
        if present.min() == present.max():
            assert (row["skewness"], row["kurtosis"]) == (None, None)
            continue
        distance = (present - present.mean()) / present.std()
        assert row["skewness"] == pytest.approx((distance**3).mean(), rel=1e-6, abs=1e-9)
        assert row["kurtosis"] == pytest.approx((distance**4).mean() - 3, rel=1e-6, abs=1e-9)


@pytest.mark.whole
def test_moments_do_not_depend_on_the_block_size(
    waveforms: ModuleType, waveform_data: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waveforms, "BLOCK_VALUES", 999)
    records = records_by(waveforms.record_key, waveform_data[0])
    headers = one_of_each_kind(waveform_data[0] / f"{key}.hea" for key in waveform_data[1].heart_rates)
    for key in (header.relative_to(waveform_data[0]).with_suffix("").as_posix() for header in headers):
        assert_equal_to_one_reading(waveforms.segment_features(records[key]), waveform_data[0] / key)


@pytest.mark.whole
def test_columns_have_one_type_each(waveform_rows: tuple[list[dict[str, Any]], dict[str, Exception]]) -> None:
    texts = {name: {str} for name in ("record", "name", "patient", "signal", "unit")}
    floats = {
        name: {float}
        for name in (
            "sampling_rate",
            "missing_share",
            "mean",
            "std",
            "min",
            "max",
            "skewness",
            "kurtosis",
            "heart_rate",
        )
    }
    rows = waveform_rows[0]
    assert column_types(rows) == {**texts, **floats, "n_samples": {int}}
    assert all(list(row) == list(rows[0]) for row in rows)
    assert not any(isinstance(value, float) and math.isnan(value) for row in rows for value in row.values())


@pytest.mark.parametrize("padding", [0, 1, 30, 2000])
@pytest.mark.whole
def test_gaps_in_an_ecg_leave_its_heart_rate_alone(waveforms: ModuleType, tmp_path: Path, padding: int) -> None:
    signal = ecg(60, 72)
    signal[:padding] = np.nan
    signal[5000 : 5000 + padding] = np.nan
    if padding:
        signal[-padding:] = np.nan
    (row,) = waveforms.segment_features(write_ecg(tmp_path, "gaps", {"II": signal}))
    assert row["heart_rate"] == pytest.approx(72, rel=0.02)
    assert row["missing_share"] == pytest.approx(3 * padding / len(signal))


@pytest.mark.parametrize("rate", [125, 250, 500, 1000])
def test_heart_rate_does_not_depend_on_the_sampling_rate(waveforms: ModuleType, tmp_path: Path, rate: int) -> None:
    (row,) = waveforms.segment_features(write_ecg(tmp_path, "rate", {"ECG": ecg(30, 88, rate=rate)}, rate=rate))
    assert row["heart_rate"] == pytest.approx(88, rel=0.02)


def test_the_heart_rate_is_that_of_the_first_minutes(
    waveforms: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(waveforms, "HEART_RATE_SECONDS", 20)
    monkeypatch.setattr(waveforms, "BLOCK_VALUES", 999)  # so that a block goes beyond them
    signal = np.concatenate([ecg(20, 60), ecg(60, 120)])
    (row,) = waveforms.segment_features(write_ecg(tmp_path, "faster", {"II": signal}))
    assert row["heart_rate"] == pytest.approx(60, rel=0.02)
    assert row["n_samples"] == 80 * 250


@pytest.mark.parametrize(
    ("name", "signal", "rate"),
    [
        ("flat", np.full(15000, 0.5), 250),
        ("missing", np.full(15000, np.nan), 250),
        ("short", ecg(2, 72), 250),
        ("slow", ecg(60, 72, rate=20), 20),
        ("one_sample", np.ones(1), 250),
        ("one_beat", np.where(np.arange(15000) == 7000, 1.0, 0.0), 250),
    ],
)
def test_no_heart_rate_where_there_is_none(
    waveforms: ModuleType, tmp_path: Path, name: str, signal: np.ndarray, rate: int
) -> None:
    with warnings.catch_warnings():
        record = write_ecg(tmp_path, name, {"II": signal}, rate=rate)
        warnings.simplefilter("error")
        (row,) = waveforms.segment_features(record)
    assert row["heart_rate"] is None
    assert row["n_samples"] == len(signal)


def test_only_voltages_named_as_leads_are_ecg(waveforms: ModuleType) -> None:
    def is_ecg(name: str, unit: str) -> bool:
        return bool(waveforms._Signal(name, unit, 125.0, 1).is_ecg)

    for name in ("I", "II", "iii", "aVR", "AVF", "V", "V1", "v6", "MCL1", "MLII", "ECG", "ECG Lead II", "ecg_1", "vx"):
        assert is_ecg(name, "mV"), name
    for name, unit in (("V", "mmHg"), ("PLETH", "mV"), ("RESP", "mV"), ("ABP", "mmHg"), ("II", "NU"), ("FECG", "mV")):
        assert not is_ecg(name, unit), name


@pytest.mark.parametrize(
    ("key", "record"),
    [
        ("30/3000003/3000003.hea", "30/3000003/3000003"),
        ("30/3000003/3000003_layout.hea", "30/3000003/3000003"),
        ("30/3000003/3000003_0012.dat", "30/3000003/3000003"),
        ("30/3000003/3000003n.hea", "30/3000003/3000003n"),
        ("waves/p100/p10014354/81739927/81739927_0002e.dat", "waves/p100/p10014354/81739927/81739927"),
        ("p00/p000020/3000101.d1", "p00/p000020/3000101"),
        ("A0001.mat", "A0001"),
        ("30/RECORDS", None),
        ("30/3000003/index.html", None),
        ("waves/p100/81739927n.csv.gz", None),
    ],
)
def test_record_key(waveforms: ModuleType, key: str, record: str | None) -> None:
    assert waveforms.record_key(key) == record


@pytest.mark.whole
def test_a_folder_of_records_reads_no_segment_twice(waveforms: ModuleType, waveform_data: tuple[Path, Any]) -> None:
    folder, made = waveform_data
    per_folder: dict[Path, int] = {}
    for key in made.heart_rates:
        parent = (folder / key).parent
        per_folder[parent] = per_folder.get(parent, 0) + 1
    bad = {(folder / key).parent for key in made.bad}
    for parent, n_records in per_folder.items():
        if parent not in bad:
            paths = sorted(path for path in parent.iterdir() if path.is_file())
            rows = waveforms.segment_features(FileRecord(folder, parent.relative_to(folder).as_posix(), paths))
            assert len({row["name"] for row in rows}) == n_records


def test_the_patient_is_the_last_folder_that_names_one(waveforms: ModuleType, tmp_path: Path) -> None:
    record = write_ecg(tmp_path, "r", {"II": ecg(10, 72)})
    for key, patient in (
        ("p00/p000020/3000003/3000003", "p000020"),
        ("waves/p100/p10014354/81739927/81739927", "p10014354"),
        ("30/3000003/3000003", None),
    ):
        record.key = key
        assert waveforms.segment_features(record)[0]["patient"] == patient


def test_a_record_without_header_says_so(waveforms: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "alone.dat").write_bytes(b"\0" * 8)
    with pytest.raises(ValueError, match=r"no WFDB header.*alone\.dat"):
        waveforms.segment_features(file_record(tmp_path, "alone.dat"))


@pytest.mark.parametrize(
    "header", [b"", b"# nothing\n", b"\x00\xff\x01" * 99, b"hello\nworld\n", b"bad 2 125 9\nbad.dat 16\n"]
)
def test_a_malformed_header_says_so(waveforms: ModuleType, tmp_path: Path, header: bytes) -> None:
    (tmp_path / "bad.hea").write_bytes(header)
    (tmp_path / "bad.dat").write_bytes(b"\0" * 36)
    with pytest.raises(ValueError, match=r"^bad\.hea"):
        waveforms.segment_features(FileRecord(tmp_path, "bad", files_under(tmp_path)))


def test_a_segment_in_another_unit_is_refused(waveforms: ModuleType, tmp_path: Path) -> None:
    for i in (1, 2):
        write_ecg(tmp_path, f"m_000{i}", {"II": ecg(10, 72)})
    second = tmp_path / "m_0002.hea"
    second.write_text(second.read_text().replace("/mV", "/uV"))
    (tmp_path / "m.hea").write_text("m/2 1 250 5000\nm_0001 2500\nm_0002 2500\n")
    with pytest.raises(ValueError, match=r"m_0002\.hea has II .* in uV, the record .* in mV"):
        waveforms.segment_features(FileRecord(tmp_path, "m", files_under(tmp_path)))


def test_a_truncated_signal_file_is_never_read_in_part(waveforms: ModuleType, tmp_path: Path) -> None:
    record = write_ecg(tmp_path, "cut", {"II": ecg(20, 72), "V": ecg(20, 72)})
    data = (tmp_path / "cut.dat").read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 4, len(data) - 1):
        (tmp_path / "cut.dat").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.dat cannot be read"):
            waveforms.segment_features(record)


def test_the_network_stays_out_of_it(
    waveforms: ModuleType, waveform_data: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for files that are not there, which wfdb could find on PhysioNet."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    records = records_by(waveforms.record_key, waveform_data[0])
    _, errors = plain_loop(waveforms.segment_features, {key: records[key] for key in waveform_data[1].bad})
    assert len(errors) == 3
    assert {type(error) for error in errors.values()} == {ValueError, FileNotFoundError}


@pytest.mark.whole
def test_waveform_generator_is_deterministic(waveform_generator: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        waveform_generator.generate(tmp_path / name, records=12, seconds=10, bad=3, skew=True)
    waveform_generator.generate(tmp_path / "c", records=12, seconds=10, bad=3, skew=True, seed=8)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_waveform_generator_counts_what_it_writes(waveform_data: tuple[Path, Any]) -> None:
    folder, made = waveform_data
    files = files_under(folder)
    assert made.files == len(files)
    assert made.bytes == sum(path.stat().st_size for path in files)
    assert sum(made.kinds.values()) == made.records == 24
    assert made.kinds["bad"] == len(made.bad) == 3


def test_headers_say_what_the_signals_are(waveform_data: tuple[Path, Any]) -> None:
    """The first samples and the checksums, which wfdb reads and compares with nothing."""
    import wfdb

    folder, made = waveform_data
    kinds = [
        next(key for key in made.heart_rates if (folder / f"{key}{end}").is_file())
        for end in (".dat", ".d0", "_0001.dat")
    ]
    for stem in (kinds[0], kinds[1], f"{kinds[2]}_0001"):
        record = wfdb.rdrecord(str(folder / stem), physical=False, smooth_frames=False)
        assert record.init_value == [signal[0] for signal in record.e_d_signal]
        assert record.checksum == [signal.sum() % 65536 for signal in record.e_d_signal]
        assert record.sig_len * sum(record.samps_per_frame) == sum(map(len, record.e_d_signal))


@pytest.mark.whole
def test_waveform_generator_skews(waveform_generator: ModuleType, tmp_path: Path) -> None:
    waveform_generator.generate(tmp_path, records=60, seconds=60, bad=0, skew=True)
    sizes = [path.stat().st_size for path in files_under(tmp_path) if path.suffix == ".dat"]
    assert max(sizes) > 8 * np.median(sizes)


# ---- mimic_waveforms: real records -----------------------------------------------------------------------------

WFDB = SHARED_DATA / "wfdb"

NOT_WHOLE = {
    "1003", "12726", "drive02", "drive02-no-len", "n16", "n8_evoked_raw_95_F1_R9", "wave_4",
    "p000878-2137-10-26-16-57", "s00001-2896-10-10-00-31", "3975656_0009", "3975656_0010", "3975656_0011",
}  # fmt: skip
"""Headers whose signal files or segments are not in the sample."""

MALFORMED = {"E00009", "E00015", "E00018", "E00793", "13_20200329_041507_1719"}
"""Headers that break the format: a dot or a folder in the record's name."""


def real_headers() -> list[Path]:
    """Those that cannot be read, and one of each kind in each folder: how a record is read depends on nothing else."""
    headers = sorted(WFDB.rglob("*.hea")) if WFDB.is_dir() else []
    broken = [header for header in headers if header.stem in NOT_WHOLE | MALFORMED]
    whole = [header for header in headers if header not in broken]
    return broken + [
        header
        for folder in sorted({header.parent for header in whole})
        for header in one_of_each_kind(each for each in whole if each.parent == folder)
    ]


@pytest.mark.whole
@shared_data
@pytest.mark.parametrize("header", real_headers(), ids=lambda path: path.stem)
def test_real_headers(waveforms: ModuleType, monkeypatch: pytest.MonkeyPatch, header: Path) -> None:
    monkeypatch.setattr(waveforms, "HEART_RATE_SECONDS", 6)  # detected, but not compared: `test_real_heart_rates` does
    record = FileRecord(WFDB, header.relative_to(WFDB).with_suffix("").as_posix(), [header])
    if header.stem in NOT_WHOLE:
        with pytest.raises(FileNotFoundError):
            waveforms.segment_features(record)
    elif header.stem in MALFORMED:
        with pytest.raises(ValueError, match=r"is not a WFDB header"):
            waveforms.segment_features(record)
    elif header.stem.endswith(("_layout", "_0000")):
        assert waveforms.segment_features(record) == []
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows = waveforms.segment_features(record)
        assert_equal_to_one_reading(rows, header.with_suffix(""))


@pytest.mark.whole
@shared_data
def test_real_heart_rates(waveforms: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leads of one heart agree, and with the annotations of the cardiologists where there are some."""
    monkeypatch.setattr(waveforms, "HEART_RATE_SECONDS", 180)
    sample = WFDB / "wfdb-python-sample-data"
    for name, truth in (("100", 75.5), ("s0010_re", 81.8), ("test01_00s", 92.3), ("v102s", 103.4), ("a103l", 127.1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows = waveforms.segment_features(FileRecord(sample, name, [sample / f"{name}.hea"]))
        rates = [row["heart_rate"] for row in rows if row["heart_rate"] is not None]
        assert len(rates) >= 2
        assert np.median(rates) == pytest.approx(truth, rel=0.02)


# ---- talent_jsonl: the function --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ads() -> ModuleType:
    return load("talent_jsonl", "ads")


@pytest.fixture(scope="module")
def ad_generator() -> ModuleType:
    return load("talent_jsonl", "generate")


AD = {
    "id": "7",
    "title": "Data Engineer",
    "description": "Remote work, SQL and python; remote team.",
    "location": {"country": "CA", "city": "Montréal"},
    "salary": {"min": 60000, "max": 90001},
    "tags": ["sql", "python"],
    "posted_at": "2020-01-31T13:45:00Z",
}


def rows_of(
    ads: ModuleType, folder: Path, *lines: str | bytes | dict[str, Any], key: str = "a.jsonl"
) -> list[dict[str, Any]]:
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return list(ads.ad_features(file_record(folder, key)))


def test_the_features_of_an_ad(ads: ModuleType, tmp_path: Path) -> None:
    assert rows_of(ads, tmp_path, AD, key="ads/2020/01/31/part-00000.jsonl") == [
        {
            "id": "7",
            "title_length": 13,
            "description_length": 41,
            "n_tokens": 7,
            "n_unique_tokens": 6,
            "country": "CA",
            "salary_mid": 75000.5,
            "title_hash": int(hashlib.md5(b"data engineer").hexdigest()[:8], 16),
            "n_tags": 2,
            "remote": True,
            "hour_posted": 13,
            "lead": "remote work, sql and python; remote team.",
            "day": "2020-01-31",
        }
    ]


def test_what_an_ad_leaves_out_is_none(ads: ModuleType, tmp_path: Path) -> None:
    bare = {"id": "7", "title": "", "description": ""}
    nulls = {**bare, "location": None, "salary": None, "tags": None, "posted_at": None}
    inner = {**bare, "location": {"country": None}, "salary": {"min": None}, "posted_at": "2020-01-31"}
    for row in rows_of(ads, tmp_path, bare, nulls, inner):
        names = ("country", "salary_mid", "n_tags", "hour_posted", "day")
        assert [row[name] for name in names] == [None] * 5
        assert (row["n_tokens"], row["remote"], row["lead"]) == (0, False, "")


@pytest.mark.parametrize(
    ("salary", "middle"),
    [
        (50000, 50000.0),
        (50000.5, 50000.5),
        ({"min": 1, "max": 2}, 1.5),
        ({"min": 1, "max": 3}, 2.0),
        ({"min": 10.5, "max": 11}, 10.75),
        ({"min": 30000}, 30000.0),
        ({"max": 40000, "min": None}, 40000.0),
        ({}, None),
    ],
)
def test_a_salary_is_a_float(ads: ModuleType, tmp_path: Path, salary: Any, middle: float | None) -> None:
    (row,) = rows_of(ads, tmp_path, {**AD, "salary": salary})
    assert row["salary_mid"] == middle
    assert type(row["salary_mid"]) in (float, type(None))


def test_blank_lines_byte_order_mark_and_line_ends(ads: ModuleType, tmp_path: Path) -> None:
    line = json.dumps(AD).encode()
    rows = rows_of(
        ads, tmp_path, b"\xef\xbb\xbf" + line + b"\r", b"", b"  \t\r", line.replace(b"work", "\u2028\x85".encode())
    )
    assert [row["id"] for row in rows] == ["7", "7"]
    assert rows_of(ads, tmp_path, b"") == []


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"id": "7", "title": "cut off he', "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"null", "an ad must be an object, not null"),
        (b"[1]", "an ad must be an object, not a list"),
        (b"7", "an ad must be an object, not a number"),
        (b"\x1f\x8b\x08\x00\xff", "not UTF-8 text"),
        ("é".encode("latin-1"), "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply|not valid JSON"),
        ({k: v for k, v in AD.items() if k != "id"}, "the required field 'id' is missing"),
        ({k: v for k, v in AD.items() if k != "title"}, "the required field 'title' is missing"),
        ({**AD, "description": None}, "the required field 'description' is missing"),
        ({**AD, "title": 7}, "the field 'title' must be text, not a number"),
        ({**AD, "id": [7]}, "the field 'id' must be text or a number, not a list"),
        ({**AD, "location": "Lyon"}, "the field 'location' must be an object, not text"),
        ({**AD, "location": {"country": 7}}, "the field 'country' must be text, not a number"),
        ({**AD, "salary": "by agreement"}, "the field 'salary' must be .*, not text"),
        ({**AD, "salary": {"min": True, "max": 2}}, "the field 'min' must be .*, not true or false"),
        ({**AD, "salary": 10**400}, "too large"),
        ({**AD, "salary": float("nan")}, "not valid JSON: NaN is no number"),
        ({**AD, "tags": "sql"}, "the field 'tags' must be a list, not text"),
        ({**AD, "posted_at": "31 January, 2020"}, "the field 'posted_at' is '31 January, 2020'"),
        ({**AD, "posted_at": "2020-01-31T24:00:00Z"}, "the field 'posted_at'"),
        ({**AD, "description": "half a pair: \ud800"}, "surrogates not allowed"),
    ],
)
def test_a_malformed_line_is_named_with_its_cause(
    ads: ModuleType, tmp_path: Path, line: bytes | dict[str, Any], cause: str
) -> None:
    with pytest.raises(ValueError, match=rf"^line 3: .*(?:{cause})"):
        rows_of(ads, tmp_path, AD, "", line, AD)


def test_numeric_ids_become_text(ads: ModuleType, tmp_path: Path) -> None:
    assert [row["id"] for row in rows_of(ads, tmp_path, {**AD, "id": 7}, AD)] == ["7", "7"]


@pytest.mark.parametrize(
    ("key", "day"),
    [
        ("2020/01/31/part-00000.jsonl", "2020-01-31"),
        ("ads/2020-02-29.jsonl", "2020-02-29"),
        ("ads/2021-02-29.jsonl", None),
        ("ads/12020/01/31/x.jsonl", None),
        ("part-00000.jsonl", None),
    ],
)
def test_the_day_comes_from_the_path(ads: ModuleType, key: str, day: str | None) -> None:
    assert ads.day_of(key) == day


def test_generated_ads(ads: ModuleType, ad_generator: ModuleType, tmp_path: Path) -> None:
    made = ad_generator.generate(tmp_path, files=12, ads=30, days=3, start="2020-02-28", bad=3)
    records = {path.relative_to(tmp_path).as_posix(): path for path in files_under(tmp_path)}
    rows, errors = plain_loop(ads.ad_features, {key: file_record(tmp_path, key) for key in records})
    assert made.files == len(records) == 12
    assert made.bytes == sum(path.stat().st_size for path in records.values())
    assert set(errors) == set(made.bad)
    assert all("line " in str(error) for error in errors.values())
    assert len(rows) == made.ads + sum(0 for _ in errors) == 9 * 30
    assert {row["day"] for row in rows} == {"2020-02-28", "2020-02-29", "2020-03-01"}
    integers = (
        "title_length",
        "description_length",
        "n_tokens",
        "n_unique_tokens",
        "title_hash",
        "n_tags",
        "hour_posted",
    )
    texts = ("id", "country", "lead", "day")
    assert column_types(rows) == {
        **{name: {int} for name in integers},
        **{name: {str} for name in texts},
        "salary_mid": {float},
        "remote": {bool},
    }
    assert any(not row["lead"].isascii() for row in rows), "more than one language"


def test_ad_generator_is_deterministic(ad_generator: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ad_generator.generate(tmp_path / name, files=6, ads=10, bad=3, skew=True)
    ad_generator.generate(tmp_path / "c", files=6, ads=10, bad=3, skew=True, seed=8)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_ad_generator_skews(ad_generator: ModuleType, tmp_path: Path) -> None:
    ad_generator.generate(tmp_path, files=300, ads=20, bad=0, skew=True)
    sizes = [path.stat().st_size for path in files_under(tmp_path)]
    assert max(sizes) > 20 * np.median(sizes)


# ---- talent_jsonl: real files ----------------------------------------------------------------------------------

JSONL = SHARED_DATA / "jsonl"


@shared_data
def test_every_real_json_file_gives_rows_or_names_its_line(ads: ModuleType) -> None:
    """Whatever the file, an error says where and why."""
    records = {
        path.relative_to(JSONL).as_posix(): file_record(JSONL, path.relative_to(JSONL).as_posix())
        for path in files_under(JSONL)
    }
    _, errors = plain_loop(ads.ad_features, records)
    for key, error in errors.items():
        assert type(error) is ValueError, key
        assert str(error).startswith("line "), key


def as_ads(source: Path) -> list[dict[str, Any]]:
    """The lines of a real file of jobs or papers under the names of the example."""
    items = [json.loads(line) for line in source.read_text("utf-8").splitlines() if line.strip()]
    if "position_title" in items[0]:
        return [
            {
                "id": item["control_number"],
                "title": item["position_title"],
                "description": " ".join(filter(None, [item["department"], item["agency"], item["appointment_type"]])),
                "location": {"country": "US"},
                "tags": item["hiring_paths"],
                "posted_at": item["open_date"],
            }
            for item in items
        ]
    return [
        {"id": item["id"], "title": item["title"], "description": item["summary"], "tags": item["categories"]}
        for item in items
    ]


def real_ads(out: Path, *, every: int = 1) -> int:
    """Write the real files, or one in so many, as ads under ``out``, in folders; returns how many ads they are."""
    total = 0
    sources = [*sorted(JSONL.glob("usajobs_by_date/**/*.jsonl")), *sorted(JSONL.glob("arxiv/*.jsonl"))]
    for source in sources[::every]:
        items = as_ads(source)
        target = out / Path(*source.stem.split("-")) / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a") as lines:
            lines.writelines(json.dumps(item) + "\n" for item in items)
        total += len(items)
    return total


@pytest.mark.whole
@shared_data
def test_real_ads(ads: ModuleType, tmp_path: Path) -> None:
    total = real_ads(tmp_path)
    keys = [path.relative_to(tmp_path).as_posix() for path in files_under(tmp_path)]
    rows, errors = plain_loop(ads.ad_features, {key: file_record(tmp_path, key) for key in keys})
    assert not errors
    assert len(rows) == total > 1000
    assert all(row["day"] for row in rows)


# ---- blank -----------------------------------------------------------------------------------------------------


def test_blank(tmp_path: Path) -> None:
    names = load("blank", "generate").generate(tmp_path)
    function = load("blank", "function")
    rows = [function.rows(file_record(tmp_path, name)) for name in names]
    assert [row["n_lines"] for row in rows] == list(range(1, 21))
    assert rows[0] == {"key": "file-001.txt", "bytes": len("line 1 of 1\n"), "n_lines": 1}


# ---- whole examples, through the command line ------------------------------------------------------------------


def copy_example(name: str, folder: Path) -> Path:
    return Path(
        shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("data", "out", "__pycache__"))
    )


def make_input(example: Path, *arguments: str) -> None:
    """Run the example's generator as its README says."""
    done = warm.run([example / "generate.py", "data", *arguments], cwd=example, env=os.environ, timeout_s=300)
    assert done.returncode == 0, done.stderr


def run_pipeline(example: Path, *arguments: str, pipeline: str = "pipeline.yaml") -> dict[str, Any]:
    """Run an example's pipeline in its folder; returns the JSON in the last line of its stdout."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(example)
        done = in_process.command("run", pipeline, "--json", *arguments)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def dataset_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the dataset's files; names that start with _ are not the dataset's."""
    parts = [
        path for path in files_under(folder)
        if path.suffix == ".parquet" and not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    ]  # fmt: skip
    return [row for path in parts for row in pq.read_table(path, partitioning=None).to_pylist()]


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as text, in an order that does not depend on who wrote them.

    To nine digits: workers compute with one thread of BLAS, this process with several, which sum in another order.
    """
    rounded = [{k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    return sorted(json.dumps(row, sort_keys=True) for row in rounded)


def assert_run_equals_loop(
    example: Path, result: dict[str, Any], loop: tuple[list[dict[str, Any]], dict[str, Exception]]
) -> None:
    """The ledger balances, the quarantine is the loop's failures, and the dataset the loop's rows."""
    rows, errors = loop
    records = result["records"]
    assert result["status"] == "done"
    assert records["listed"] == records["done"] + records["quarantined"] + records["skipped"]
    assert records["quarantined"] == len(errors)
    assert result["rows"] == len(rows)
    assert in_order(dataset_rows(example / "out")) == in_order(rows)


@pytest.mark.whole
def test_cli_waveforms(waveforms: ModuleType, tmp_path: Path) -> None:
    example = copy_example("mimic_waveforms", tmp_path)
    make_input(example, "--records", "20", "--seconds", "10", "--bad", "1", "--skew")
    loop = plain_loop(waveforms.segment_features, records_by(waveforms.record_key, example / "data"))
    result = run_pipeline(example, "--workers", "1")  # of which each takes a second to import wfdb
    assert result["records"] == {"listed": 20, "done": 19, "quarantined": 1, "skipped": 0}
    assert_run_equals_loop(example, result, loop)


@pytest.mark.whole
def test_cli_ads(ads: ModuleType, tmp_path: Path) -> None:
    example = copy_example("talent_jsonl", tmp_path)
    make_input(example, "--files", "60", "--ads", "20", "--days", "2", "--bad", "3", "--skew")
    keys = [path.relative_to(example / "data").as_posix() for path in files_under(example / "data")]
    loop = plain_loop(ads.ad_features, {key: file_record(example / "data", key) for key in keys})
    result = run_pipeline(example)
    assert result["records"] == {"listed": 60, "done": 57, "quarantined": 3, "skipped": 0}
    assert_run_equals_loop(example, result, loop)


@pytest.mark.whole
def test_cli_huge_files(tmp_path: Path) -> None:
    import pandas as pd

    example = copy_example("huge_files", tmp_path)
    make_input(example, "--rows", "20000", "--samples", "50")
    size = ("--set", "records.target_bytes=150kB")
    assert run_pipeline(example, *size, pipeline="orders.yaml")["records"]["done"] > 3
    pieces = pd.DataFrame(dataset_rows(example / "orders"))
    sums = pieces.groupby("customer")[["orders", "total", "notes"]].sum()
    whole = pd.read_csv(example / "data" / "orders.csv").groupby("customer")
    expected = whole.agg(orders=("order", "size"), total=("price", "sum"), notes=("note", "count"))
    pd.testing.assert_frame_equal(sums, expected)
    run_pipeline(example, pipeline="samples.yaml")
    samples = dataset_rows(example / "samples")
    assert [row["key"] for row in samples] == [f"train.tar/{number:06d}" for number in range(50)]
    assert all(row["label"] <= row["words"] for row in samples)


@pytest.mark.whole
def test_cli_blank(tmp_path: Path) -> None:
    example = copy_example("blank", tmp_path)
    make_input(example)
    names = [path.name for path in files_under(example / "data")]
    function = load("blank", "function")
    loop = plain_loop(function.rows, {name: file_record(example / "data", name) for name in names})
    assert_run_equals_loop(example, run_pipeline(example), loop)


@pytest.mark.whole
@shared_data
def test_cli_real_waveforms(waveforms: ModuleType, tmp_path: Path) -> None:
    """All kinds of real records at once, broken and incomplete ones among them, but for the few that take seconds."""
    example = copy_example("mimic_waveforms", tmp_path)
    keys = {waveforms.record_key(header.relative_to(WFDB).as_posix()) for header in real_headers()}
    records = {key: record for key, record in records_by(waveforms.record_key, WFDB).items() if key in keys}
    short = [r for r in records.values() if sum(path.stat().st_size for path in r.paths) < 60_000]
    for path in (path for record in short for path in record.paths):
        copy = tmp_path / "records" / path.relative_to(WFDB)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    records = records_by(waveforms.record_key, tmp_path / "records")
    loop = plain_loop(waveforms.segment_features, records)
    options = ("--workers", "1", "--set", f"input.uri={tmp_path / 'records'}", "--set", "max_failures=100%")
    result = run_pipeline(example, *options)
    assert result["records"]["listed"] == len(records)
    assert_run_equals_loop(example, result, loop)


@pytest.mark.whole
@shared_data
def test_cli_real_ads(ads: ModuleType, tmp_path: Path) -> None:
    example = copy_example("talent_jsonl", tmp_path)
    real_ads(example / "data", every=12)
    keys = [path.relative_to(example / "data").as_posix() for path in files_under(example / "data")]
    loop = plain_loop(ads.ad_features, {key: file_record(example / "data", key) for key in keys})
    assert_run_equals_loop(example, run_pipeline(example), loop)


@pytest.mark.whole
@shared_data
def test_cli_torture(ads: ModuleType, tmp_path: Path) -> None:
    """Every file that was made to break a JSON reader: all in the ledger, whatever becomes of them."""
    example = copy_example("talent_jsonl", tmp_path)
    good = example / "data" / "good.jsonl"
    good.parent.mkdir()
    good.write_text(json.dumps(AD) + "\n")
    for name in ("torture_duckdb", "torture_JSONTestSuite"):
        shutil.copytree(JSONL / name, example / "data" / name, copy_function=shutil.copyfile)
    files = [path for path in files_under(example / "data") if not path.name.startswith(("_", "."))]
    keys = [path.relative_to(example / "data").as_posix() for path in files]
    loop = plain_loop(ads.ad_features, {key: file_record(example / "data", key) for key in keys})
    assert 0 < len(loop[1]) < len(keys)
    result = run_pipeline(example, "--set", "input.pattern=*", "--set", "max_failures=100%")
    assert result["records"]["listed"] == len(keys)
    assert_run_equals_loop(example, result, loop)
