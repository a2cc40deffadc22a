"""Write made-up WFDB waveform records, laid out as the MIMIC waveform databases are.

    python generate.py data --records 200

writes, for instance,

    data/p03/p031245/3000101.hea, .dat          one header, one signal file
    data/p03/p031245/3000102.hea, .d0, .d1      one header, several signal files
    data/p03/p031245/3000103/3000103.hea        a master header, its layout header and segments
    data/p03/p031245/3000103/3000103_layout.hea, 3000103_0001.hea, 3000103_0001.dat, ...

The same arguments write the same bytes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Samples = npt.NDArray[np.float64]

RATE = 125
"""Samples per second of most records, as bedside monitors store them."""

UNITS = {"II": "mV", "V": "mV", "PLETH": "NU", "ABP": "mmHg", "RESP": "pm"}
GAINS = {"II": 2000.0, "V": 2000.0, "PLETH": 10000.0, "ABP": 100.0, "RESP": 10000.0}

LONGEST = 40
"""With ``skew``, the longest record is at most this many times as long as asked for."""


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        records: how many records, bad ones included.
        kinds: how many of each kind, bad ones under ``bad``.
        files: how many files.
        bytes: their total size.
        heart_rates: the true heart rate of every good record, in beats per minute, by record key.
        bad: what is wrong with each bad record, by record key.
    """

    records: int
    kinds: dict[str, int]
    files: int
    bytes: int
    heart_rates: dict[str, float]
    bad: dict[str, str]


def _note(out: Path) -> Path:
    """The file beside the folder with the names of the files in it that this module has written."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name}.made-up")


def _cleared(out: Path) -> set[str]:
    """Remove what an earlier call has written, and nothing else; returns the names of the files that stay."""
    note = _note(out)
    for name in note.read_text("utf-8").splitlines() if note.is_file() else ():
        path = out / name
        path.unlink(missing_ok=True)
        while path.parent != out and path.parent.is_dir() and not any(path.parent.iterdir()):
            path = path.parent
            path.rmdir()
    return _names(out)


def _names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def generate(
    out: str | Path, *, records: int = 200, seed: int = 7, seconds: float = 30.0, bad: int = 3, skew: bool = False
) -> Summary:
    """Write ``records`` records under ``out``, ``bad`` of them broken, in place of those that it has written before.

    Args:
        out: the folder to write to; made if absent.
        records: how many records, the bad ones included.
        seed: another seed writes other records.
        seconds: how long a record is; with ``skew``, roughly the mean.
        bad: how many records are broken, each in one of three ways in turn.
        skew: give the lengths a heavy tail: most records shorter, a few many times as long.
    """
    if records < 1 or not 0 <= bad <= records or seconds < 1:
        raise ValueError("records must be at least 1, seconds at least 1, and bad from 0 to records")
    others = _cleared(Path(out))
    rng = np.random.default_rng(seed)
    folders = _patient_folders(rng, records)
    broken = set(rng.choice(records, size=bad, replace=False).tolist())
    kinds: Counter[str] = Counter()
    heart_rates: dict[str, float] = {}
    reasons: dict[str, str] = {}
    sizes: list[int] = []
    for i, folder in enumerate(folders):
        rng = np.random.default_rng([seed, i])  # a record of its own, however many there are
        name = f"{3_000_000 + 7 * i + int(rng.integers(7))}"
        kind = "one file" if i in broken else str(rng.choice(list(WRITERS), p=[0.5, 0.15, 0.15, 0.08, 0.12]))
        in_own_folder = kind in ("fixed layout", "variable layout")
        key = f"{folder}/{name}/{name}" if in_own_folder else f"{folder}/{name}"
        path = Path(out, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        heart_rate = round(float(rng.uniform(48, 130)), 1)
        WRITERS[kind](path, _Patient(rng, heart_rate, _length(rng, seconds, skew=skew)))
        if i in broken:
            reasons[key] = _break(path, len(reasons))
        else:
            heart_rates[key] = heart_rate
        kinds["bad" if i in broken else kind] += 1
        sizes += [file.stat().st_size for file in path.parent.glob(f"{name}*") if file.is_file()]
    _note(Path(out)).write_text("\n".join(sorted(_names(Path(out)) - others)), "utf-8")
    return Summary(records, dict(kinds), len(sizes), sum(sizes), heart_rates, reasons)


def _patient_folders(rng: np.random.Generator, records: int) -> list[str]:
    """A patient folder for every record, such as p03/p031245; a patient has four records or so."""
    numbers = rng.choice(100_000, size=max(1, records // 4), replace=False)
    patients = rng.choice(numbers, size=records)
    return sorted(f"p{number:06d}"[:3] + f"/p{number:06d}" for number in patients)


def _length(rng: np.random.Generator, seconds: float, *, skew: bool) -> float:
    # A Pareto tail of index 1.2 has mean 6, hence the division.
    factor = min(LONGEST, (1 + rng.pareto(1.2)) / 6) if skew else rng.uniform(0.8, 1.2)
    return max(min(10.0, seconds), seconds * float(factor))


# ---- kinds of records ----------------------------------------------------------------------------------------


@dataclass
class _Patient:
    """Makes a record's signals."""

    rng: np.random.Generator
    heart_rate: float
    seconds: float

    def signals(self, *names: str, rates: dict[str, float] | None = None) -> list[Samples]:
        """The signals of these names, all of the same heartbeat, NaN where the monitor lost them."""
        beats = _beat_times(self.rng, self.heart_rate, self.seconds)
        n_frames = int(self.seconds * RATE / 2)
        signals = []
        for name in names:
            rate = (rates or {}).get(name, RATE)
            times = np.arange(round(n_frames * rate * 2 / RATE)) / rate
            signals.append(_lose_some(self.rng, SHAPES[name](self.rng, times, beats, rate)))
        return signals

    @property
    def comments(self) -> list[str]:
        return ["made up, by generate.py", f"heart_rate: {self.heart_rate}"]


