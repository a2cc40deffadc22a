"""Charts as SVG text, drawn here so that a page with charts needs no network and no program that draws.

Colours and fonts are the page's, by class. A bar or a point has its figures in its ``title``, which browsers show
under the pointer.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from shardkit.units import human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

WIDTH, HEIGHT = 640, 230
LEFT, RIGHT, TOP, BOTTOM = 84, 12, 12, 28  # the left has room for "1 h 30 min"
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
TICKS = 4
LABELS = 6
BAR_MOST = 44
DOTS_UP_TO = 62  # a line with more points has no dots
ROW_HEIGHT, NAME_WIDTH, NAME_CHARACTERS = 24, 180, 24
# The steps between the lines of the grid, for durations.
STEPS_S = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    *range(86400, 4320000, 86400),
)


@dataclass(frozen=True)
class Series:
    """The values that have one colour.

    Args:
        name: Its name in the legend.
        colour: The class that has the colour.
        values: One for each place; None if there is none.
    """

    name: str
    colour: str
    values: Sequence[float | None]


def plain(value: float) -> str:
    """A number, without needless digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"


def percent(value: float) -> str:
    """A share."""
    return f"{value:.1%}".replace(".0%", "%")


def dollars(value: float) -> str:
    """An amount of money."""
    return f"${value:,.2f}" if value < 1000 else f"${value:,.0f}"


def brief(seconds: float) -> str:
    """A duration, without the zeros at its end."""
    return re.sub(r"(?<=[a-z]) 0 (?:s|min|h)$", "", human_seconds(seconds))


def bars(places: Sequence[str], series: Sequence[Series], *, text_of: Callable[[float], str] = plain) -> str:
    """Bars side by side, each a stack of the series."""
    highest = max((sum(each.values[i] or 0 for each in series) for i in range(len(places))), default=0)
    scale = _Scale(highest, text_of)
    return _svg([*scale.lines(), *_stacks(places, series, scale), *_dates(places), *_tips(places, series, text_of)])


def _stacks(places: Sequence[str], series: Sequence[Series], scale: _Scale) -> Iterator[str]:
    band = PLOT_WIDTH / len(places)
    width = min(band * 0.8 if band > 5 else band, BAR_MOST)
    for i in range(len(places)):
        x, below = LEFT + band * (i + 0.5) - width / 2, 0.0
        for each in series:
            value = each.values[i] or 0
            if value > 0:
                top, bottom = scale.y(below + value), scale.y(below)
                size = f'x="{x:.2f}" y="{top:.2f}" width="{width:.2f}" height="{bottom - top:.2f}"'
                yield f'<rect class="{each.colour}" {size}/>'
                below += value


def lines(
    places: Sequence[str],
    series: Sequence[Series],
    *,
    text_of: Callable[[float], str],
    steps: Sequence[float] = (),
    most: float | None = None,
) -> str:
    """Lines from place to place, with gaps where there are no values.

    Args:
        places: The names of the places.
        series: The lines.
        text_of: Gives a value as text.
        steps: The possible steps between lines of the grid, if decimal numbers are not round ones.
        most: The end of the scale; by default that of the values.
    """
    highest = most or max((value for each in series for value in each.values if value is not None), default=0.0)
    scale = _Scale(highest, text_of, steps=steps, exact=most is not None)
    drawn = [part for each in series for part in _line(each, scale)]
    return _svg([*scale.lines(), *drawn, *_dates(places), *_tips(places, series, text_of)])


def _line(series: Series, scale: _Scale) -> Iterator[str]:
    band = PLOT_WIDTH / len(series.values)
    points = [
        None if value is None else (LEFT + band * (i + 0.5), scale.y(value)) for i, value in enumerate(series.values)
    ]
    path, drawing = "", False
    for point in points:
        if point is not None:
            path += f"{'L' if drawing else 'M'}{point[0]:.2f} {point[1]:.2f}"
        drawing = point is not None
    yield f'<path class="line {series.colour}" d="{path}"/>'
    for i, point in enumerate(points):
        alone = not (i and points[i - 1]) and not (i + 1 < len(points) and points[i + 1])
        if point is not None and (alone or len(points) <= DOTS_UP_TO):
            yield f'<circle class="{series.colour}" cx="{point[0]:.2f}" cy="{point[1]:.2f}" r="2.5"/>'


