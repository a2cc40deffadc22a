"""Features of WFDB waveform records: one row a signal.

``segment_features`` is the function that the pipeline calls on every record, ``record_key`` the rule that says
which files make one record. Both work in a notebook as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import wfdb
from wfdb.processing import xqrs_detect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    import shardkit

    Samples = npt.NDArray[np.float64]

BLOCK_VALUES = 2**20
"""Values of all signals together that are read at a time: 8 MiB, however long the record is."""

HEART_RATE_SECONDS = 600
"""The heart rate is that of the first ten minutes of signal that are not missing: the detector is a Python loop,
by far the dearest step (a second or so for ten minutes), and more minutes barely move a median."""

DETECTOR_RATE = 250
"""Samples per second that the detector is given, or up to twice as many: the thresholds that it falls back on when
it cannot learn any fit this rate. At 1,000 it misses every beat of a clean lead, and takes sixteen times as long."""

MIN_RUN_SECONDS = 5.0
"""A shorter stretch between two gaps is left out of the heart rate: the detector has to learn a threshold first."""

MAX_GAP_SECONDS = 0.2
"""A gap of at most this long (less than one beat) is bridged by a straight line, a longer one ends the stretch."""

MIN_INTERVALS = 4
"""With fewer intervals between beats than this there is no heart rate."""

MIN_DETECTOR_RATE = 50
"""Samples per second that the detector's 5 to 20 Hz band-pass filter needs."""

RR_SECONDS = (0.25, 2.4)
"""Seconds between two beats that count, 25 to 240 beats per minute: the rest are missed beats and noise."""

_RECORD_FILE = re.compile(r"(?P<record>.+?)(?:_(?:layout|\d{4}[a-z]?))?\.(?:hea|dat|mat|xyz|d\d+)")
_PATIENT = re.compile(r"p\d{5,8}")
_ECG_LEAD = re.compile(r"ecg.*|(?:lead )?(?:i{1,3}|av[rlf]|v[1-9xyz]?|mcl\d?|ml(?:i{1,3}|\d))\+?", re.IGNORECASE)
_VOLTAGES = frozenset({"v", "mv", "uv", "µv", "nv"})


def record_key(key: str) -> str | None:
    """The name of the record that a file belongs to; ``None`` for a file that is in no record.

    A multi-segment record keeps its master header, layout header and segments in many files, whose names are the
    record's name with ``_layout``, ``_0001``, ``_0001e`` and so on. Together they are one record:

    >>> record_key("p00/p000020/3000003/3000003_0001.dat")
    'p00/p000020/3000003/3000003'
    >>> record_key("p00/p000020/3000003/3000003.hea")
    'p00/p000020/3000003/3000003'

    A record without segments consists of the files that share its name, and numerics (``n``) are a record of their own:

    >>> record_key("p00/p000020/3000101.d1")
    'p00/p000020/3000101'
    >>> record_key("30/3000003/3000003n.dat")
    '30/3000003/3000003n'
    >>> record_key("30/RECORDS") is None
    True
    """
    folder, slash, name = key.rpartition("/")
    match = _RECORD_FILE.fullmatch(name)
    return f"{folder}{slash}{match['record']}" if match else None


def segment_features(record: shardkit.Record) -> list[dict[str, Any]]:
    """The features of every signal of a record.

    Every header (``.hea``) among the record's files is read, except those that a master header names as its
    segments: they are read as parts of it. So a record may be one header with its signal files, a multi-segment
    record, or a whole folder of either.

    Returns:
        One dict a signal, in header order: ``record``, ``name`` (of the WFDB record), ``patient``, ``signal``,
        ``unit`` (str or None); ``sampling_rate`` (samples per second, float); ``n_samples`` (int);
        ``missing_share`` (0 to 1); ``mean``, ``std``, ``min``, ``max`` (in ``unit``), ``skewness``, ``kurtosis``
        (excess) of the samples that are there; ``heart_rate`` (beats per minute, ECG leads only). A feature that
        is not defined, such as the mean of a signal that is missing throughout, is None.

    Raises:
        ValueError: the record has no header, or a header or signal file is malformed.
        FileNotFoundError: a header names a file that is not there.
    """
    patient = next((part for part in reversed(record.key.split("/")) if _PATIENT.fullmatch(part)), None)
    return [
        {"record": record.key, "name": stem.name, "patient": patient, **signal.features()}
        for stem in _wfdb_records(record.paths)
        for signal in _read_signals(stem)
    ]