def _write_one_file(path: Path, patient: _Patient) -> None:
    names = ["II", "PLETH", "ABP", "RESP"][: int(patient.rng.integers(2, 5))]
    _write(path, names, patient.signals(*names), patient.comments)


def _write_several_files(path: Path, patient: _Patient) -> None:
    names = ["II", "V", "PLETH", "ABP"]
    _write(path, names, patient.signals(*names), patient.comments, suffixes=["d0", "d0", "d1", "d2"])


def _write_several_rates(path: Path, patient: _Patient) -> None:
    """Frames of 62.5 a second that hold four samples of the ECG, two of the PPG, one of the respiration."""
    per_frame = {"II": 4, "PLETH": 2, "RESP": 1}
    signals = patient.signals(*per_frame, rates={name: n * RATE / 2 for name, n in per_frame.items()})
    _write(path, list(per_frame), signals, patient.comments, rate=RATE / 2, per_frame=list(per_frame.values()))


def _write_fixed_layout(path: Path, patient: _Patient) -> None:
    """Two or three segments with the same signals, one after another without gaps."""
    names = ["II", "V", "PLETH"]
    signals = patient.signals(*names)
    n_segments = int(patient.rng.integers(2, 4))
    segments = []
    for i, parts in enumerate(zip(*(np.array_split(signal, n_segments) for signal in signals), strict=True), start=1):
        segments.append((f"{path.name}_{i:04d}", len(parts[0])))
        _write(path.with_name(segments[-1][0]), names, list(parts), [])
    _write_master(path, len(names), segments, patient.comments)


def _write_variable_layout(path: Path, patient: _Patient) -> None:
    """As in MIMIC-III: a layout header that lists all signals, segments with some of them each, and a gap."""
    names = ["II", "V", "PLETH", "ABP"]
    signals = patient.signals(*names)
    present = [["II", "PLETH"], None, ["V", "II", "ABP"], ["II"], names]
    shares = patient.rng.dirichlet(np.full(len(present), 3.0))
    edges = [0, *np.rint(np.cumsum(shares) * len(signals[0])).astype(int).tolist()]
    segments = [(f"{path.name}_layout", 0)]
    for here, start, stop in zip(present, edges[:-1], edges[1:], strict=True):
        if stop == start:
            continue
        if here is None:
            segments.append(("~", stop - start))
            continue
        segments.append((f"{path.name}_{len(segments):04d}", stop - start))
        _write(path.with_name(segments[-1][0]), here, [signals[names.index(name)][start:stop] for name in here], [])
    _write_layout(path, names)
    _write_master(path, len(names), segments, patient.comments)


