"""Specifications of charts, in Vega-Lite. A colour such as ``--blue`` is that of the page, by day and by night."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEIGHT = 200
ROW_HEIGHT = 22

Chart = dict[str, Any]


def chart(values: Sequence[Mapping[str, Any]], *layers: Mapping[str, Any], height: float = HEIGHT) -> Chart:
    """A chart as wide as its place."""
    common: Chart = {"data": {"values": list(values)}, "width": "container", "height": height}
    return common | (dict(layers[0]) if len(layers) == 1 else {"layer": [dict(layer) for layer in layers]})


def axis(field: str, kind: str = "quantitative", *, title: str | None = None, **more: Any) -> Chart:
    """The position along an axis; ``kind`` is ``quantitative``, ``temporal``, ``nominal`` or ``ordinal``."""
    return {"field": field, "type": kind, "title": title, **more}


def in_unit(most_s: float, *, at_least: float = 3) -> tuple[float, str]:
    """The unit for an axis up to so many seconds, which has ``at_least`` so many of it: its seconds, and its name."""
    units = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
    return next(((size, name) for size, name in units if most_s >= at_least * size), (1.0, "seconds"))


def palette(field: str, colours: Mapping[str, str]) -> Chart:
    """Colours by the values of a field, with a legend if there are several."""
    scale = {"domain": list(colours), "range": list(colours.values())}
    more = {} if len(colours) > 1 else {"legend": None}
    return {"field": field, "type": "nominal", "scale": scale, **more}


def tips(**titles: str) -> list[Chart]:
    """What the pointer shows over a mark: the fields, each with its title."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in titles.items()]


def rows(values: Sequence[Mapping[str, Any]], colours: Mapping[str, str], *, tip: Sequence[Chart]) -> Chart:
    """Bars below each other in the order given. The fields of the values are ``name``, ``of``, ``n`` and ``text``."""
    totals: dict[str, float] = {}
    for value in values:
        totals[value["name"]] = totals.get(value["name"], 0) + value["n"]
    most = max(totals.values(), default=0) or 1
    length = axis("n", axis=None, scale={"domain": [0, most * 1.15]})  # the rest is for the longest bar's text
    name = axis("name", "nominal", sort=list(totals), axis={"ticks": False, "domain": False, "labelLimit": 170})
    ordered = [{**value, "place": list(colours).index(value["of"])} for value in values]
    bars = {"x": length, "y": name, "color": palette("of", colours), "order": axis("place"), "tooltip": list(tip)}
    texts = {"x": {**length, "aggregate": "sum"}, "y": name, "text": {"field": "text", "type": "nominal"}}
    return chart(
        ordered,
        {"mark": {"type": "bar"}, "encoding": bars},
        {"mark": {"type": "text", "align": "left", "dx": 5}, "encoding": texts},
        height=ROW_HEIGHT * len(totals),
    )
