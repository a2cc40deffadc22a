"""Bytes, numbers, shares, money, seconds and long texts as people read them."""

from __future__ import annotations

LINE_CHARACTERS = 200


def human_bytes(size: float) -> str:
    """Bytes as a person reads them: ``1.4 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 file``, ``2,000 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def human_seconds(seconds: float) -> str:
    """Seconds as a person reads them: ``4.2 s``, ``42 s``, ``3 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def percent(share: float) -> str:
    """A share as a person reads it: ``97.5%``, ``50%``."""
    return f"{share:.1%}".replace(".0%", "%")


def dollars(usd: float) -> str:
    """An amount of money, with cents if it is small: ``$0.0012``, ``$12.30``, ``$4,200``."""
    if 0 < usd < 0.01:
        return f"${usd:.2g}"
    return f"${usd:,.2f}" if usd < 1000 else f"${usd:,.0f}"


def first_line(text: str, *, characters: int = LINE_CHARACTERS) -> str:
    """The first line of a text, cut if it is long."""
    lines = text.strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 and len(lines[0]) <= characters else f"{lines[0][:characters].rstrip()} ..."
