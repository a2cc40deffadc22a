"""A page that is put together block by block: figures, charts, tables and texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.pages.charts import Chart

OPEN_UP_TO = 20  # a table with more rows is folded


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: What is shown.
        by: What the table is sorted by, if it is not the text.
        tip: What the pointer shows.
        kind: ``left`` for text, ``code`` for text that keeps its lines; a number by default.
        bars: The heights of the bars of a small histogram, from 0 to 1.
    """

    text: str
    by: float | str | None = None
    tip: str = ""
    kind: str = ""
    bars: Sequence[float] = ()


@dataclass
class Block:
    """A part of a page: a headline, a chart, a table or a text, as ``kind`` says."""

    kind: str
    title: str
    note: str = ""
    is_wide: bool = False
    chart: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    is_folded: bool = False
    lines: Sequence[str] = ()


@dataclass
class Page:
    """A page.

    Args:
        title: Its headline.
        subtitle: The line below that.
        refresh_s: After how many seconds a browser loads it again; 0 if never.
    """

    title: str
    subtitle: str
    refresh_s: int = 0
    footer: str = ""
    tiles: list[tuple[str, str]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    charts: dict[str, Chart] = field(default_factory=dict)

    def add_tile(self, value: str, name: str) -> None:
        """Add a figure to those at the top."""
        self.tiles.append((value, name))

    def add_headline(self, title: str, note: str = "") -> None:
        """Begin a new part of the page."""
        self.blocks.append(Block("headline", title, note))

    def add_chart(self, title: str, chart: Chart, *, note: str = "", is_wide: bool = False) -> None:
        """Add a chart."""
        name = f"c{len(self.charts)}"
        self.charts[name] = chart
        self.blocks.append(Block("chart", title, note, is_wide, chart=name))

    def add_table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        note: str = "",
        is_wide: bool = True,
    ) -> None:
        """Add a table, folded if it is long. A click on a column's head sorts it."""
        is_folded = len(rows) > OPEN_UP_TO
        self.blocks.append(Block("table", title, note, is_wide, columns=columns, rows=rows, is_folded=is_folded))

    def add_text(self, title: str, lines: Sequence[str], *, note: str = "", is_wide: bool = True) -> None:
        """Add lines of text."""
        self.blocks.append(Block("text", title, note, is_wide, lines=lines))

    def to_html(self) -> str:
        """The page, which asks no network for anything.

        Raises:
            PipelineError: The libraries that draw pages are not installed.
        """
        from shardkit.pages.write import write_page

        content: dict[str, Any] = {
            "title": self.title,
            "subtitle": self.subtitle,
            "refresh_s": self.refresh_s,
            "footer": self.footer,
            "tiles": self.tiles,
            "blocks": self.blocks,
        }
        return write_page(content, self.charts)
