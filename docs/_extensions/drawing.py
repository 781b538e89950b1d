"""Boxes, arrows and strips of messages, drawn as SVG that takes its colours from the page: light or dark.

Pictures are narrow, so that their letters can be read on a phone.
"""

import html
from typing import List, Sequence

WIDTH = 460
LINE = 17


class Drawing:
    """A picture of a width of WIDTH. Coordinates are pixels from the upper left corner."""

    def __init__(self, height: int) -> None:
        self.height = height
        self._parts: List[str] = []

    def box(self, left: int, top: int, width: int, lines: Sequence[str], kind: str = "box", height: int = 0) -> None:
        """Draw a rectangle with lines of text in its middle."""
        height = height or LINE * len(lines) + 12
        self._parts.append(f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{height}" rx="4"/>')
        first = top + height / 2 - LINE * (len(lines) - 1) / 2 + 4.5
        for number, line in enumerate(lines):
            self.text(left + width / 2, first + LINE * number, line, "middle", "strong" if number == 0 else "")

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> None:
        """Write a line of text whose foot is at y."""
        self._parts.append(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float, text: str = "") -> None:
        """Draw an arrow; a text stands to the right of its middle."""
        self._parts.append(f'<line class="arrow" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#head)"/>')
        if text:
            self.text((x1 + x2) / 2 + 8, (y1 + y2) / 2 + 4.5, text)

    def strip(self, left: int, top: int, cells: Sequence[str], kinds: Sequence[str], width: int = 36) -> None:
        """Draw messages side by side: ``kept``, ``gone`` or ``new``."""
        for number, (cell, kind) in enumerate(zip(cells, kinds)):
            self.box(left + number * width, top, width - 4, [cell], kind)

    def svg(self, title: str) -> str:
        """Give the picture; its title is for those who do not see it."""
        title = html.escape(title)
        head = ('<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
                'orient="auto-start-reverse"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>')
        # A line for each part, so that what a search shows of a page keeps the words apart.
        parts = "\n".join([f"<title>{title}</title>", head, *self._parts])
        return (f'<svg class="picture" viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{title}" '
                f'xmlns="http://www.w3.org/2000/svg">{parts}</svg>')