def _write(
    path: Path,
    names: list[str],
    signals: list[Samples],
    comments: list[str],
    *,
    suffixes: list[str] | None = None,
    rate: float = RATE,
    per_frame: list[int] | None = None,
) -> None:
    """Write a record: its signals in samples of 16 bits, frame by frame, and its header.

    These are the bytes that wfdb would write, but wfdb takes 15 ms for a record.
    """
    suffixes = suffixes or ["dat"] * len(names)
    files: dict[str, list[npt.NDArray[np.int64]]] = {}
    lines = []
    for i, (name, signal, suffix) in enumerate(zip(names, signals, suffixes, strict=True)):
        samples = _digital(signal, GAINS[name])
        n = per_frame[i] if per_frame else 1
        files.setdefault(suffix, []).append(samples.reshape(-1, n))
        layout = f"16x{n}" if per_frame else "16"
        about = f"{layout} {GAINS[name]}(0)/{UNITS[name]} 16 0 {samples[0]} {samples.sum() % 65536} 0 {name}"
        lines.append(f"{path.name}.{suffix} {about}")
    for suffix, columns in files.items():
        path.with_name(f"{path.name}.{suffix}").write_bytes(np.hstack(columns).astype("<i2").tobytes())
    n_frames = len(files[suffixes[0]][0])
    _write_header(path, [f"{path.name} {len(names)} {rate} {n_frames}", *lines], comments)


def _digital(signal: Samples, gain: float) -> npt.NDArray[np.int64]:
    """What a converter of 16 bits makes of a signal; -32768 where there is none."""
    samples: npt.NDArray[np.int64] = np.where(np.isnan(signal), -32768, np.round(signal * gain)).astype(np.int64)
    return samples


def _write_header(path: Path, lines: list[str], comments: list[str]) -> None:
    lines = [*lines, *(f"# {comment}" for comment in comments)]
    path.with_name(f"{path.name}.hea").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _write_master(path: Path, n_sig: int, segments: list[tuple[str, int]], comments: list[str]) -> None:
    n_samples = sum(length for _, length in segments)
    first = f"{path.name}/{len(segments)} {n_sig} {RATE} {n_samples}"
    _write_header(path, [first, *(f"{name} {length}" for name, length in segments)], comments)


def _write_layout(path: Path, names: list[str]) -> None:
    """Write a header that lists the signals of all segments, and has no signal file."""
    first = f"{path.name}_layout {len(names)} {RATE} 0"
    lines = [f"~ 0 {GAINS[name]:g}(0)/{UNITS[name]} 16 0 0 0 0 {name}" for name in names]
    _write_header(path.with_name(f"{path.name}_layout"), [first, *lines], [])


WRITERS: dict[str, Callable[[Path, _Patient], None]] = {
    "one file": _write_one_file,
    "several files": _write_several_files,
    "several rates": _write_several_rates,
    "fixed layout": _write_fixed_layout,
    "variable layout": _write_variable_layout,
}


