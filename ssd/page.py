"""How does a page of results look? Tables, plots and pictures in one HTML file that asks no network.

The markup is in page.html: a macro for each part, escaped by Jinja2, and the few lines of script they need.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    return f"{value:,}" if isinstance(value, Integral) else str(value)  # NumPy's too


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
_environment.filters["shown"] = _shown
_macros: Any = _environment.get_template("page.html").module

page: Callable[[str, str, Sequence[str], Mapping[str, Sequence[Markup]]], Markup] = _macros.page
"""A whole page: title, what it is about, its headline's sentences, sections of the parts below."""

text: Callable[[str], Markup] = _macros.text
"""A paragraph."""

facts: Callable[[Mapping[str, object]], Markup] = _macros.facts
"""Names and what they are, as a list."""

tiles: Callable[[Mapping[str, object]], Markup] = _macros.tiles
"""Names and numbers in large type."""

table: Callable[..., Markup] = _macros.table
"""A table that a click on its head sorts: head, rows, caption="", best=None, shades=None.

best: the row that is marked. shades: how strongly to shade the cells after the first of each row, 0 to 1,
rows × columns.
"""

legend: Callable[[Sequence[tuple[str, str]]], Markup] = _macros.legend
"""What curves of several plots are, each by its name and colour."""

pictures: Callable[[Sequence[Mapping[str, object]], Sequence[str], Sequence[str]], Markup] = _macros.pictures
"""Pictures with boxes over them, filtered by the kinds and classes given, and a slider for scores.

A card has: reason, name, width, height, jpeg (base64), boxes. A box has: ltwh in pixels, kind, name (of its
class), score (None for an annotated one), note, subject (whether the card is about it).
"""


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
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue().replace(_INK, "currentColor")
    return Markup(_macros.figure(Markup(svg[svg.index("<svg") :]), caption))