# ---- records, segments, blocks -------------------------------------------------------------------------------


def _wfdb_records(paths: Sequence[Path]) -> list[Path]:
    """The WFDB records among the files, as paths without suffix; segments of another one are left out."""
    headers = sorted(path for path in paths if path.suffix == ".hea")
    if not headers:
        raise ValueError(f"no WFDB header (.hea) among the record's files: {', '.join(path.name for path in paths)}")
    segments = {name for path in headers for name in _segment_names(path)}
    return [path.with_suffix("") for path in headers if path.stem not in segments]


def _segment_names(header: Path) -> list[str]:
    """The segments that a master header names; none for the header of a record without segments."""
    lines = header.read_text("ascii", errors="ignore").splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not lines or not re.match(r"[-\w]+/\d+\s", lines[0]):
        return []
    return [line.split()[0] for line in lines[1:]]


def _read_signals(stem: Path) -> list[_Signal]:
    header = _read_header(stem)
    if isinstance(header, wfdb.MultiRecord):
        return _read_segments(stem, header)
    if not header.n_sig or set(header.file_name) == {"~"}:  # a layout header describes signals and holds none
        return []
    signals = _signals(header)
    for block in _read_blocks(stem, header, n_frames=header.sig_len):
        for signal, samples in zip(signals, block, strict=True):
            signal.add(samples)
    return signals


def _read_segments(stem: Path, master: wfdb.MultiRecord) -> list[_Signal]:
    """Read a multi-segment record one segment after another, so that its length does not cost memory.

    A record of variable layout has a segment of no length first, whose header lists all signals; its segments
    hold some of them each, recognized by their names. With a fixed layout, all segments hold the same signals.
    """
    if (len(master.seg_name), sum(master.seg_len)) != (master.n_seg, master.sig_len or sum(master.seg_len)):
        raise ValueError(
            f"{stem.name}.hea announces {master.n_seg} segments of {master.sig_len} samples together, and lists "
            f"{len(master.seg_name)} of {sum(master.seg_len)}"
        )
    names = [name for name in master.seg_name if name != "~"]
    if not names:
        raise ValueError(f"{stem.name}.hea is a master header that names no segment")
    layout = _read_header(stem.with_name(names[0]))
    signals = _signals(layout)
    for name, n_frames in zip(master.seg_name, master.seg_len, strict=True):
        if name == "~":  # a gap in the recording
            for signal in signals:
                signal.skip(n_frames)
        elif n_frames:
            _read_segment(stem.with_name(name), signals, n_frames=n_frames, by_name=master.layout == "variable")
    return signals


def _read_segment(stem: Path, signals: list[_Signal], *, n_frames: int, by_name: bool) -> None:
    """Add the segment at ``stem`` to the signals of its record; those that it does not hold are missing in it."""
    header = _read_header(stem)
    if header.sig_len not in (None, n_frames):
        raise ValueError(f"{stem.name}.hea has {header.sig_len} samples, its record's header says {n_frames}")
    here = _signals(header)
    columns = _columns(stem, signals, here, by_name=by_name)
    for signal, column in zip(signals, columns, strict=True):
        if column is None:
            signal.skip(n_frames)
    for block in _read_blocks(stem, header, n_frames=n_frames):
        for signal, column in zip(signals, columns, strict=True):
            if column is not None:
                signal.add(block[column])


def _columns(stem: Path, signals: list[_Signal], here: list[_Signal], *, by_name: bool) -> list[int | None]:
    """The position in a segment of each signal of its record; None for one that it does not hold."""
    names = [signal.name for signal in here]
    if not by_name and len(here) != len(signals):
        raise ValueError(f"{stem.name}.hea has {len(here)} signals, the segments before it {len(signals)}")
    columns: list[int | None] = list(range(len(signals)))
    if by_name:
        columns = [names.index(signal.name) if signal.name in names else None for signal in signals]
    for signal, column in zip(signals, columns, strict=True):
        if column is not None and (here[column].rate, here[column].unit) != (signal.rate, signal.unit):
            raise ValueError(
                f"{stem.name}.hea has {signal.name} at {here[column].rate:g} samples per second in "
                f"{here[column].unit}, the record at {signal.rate:g} in {signal.unit}"
            )
    return columns


