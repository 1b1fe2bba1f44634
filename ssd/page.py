"""How does a page of results look? Tables, plots and pictures in one HTML file that needs no network.

The parts are macros of page.html, which documents their arguments; Jinja2 escapes the values.
"""

import math
import os
from collections.abc import Callable, Sequence
from io import StringIO
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssd.cli import writing

Sections = dict[str, list[Markup]]
"""The parts of each section of a page, by section title."""

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#06b6d4", "#ec4899")
"""Colors of curves, visible on light and dark backgrounds."""

_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "axes.grid": True, "axes.axisbelow": True, "grid.color": "gray", "grid.alpha": 0.2,
    "legend.frameon": False, "legend.fontsize": 8, "text.parse_math": False,  # names may contain $
}  # fmt: skip
mpl.rcParams.update(_STYLE)


def _shown(value: object) -> str:
    """Format a table cell; COCO's −1 means that there was nothing to count."""
    if value is None or (isinstance(value, float) and (value == -1 or not math.isfinite(value))):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}".replace("-", "−")
    return f"{value:,}" if isinstance(value, Integral) else str(value)  # Integral includes NumPy's


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
_environment.filters["shown"] = _shown
_macros: Any = _environment.get_template("page.html").module
Part = Callable[..., Markup]
text: Part = _macros.text
facts: Part = _macros.facts
tiles: Part = _macros.tiles
table: Part = _macros.table
legend: Part = _macros.legend
pictures: Part = _macros.pictures


def axes(x_label: str, y_label: str = "") -> Axes:
    """Return the axes of a new plot."""
    drawn = Figure(figsize=(4.6, 2.7), layout="constrained").subplots()
    drawn.set_prop_cycle(color=COLOURS)
    drawn.set(xlabel=x_label, ylabel=y_label)
    return drawn


def plot(drawn: Axes, caption: str) -> Markup:
    """Return a plot as SVG in the page's color and font."""
    if drawn.get_legend_handles_labels()[0]:
        drawn.legend()
    file = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    cast(Figure, drawn.figure).savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue().replace("#000000", "currentColor")
    return Markup(_macros.figure(Markup(svg[svg.index("<svg") :]), caption))


def write(given: str, key: str, about: tuple[str, str], headline: Sequence[str], sections: Sections) -> None:
    """Write a page atomically to the file named by `key`. Raises UserError if that fails.

    about: the title and the line below it.
    """
    path = Path(given)
    with writing(path, key):
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another process may be writing it
        page = _macros.page(*about, headline, sections)
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(path)
