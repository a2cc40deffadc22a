"""The rule by which files are cut, as the pipeline's ``records`` say it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("lines", "csv", "tar", "zip", "parquet")
ARCHIVES = ("tar", "zip")
TARGET_BYTES = 64_000_000
CSV_NAMES = (".csv", ".tsv")
CODECS = {".gz": "gzip", ".bgz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


@dataclass(frozen=True)
class Inside:
    """How files are cut.

    Attributes:
        kind: one of `KINDS`.
        target_bytes: about how large a piece is; a file of no more bytes stays whole. Not for archives.
        by: for archives, whether a record is a ``member``, or the members with one ``stem``.
        pattern: for archives, globs for a record's main member.
        header: whether the first row of a CSV file is its header, which each piece then begins with.
        quoted_newlines: whether values of a CSV file may hold newlines, between quotes.
    """

    kind: str
    target_bytes: int = TARGET_BYTES
    by: str = "member"
    pattern: tuple[str, ...] = ("*",)
    header: bool = True
    quoted_newlines: bool = True

    @classmethod
    def of(cls, rule: Any) -> Inside | None:
        """The rule in a pipeline's ``records``, given as plain data; None if files stay whole."""
        if not isinstance(rule, Mapping):
            return None
        given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in rule.items()}
        return cls(kind=given.pop("inside"), **given)

    @property
    def is_archive(self) -> bool:
        """Whether records are members of archives."""
        return self.kind in ARCHIVES

    @property
    def has_lines(self) -> bool:
        """Whether files are text."""
        return self.kind in {"lines", "csv"}

    def is_csv(self, key: str) -> bool:
        """Whether a file of that name is CSV."""
        return self.kind == "csv" or (self.kind == "lines" and plain_name(key).lower().endswith(CSV_NAMES))

    def is_scanned(self, key: str) -> bool:
        """Whether a file of that name is read for the plan, because its quoted values may hold newlines."""
        return self.quoted_newlines and self.is_csv(key) and codec_of(key) is None


@functools.lru_cache(1024)  # asked several times for each piece
def codec_of(key: str) -> str | None:
    """How a file of that name is compressed; None if it is not."""
    return next((codec for suffix, codec in CODECS.items() if key.lower().endswith(suffix)), None)


def plain_name(key: str) -> str:
    """The name of a compressed file without the suffix that says so."""
    return key[: key.rindex(".")] if codec_of(key) is not None else key
