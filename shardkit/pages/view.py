"""A small view for a notebook's output: a headline, a picture, a table; no more than a screen.

It has no script and asks no network for anything. Its text takes the colour of what is around it, and its other colours
follow the notebook's theme where that says which it is, else the system's.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LIGHT = "--sk-1: #2f6fdb; --sk-2: #d9512c; --sk-3: #98a2b3; --sk-4: #0d8a83; --sk-5: #d58a00; --sk-6: #7a5af0"
DARK = "--sk-1: #5b93f0; --sk-2: #f0774f; --sk-3: #8592a3; --sk-4: #35b8af; --sk-5: #f0b03f; --sk-6: #a48bfa"
BLUE, RED, GREY, TEAL, AMBER, VIOLET = (f"var(--sk-{number})" for number in range(1, 7))
STYLE = f"""
.shardkit-view {{ {LIGHT}; max-width: 900px; font-size: 13px; line-height: 1.45; text-align: left;
  color: var(--jp-ui-font-color1, var(--vscode-foreground, currentColor)) }}
@media (prefers-color-scheme: dark) {{ .shardkit-view {{ {DARK} }} }}
[data-jp-theme-light="true"] .shardkit-view {{ {LIGHT} }}
[data-jp-theme-light="false"] .shardkit-view {{ {DARK} }}
.shardkit-view b, .shardkit-view p {{ overflow-wrap: anywhere }}
.shardkit-view p {{ margin: 2px 0 6px; opacity: .75; white-space: pre-wrap }}
.shardkit-view svg {{ display: block; width: 100%; margin: 6px 0; overflow: visible }}
.shardkit-view div.scroll {{ overflow-x: auto }}
.shardkit-view table {{ border-collapse: collapse; margin: 4px 0; font-size: 13px }}
.shardkit-view th, .shardkit-view td {{ padding: 2px 12px 2px 0; text-align: left !important; vertical-align: top;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, .25); background: none; overflow-wrap: anywhere;
  white-space: pre-wrap }}
