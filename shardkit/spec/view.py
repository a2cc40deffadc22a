"""A pipeline as notebooks show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.masking import masked
from shardkit.pages.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.spec.spec import Spec

VALUE_CHARACTERS = 300
SHOWN_ABOVE = ("name", "function", "input.uri", "output.uri")


def pipeline_view(pipeline: Spec) -> str:
    """The pipeline in HTML: its way from input to output, and what is set."""
    content = pipeline.to_dict()
    view = View(f"Pipeline {content['name']}")
    where = content["engine"]["kind"] if content["engine"] else "this machine"
    places = ", ".join(part.text for part in pipeline.input.places())
    view.add_flow(
        [
            (
                f"input, one record a {content['records']}",
                masked(places),
            ),
            (f"function, on {where}", content["function"]),
            (f"output, {content['output']['format']}", masked(str(content["output"]["uri"]))),
        ]
    )
    given = pipeline.model_dump(mode="python", by_alias=True, exclude_defaults=True, exclude={"engine"})
    if content["engine"] is not None:
        given["engine"] = content["engine"]
    view.add_facts((name, text) for name, text in _flat(given) if name not in SHOWN_ABOVE)
    return view.to_html()


def _flat(content: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Fields by their dotted names, with values as text."""
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{within}{name}.")
        elif value is not None:
            yield f"{within}{name}", masked(_text(value))[:VALUE_CHARACTERS]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return getattr(value, "__qualname__", None) or str(value)