def _break(path: Path, turn: int) -> str:
    """Break the record at ``path`` in one of three ways; returns how."""
    header, signals = path.with_suffix(".hea"), path.with_suffix(".dat")
    if turn % 3 == 0:
        data = signals.read_bytes()
        signals.write_bytes(data[: len(data) // 3])
        return "the signal file is truncated"
    if turn % 3 == 1:
        signals.unlink()
        return "the header names a signal file that is absent"
    header.write_bytes(b"\x89PNG\r\n\x1a\n" + header.read_bytes()[::-1])
    return "the header is garbage"


# ---- shapes of signals ---------------------------------------------------------------------------------------


def _beat_times(rng: np.random.Generator, heart_rate: float, seconds: float) -> Samples:
    """When the heart beats, in seconds: intervals vary by a few percent around the mean, slower and faster in turn."""
    n = int(seconds * heart_rate / 60) + 3
    interval = 60 / heart_rate
    wave = 0.02 * np.sin(2 * np.pi * np.arange(n) * interval * 0.25)  # breathing, fifteen times a minute
    intervals = interval * (1 + wave + rng.normal(0, 0.01, n))
    times: Samples = np.cumsum(intervals) - rng.uniform(0.2, 1.0) * intervals[0]
    return times[times < seconds]


def _beats(times: Samples, beats: Samples, rate: float, bumps: list[tuple[float, float, float]]) -> Samples:
    """A train of beats, each a sum of bumps given by height, seconds after the beat and width in seconds."""
    impulses = np.zeros(len(times))
    at = np.rint(beats * rate).astype(int)
    impulses[at[at < len(times)]] = 1.0
    t = np.arange(-round(0.3 * rate), round(0.6 * rate)) / rate
    shape = np.zeros(len(t))
    for height, delay, width in bumps:
        shape += height * np.exp(-(((t - delay) / width) ** 2) / 2)
    start = round(0.3 * rate)
    train: Samples = np.convolve(impulses, shape)[start : start + len(times)]
    return train


def _ecg(rng: np.random.Generator, times: Samples, beats: Samples, rate: float, *, scale: float = 1.0) -> Samples:
    """P, Q, R, S and T waves in mV, on a baseline that wanders with the breath, with a little muscle noise."""
    bumps = [(0.12, -0.17, 0.02), (-0.12, -0.03, 0.009), (1.1, 0.0, 0.011), (-0.25, 0.03, 0.01), (0.25, 0.22, 0.04)]
    bumps = [(scale * height, delay, width) for height, delay, width in bumps]
    wander = 0.06 * np.sin(2 * np.pi * 0.25 * times + rng.uniform(0, 6))
    return _beats(times, beats, rate, bumps) + wander + rng.normal(0, 0.012, len(times))


def _chest_lead(rng: np.random.Generator, times: Samples, beats: Samples, rate: float) -> Samples:
    return _ecg(rng, times, beats, rate, scale=-0.8)


def _pleth(rng: np.random.Generator, times: Samples, beats: Samples, rate: float) -> Samples:
    pulse = _beats(times, beats, rate, [(0.5, 0.25, 0.07), (0.2, 0.45, 0.06)])
    return 0.3 + pulse + rng.normal(0, 0.003, len(times))


def _abp(rng: np.random.Generator, times: Samples, beats: Samples, rate: float) -> Samples:
    diastolic, pulse_pressure = rng.uniform(55, 75), rng.uniform(30, 55)
    pulse = _beats(times, beats, rate, [(1.0, 0.2, 0.06), (0.45, 0.38, 0.07)])
    return diastolic + pulse_pressure * pulse + rng.normal(0, 0.4, len(times))


def _resp(rng: np.random.Generator, times: Samples, beats: Samples, rate: float) -> Samples:
    del beats, rate
    return 0.5 + 0.4 * np.sin(2 * np.pi * 0.25 * times + rng.uniform(0, 6)) + rng.normal(0, 0.004, len(times))


SHAPES: dict[str, Callable[[np.random.Generator, Samples, Samples, float], Samples]] = {
    "II": _ecg,
    "V": _chest_lead,
    "PLETH": _pleth,
    "ABP": _abp,
    "RESP": _resp,
}


def _lose_some(rng: np.random.Generator, signal: Samples) -> Samples:
    """Remove a stretch of one signal in three, and all of one in fifty."""
    chance = rng.uniform()
    if chance < 0.02:
        signal[:] = np.nan
    elif chance < 0.35:
        length = int(len(signal) * rng.uniform(0.02, 0.25))
        start = int(rng.integers(len(signal) - length))
        signal[start : start + length] = np.nan
    return signal


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write made-up WFDB waveform records.")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--records", type=int, default=200, help="how many records, bad ones included (default: 200)")
    parser.add_argument("--seed", type=int, default=7, help="another seed writes other records (default: 7)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a record (default: 30)")
    parser.add_argument("--bad", type=int, default=3, help="how many records are broken (default: 3)")
    parser.add_argument("--skew", action="store_true", help="most records shorter, a few many times as long")
    args = parser.parse_args()
    made = generate(args.out, records=args.records, seed=args.seed, seconds=args.seconds, bad=args.bad, skew=args.skew)
    print(
        f"{made.records} records ({len(made.bad)} bad) in {made.files} files, {made.bytes / 1e6:.1f} MB, are in "
        f"{args.out}; now: shardkit run pipeline.yaml"
    )


if __name__ == "__main__":
    main()