def _read_header(stem: Path) -> Any:
    """A header, as a ``wfdb.Record`` or ``wfdb.MultiRecord``; for a malformed one the error says so.

    Nothing is downloaded: wfdb asks PhysioNet only when it is given a ``pn_dir``.
    """
    try:
        header = wfdb.rdheader(str(stem))
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{stem.name}.hea is not a WFDB header: {error}") from error
    if not isinstance(header, wfdb.MultiRecord):
        described = len(header.file_name or ())
        if described != header.n_sig:
            raise ValueError(f"{stem.name}.hea announces {header.n_sig} signals and describes {described}")
        for name in dict.fromkeys(header.file_name or ()):
            if name != "~" and not stem.with_name(name).exists():
                raise FileNotFoundError(f"{stem.name}.hea names the signal file {name}, which is not there")
    return header


def _read_blocks(stem: Path, header: wfdb.Record, *, n_frames: int | None) -> Iterator[list[Samples]]:
    """Read the first ``n_frames`` frames of a record without segments, some at a time.

    Yields:
        A list of one array a signal, in physical units, NaN where a sample is missing. Each signal keeps its own
        sampling rate: smoothing to one sample a frame would average an ECG of four samples a frame down to a
        quarter of its rate, which flattens its QRS complexes and falsifies its extremes and moments.
    """
    for first, last in _windows(header, n_frames):
        try:
            block = wfdb.rdrecord(str(stem), sampfrom=first, sampto=last, smooth_frames=False)
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            files = ", ".join(dict.fromkeys(header.file_name))
            raise ValueError(
                f"{files} cannot be read as {stem.name}.hea describes it ({n_frames} frames; truncated?): {error}"
            ) from error
        yield block.e_p_signal