.shardkit-view th {{ font-weight: 500; opacity: .7; white-space: nowrap }}
.shardkit-view td.short {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
.shardkit-view pre {{ margin: 2px 0; font-size: 12px; max-height: 220px; overflow: auto; background: none;
  color: inherit; white-space: pre-wrap }}
.shardkit-view i {{ font-style: normal; margin-right: 14px; white-space: nowrap }}
.shardkit-view i span {{ display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 5px }}
"""
ROWS = 12
SHORT = 16  # characters that stay on one line
BAR_PIXELS = 40  # at most
BOX, GAP, BOX_CHARACTERS = 200, 30, 32
INK = 'fill="currentColor"'


class View:
    """What `_repr_html_` returns, put together from top to bottom; all text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._pieces = [f"<b>{escape(title)}</b>"]
        self.add_text(subtitle)

    def add_text(self, text: str) -> None:
        """A paragraph."""
        if text:
            self._pieces.append(f"<p>{escape(text)}</p>")

    def add_facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """A table of names and values; values that are empty are left out."""
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts if value)
        if rows:
            self._pieces.append(f'<div class="scroll"><table>{rows}</table></div>')

    def add_table(self, columns: Sequence[str], rows: Sequence[Sequence[str | float]], *, more: int = 0) -> None:
        """A table, its first rows if it is long; ``more`` rows are not even given."""
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:ROWS])
        self._pieces.append(f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')
        if left := len(rows[ROWS:]) + more:
            self.add_text(f"... and {left:,} more")

    def add_shares(self, shares: Sequence[tuple[str, float, str]]) -> None:
        """A bar of shares that are laid end to end, each with a name, an amount and a colour; and its legend."""
        total = sum(amount for _, amount, _ in shares)
        bars, begin = [], 0.0
        for _, amount, colour in shares if total else ():
            width = 100 * amount / total
            bars.append(f'<rect x="{begin:.2f}" y="0" width="{width:.2f}" height="10" style="fill:{colour}"/>')
            begin += width
        self._add_picture("".join(bars), width=100, height=10, pixels=10)
        legend = (
            f'<i><span style="background:{colour}"></span>{amount:,} {escape(name)}</i>'
            for name, amount, colour in shares
            if amount
        )
        self._pieces.append(f"<div>{''.join(legend)}</div>")

    def add_bars(self, amounts: Sequence[tuple[str, float]], *, colour: str = BLUE) -> None:
        """Upright bars, with what the pointer shows at each."""
        highest = max((amount for _, amount in amounts), default=0)
        bars = []
        for place, (tip, amount) in enumerate(amounts if highest else ()):
            height = max(40 * amount / highest, 0.5 if amount else 0)
            shape = f'x="{place + 0.05:.2f}" y="{40 - height:.2f}" width="0.9" height="{height:.2f}"'
            bars.append(f'<rect {shape} style="fill:{colour}"><title>{escape(tip)}</title></rect>')
        count = max(len(amounts), 1)
        self._add_picture("".join(bars), width=count, height=40, pixels=60, widest=BAR_PIXELS * count)

    def add_lanes(self, lanes: Sequence[Sequence[tuple[float, float, str, str]]]) -> None:
        """Lanes from top to bottom, each with spans: their begin and end as shares of the whole, a colour, a tip."""
        bars = []
        for place, lane in enumerate(lanes):
            for begin, end, colour, tip in lane:
                shape = f'x="{100 * begin:.3f}" y="{place + 0.1:.1f}" width="{max(100 * (end - begin), 0.1):.3f}"'
                title = f"<title>{escape(tip)}</title>"
                bars.append(f'<rect {shape} height="0.8" style="fill:{colour}">{title}</rect>')
        self._add_picture("".join(bars), width=100, height=max(len(lanes), 1), pixels=max(12 * len(lanes), 12))

    def add_flow(self, steps: Sequence[tuple[str, str]]) -> None:
        """Boxes with arrows between them, each with a word and a short text."""
        shapes = []
        for place, (word, text) in enumerate(steps):
            left = place * (BOX + GAP)
            shown = text if len(text) <= BOX_CHARACTERS else f"…{text[1 - BOX_CHARACTERS :]}"
            tip = f"<title>{escape(text)}</title>"
            shapes += [
                f'<rect x="{left}" y="1" width="{BOX}" height="40" rx="5" style="fill:none;stroke:{BLUE}"/>',
                f'<text x="{left + 9}" y="16" style="font-size:10px;opacity:.7" {INK}>{escape(word)}</text>',
                f'<text x="{left + 9}" y="32" style="font-size:11px" {INK}>{escape(shown)}{tip}</text>',
            ]
            if place:
                arrow = f"M{left - GAP + 4} 21 h{GAP - 12} m-5 -4 l5 4 l-5 4"
                shapes.append(f'<path d="{arrow}" style="fill:none;stroke:currentColor;opacity:.7"/>')
        width = len(steps) * (BOX + GAP) - GAP
        box = f'viewBox="0 0 {width} 42" preserveAspectRatio="xMinYMid" role="img"'
        self._pieces.append(f'<svg {box} style="max-width:{width}px">{"".join(shapes)}</svg>')

    def add_folded(self, summary: str, text: str) -> None:
        """Text that keeps its lines, such as a traceback, folded up."""
        self._pieces.append(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")

    def _add_picture(self, shapes: str, *, width: float, height: float, pixels: int, widest: int = 900) -> None:
        if shapes:
            box = f'viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img"'
            self._pieces.append(f'<svg {box} style="height:{pixels}px;max-width:{widest}px">{shapes}</svg>')

    def to_html(self) -> str:
        """The view."""
        return f'<div class="shardkit-view"><style>{STYLE}</style>{"".join(self._pieces)}</div>'


def _cell(value: str | float) -> str:
    text = value if isinstance(value, str) else f"{value:,}"
    return f"<td{' class=short' if len(text) <= SHORT else ''}>{escape(text)}</td>"
