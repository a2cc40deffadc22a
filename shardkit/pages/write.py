"""A page from its template, its figures and its charts.

The templates escape all text that they are given. Charts travel as JSON in which no character can end the element that
holds it. The page's policy lets it load nothing, so that it shows the same without a network.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment

    from shardkit.pages.charts import Chart

VEGA_LITE = "6.1"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
NEEDED = 'pip install "shardkit[report]"'


def write_page(content: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    """A page as HTML.

    Args:
        content: What the template shows.
        charts: The specifications of its charts, by their names.

    Raises:
        PipelineError: The libraries that draw pages are not installed.
    """
    library = chart_library() if charts else ""
    page = _environment().get_template("page.html")
    return printable(page.render(content, charts=_in_script(charts), library=library, policy=POLICY))


def _in_script(data: Any) -> str:
    """JSON that may stand in a script element, whatever its texts are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def chart_library() -> str:
    """The JavaScript of Vega-Lite and all that it needs, which takes seconds to put together.

    Raises:
        PipelineError: It is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise PipelineError(
            "vl-convert-python, which has the charts of pages, is not installed.", hint=f"{NEEDED}"
        ) from None
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@functools.cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise PipelineError("jinja2, which writes pages, is not installed.", hint=f"{NEEDED}") from None
    return Environment(
        loader=PackageLoader("shardkit.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