def rows(names: Sequence[str], series: Sequence[Series], *, text_of: Callable[[float], str] = plain) -> str:
    """Bars below each other, each with its name, a stack of the series, and its total."""
    totals = [sum(each.values[i] or 0 for each in series) for i in range(len(names))]
    longest = max(totals, default=0) or 1
    room = WIDTH - NAME_WIDTH - 90
    parts = []
    for i, name in enumerate(names):
        y, x = i * ROW_HEIGHT, float(NAME_WIDTH)
        shown = name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
        parts.append(f'<text class="name" x="{NAME_WIDTH - 8}" y="{y + 16}">{escape(shown)}</text>')
        for each in series:
            width = (each.values[i] or 0) / longest * room
            if width > 0:
                size = f'x="{x:.2f}" y="{y + 4}" width="{width:.2f}" height="{ROW_HEIGHT - 8}"'
                parts.append(f'<rect class="{each.colour}" {size}/>')
            x += width
        parts.append(f'<text class="value" x="{x + 6:.2f}" y="{y + 16}">{escape(text_of(totals[i]))}</text>')
        tip = escape(_tip(name, series, i, text_of))
        parts.append(f'<rect class="tip" y="{y}" width="{WIDTH}" height="{ROW_HEIGHT}"><title>{tip}</title></rect>')
    return _svg(parts, height=max(len(names), 1) * ROW_HEIGHT)


def legend(series: Iterable[Series]) -> str:
    """Which colour stands for what."""
    keys = "".join(f'<span class="key"><i class="{each.colour}"></i>{escape(each.name)}</span>' for each in series)
    return f'<div class="legend">{keys}</div>'


class _Scale:
    """A scale from values to heights, with round numbers beside it."""

    def __init__(
        self, highest: float, text_of: Callable[[float], str], *, steps: Sequence[float] = (), exact: bool = False
    ) -> None:
        self._text_of = text_of
        if exact:
            self._step = highest / TICKS
        else:
            self._step = next((step for step in steps if step >= highest / TICKS), 0) or _round(highest / TICKS)
        self._top = self._step * max(math.ceil(highest / self._step - 1e-9), 1)

    def y(self, value: float) -> float:
        """The height of a value."""
        return TOP + PLOT_HEIGHT * (1 - min(value / self._top, 1.0))

    def lines(self) -> Iterator[str]:
        """The grid, with its numbers."""
        for i in range(round(self._top / self._step) + 1):
            y = self.y(i * self._step)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>'
            text = "0" if not i else escape(self._text_of(i * self._step))
            yield f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.2f}">{text}</text>'


def _round(step: float) -> float:
    if step <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= step * (1 - 1e-9))


def _dates(places: Sequence[str]) -> Iterator[str]:
    """Some of the places' names below them."""
    band, step = PLOT_WIDTH / len(places), math.ceil(len(places) / LABELS)
    for i in range(0, len(places), step):
        x = LEFT + band * (i + 0.5)
        yield f'<text class="date" x="{min(x, WIDTH - 46):.2f}" y="{HEIGHT - 8}">{escape(places[i])}</text>'


def _tips(places: Sequence[str], series: Sequence[Series], text_of: Callable[[float], str]) -> Iterator[str]:
    """The texts that the pointer shows over each place."""
    band = PLOT_WIDTH / len(places)
    for i, place in enumerate(places):
        size = f'x="{LEFT + band * i:.2f}" y="{TOP}" width="{band:.2f}" height="{PLOT_HEIGHT}"'
        yield f'<rect class="tip" {size}><title>{escape(_tip(place, series, i, text_of))}</title></rect>'


def _tip(place: str, series: Sequence[Series], i: int, text_of: Callable[[float], str]) -> str:
    values = ((each.name, each.values[i]) for each in series)
    return "\n".join([place, *(f"{name}: {'-' if value is None else text_of(value)}" for name, value in values)])


def _svg(parts: Iterable[str], *, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