def _windows(header: wfdb.Record, n_frames: int | None) -> Iterator[tuple[int, int | None]]:
    """The frames to read at a time, first and one past the last."""
    if n_frames is None or "8" in header.fmt:
        # If the header has no length, only wfdb finds out where the file ends, and format 8 stores differences,
        # which only add up from the start. Both are rare, and are read as a whole.
        yield 0, n_frames
        return
    step = max(1, BLOCK_VALUES // sum(header.samps_per_frame))
    for first in range(0, n_frames, step):
        yield first, min(first + step, n_frames)


# ---- signals -------------------------------------------------------------------------------------------------


@dataclass
class _Moments:
    """Count, extremes and the first four moments of samples that come a block at a time.

    ``m2`` to ``m4`` are sums of powers of the distance to the mean. Blocks are merged by Pébay's formulas, which
    stay exact where sums of plain powers would cancel out.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, samples: Samples) -> None:
        """Take in samples, none of them NaN and at least one."""
        mean = float(samples.mean())
        distance = samples - mean
        square = distance * distance
        block = _Moments(
            len(samples),
            mean,
            float(square.sum()),
            float(square @ distance),
            float(square @ square),
            float(samples.min()),
            float(samples.max()),
        )
        self._merge(block)

    def _merge(self, other: _Moments) -> None:
        a, b = self.count, other.count
        n, delta = a + b, other.mean - self.mean
        self.m4 += other.m4 + delta**4 * a * b * (a * a - a * b + b * b) / n**3
        self.m4 += 6 * delta**2 * (a * a * other.m2 + b * b * self.m2) / n**2
        self.m4 += 4 * delta * (a * other.m3 - b * self.m3) / n
        self.m3 += other.m3 + delta**3 * a * b * (a - b) / n**2 + 3 * delta * (a * other.m2 - b * self.m2) / n
        self.m2 += other.m2 + delta**2 * a * b / n
        self.mean += delta * b / n
        self.low, self.high, self.count = min(self.low, other.low), max(self.high, other.high), n

    def features(self) -> dict[str, float | None]:
        """Population moments; skewness and kurtosis of a flat signal are not defined."""
        names = ("mean", "std", "min", "max", "skewness", "kurtosis")
        if not self.count:
            return dict.fromkeys(names)
        if self.low == self.high:
            return dict(zip(names, (self.low, 0.0, self.low, self.high, None, None), strict=True))
        variance = self.m2 / self.count
        skewness = self.m3 / self.count / variance**1.5
        kurtosis = self.m4 / self.count / variance**2 - 3
        values = (self.mean, variance**0.5, self.low, self.high, skewness, kurtosis)
        return dict(zip(names, values, strict=True))


@dataclass
class _Signal:
    """One signal of a record, with the moments of what has been read of it so far."""

    name: str
    unit: str | None
    rate: float
    samples_per_frame: int
    n_samples: int = 0
    moments: _Moments = field(default_factory=_Moments)
    ecg: list[tuple[npt.NDArray[np.int64], Samples]] = field(default_factory=list)
    """Positions and values of the samples that the heart rate is made from."""
    n_ecg: int = 0

    @property
    def is_ecg(self) -> bool:
        """Whether the name is an ECG lead's and the unit is volts: ``V`` and ``I`` are names of other things too."""
        return bool(_ECG_LEAD.fullmatch(self.name)) and (self.unit or "").lower() in _VOLTAGES

    def skip(self, n_frames: int) -> None:
        """Count frames in which this signal is missing."""
        self.n_samples += n_frames * self.samples_per_frame

    def add(self, samples: Samples) -> None:
        """Take in the next samples, NaN where one is missing."""
        present = np.flatnonzero(~np.isnan(samples))
        values = samples if len(present) == len(samples) else samples[present]
        if len(values):
            self.moments.add(values)
        wanted = int(HEART_RATE_SECONDS * self.rate) - self.n_ecg
        if wanted > 0 and len(values) and self.is_ecg:
            self.ecg.append((present[:wanted] + self.n_samples, values[:wanted].copy()))
            self.n_ecg += min(wanted, len(values))
        self.n_samples += len(samples)

    def features(self) -> dict[str, Any]:
        """The row of this signal."""
        missing = self.n_samples - self.moments.count
        return {
            "signal": self.name,
            "unit": self.unit,
            "sampling_rate": self.rate,
            "n_samples": self.n_samples,
            "missing_share": missing / self.n_samples if self.n_samples else None,
            **self.moments.features(),
            "heart_rate": self.heart_rate(),
        }

    def heart_rate(self) -> float | None:
        """Beats per minute, from the median interval between detected beats; None where there are too few.

        The detector is XQRS, not GQRS: it learns its thresholds from the signal, where GQRS trusts the gain in
        the header, which monitors set as they please, and it is wrong less often and quicker. It is given
        stretches without gaps, because its filters would spread one NaN over the whole signal.
        """
        if not self.ecg or self.rate < MIN_DETECTOR_RATE:
            return None
        positions = np.concatenate([positions for positions, _ in self.ecg])
        values = np.concatenate([values for _, values in self.ecg])
        intervals = [interval for run in _runs(positions, values, self.rate) for interval in _intervals(run, self.rate)]
        if len(intervals) < MIN_INTERVALS:
            return None
        return float(60 / np.median(intervals))


def _signals(header: wfdb.Record) -> list[_Signal]:
    """The signals that a header describes, before anything is read of them."""
    return [
        _Signal(name or f"signal {i}", unit or None, float(header.fs * per_frame), per_frame)
        for i, (name, unit, per_frame) in enumerate(
            zip(header.sig_name or (), header.units or (), header.samps_per_frame or (), strict=True)
        )
    ]


def _runs(positions: npt.NDArray[np.int64], values: Samples, rate: float) -> Iterator[Samples]:
    """The stretches without long gaps that are long enough for the detector; short gaps in them are bridged."""
    gaps = np.flatnonzero(np.diff(positions) > 1 + MAX_GAP_SECONDS * rate) + 1
    for start, stop in zip([0, *gaps], [*gaps, len(positions)], strict=True):
        first, last = positions[start], positions[stop - 1]
        if last - first + 1 >= MIN_RUN_SECONDS * rate:
            yield np.interp(np.arange(first, last + 1), positions[start:stop], values[start:stop])


def _intervals(run: Samples, rate: float) -> Samples:
    """Seconds between the beats of an ECG without gaps, without those that no heart can have."""
    thin = max(1, int(rate // DETECTOR_RATE))
    run = run[: len(run) // thin * thin].reshape(-1, thin).mean(axis=1)
    with np.errstate(all="ignore"):  # the detector divides by zero on stretches that are flat
        beats = xqrs_detect(run, rate / thin, verbose=False)
    seconds = np.diff(np.asarray(beats, dtype=np.float64)) * thin / rate
    return seconds[(seconds >= RR_SECONDS[0]) & (seconds <= RR_SECONDS[1])]
