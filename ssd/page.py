"""How does a page of results look? Tables, plots and pictures in one HTML file that asks no network.

The markup is in page.html: a macro for each part, escaped by Jinja2, and the few lines of script they need.
"""

import math
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#06b6d4", "#ec4899")
"""Of curves: seen on a light page and on a dark one."""

_INK = "#010203"  # stands for the page's own colour of text
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK,
    "ytick.color": _INK, "axes.linewidth": 0.6, "lines.linewidth": 1.6, "grid.color": _INK,
    "grid.alpha": 0.12, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False,
    "legend.fontsize": 8, "text.parse_math": False,  # names may hold $
}  # fmt: skip


def _shown(value: object) -> str:
    """Write a cell of a table; −1 is COCO's sign of nothing to count."""
    if value is None or (isinstance(value, float) and (value == -1 or not math.isfinite(value))):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _environment() -> Environment:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["shown"] = _shown
    return environment


_MACROS: Any = _environment().get_template("page.html").module


def page(title: str, about: str, headline: Sequence[str], sections: Mapping[str, Sequence[Markup]]) -> str:
    """Return a whole page: its headline's sentences, and sections of parts that the functions below made."""
    return str(_MACROS.page(title, about, headline, sections))


def text(words: str) -> Markup:
    """Return a paragraph."""
    return Markup(_MACROS.text(words))


def facts(rows: Mapping[str, object]) -> Markup:
    """Return names and what they are, as a list."""
    return Markup(_MACROS.facts(rows))


def tiles(rows: Mapping[str, object]) -> Markup:
    """Return names and numbers in large type."""
    return Markup(_MACROS.tiles(rows))


def table(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    caption: str = "",
    best: int | None = None,
    shades: ArrayLike | None = None,
) -> Markup:
    """Return a table that a click on its head sorts. best: the row that is marked.

    shades: how strongly to shade the cells after the first of each row, 0 to 1, rows × columns.
    """
    # NumPy's numbers are not Python's.
    plain = [[cell.item() if isinstance(cell, np.generic) else cell for cell in row] for row in rows]
    return Markup(_MACROS.table(head, plain, caption, best, None if shades is None else np.array(shades)))


def legend(curves: Sequence[tuple[str, str, str]]) -> Markup:
    """Return what curves of several plots are, each by its name, colour and dash (solid, dashed, dotted)."""
    return Markup(_MACROS.legend(curves))


def axes(x_label: str, y_label: str = "") -> Axes:
    """Return the axes of a new plot, to be drawn on."""
    with mpl.rc_context(_STYLE):
        drawn = Figure(figsize=(4.6, 2.7), layout="constrained").subplots()
        drawn.set_prop_cycle(color=COLOURS)
        drawn.set(xlabel=x_label, ylabel=y_label)
    return drawn


def plot(drawn: Axes, caption: str) -> Markup:
    """Return what was drawn, as SVG in the page's own colour and type."""
    file = StringIO()
    with mpl.rc_context(_STYLE):
        if drawn.get_legend_handles_labels()[0]:
            drawn.legend()
        figure = cast(Figure, drawn.get_figure(root=True))
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue())
    svg = re.sub(r' (?:height|width)="[\d.]+pt"', "", svg)  # as wide as its place
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace(_INK, "currentColor")
    return Markup(_MACROS.figure(Markup(svg), caption))


def pictures(cards: Sequence[Mapping[str, object]], kinds: Sequence[str], names: Sequence[str]) -> Markup:
    """Return pictures with boxes over them, filtered by kind and class, and a slider for scores.

    A card has: reason, name, width, height, jpeg (base64), boxes. A box has: ltwh in pixels, kind, name (of
    its class), score (None for an annotated one), note, subject (whether the card is about it).
    """
    return Markup(_MACROS.pictures(cards, kinds, names))
