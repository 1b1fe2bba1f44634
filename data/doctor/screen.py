"""A report as a person reads it in the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from data.doctor.examination import Watch
from data.doctor.findings import Severity
from data.doctor.report import DatasetReport, SplitReport
from data.doctor.statistics import Statistics
from ssd.boxes import IMAGE_SIZE

SHOWN = 5
"""Findings of a kind that are printed; the json has all."""

SHOWN_CLASSES = 20
"""Classes that are printed with their counts, the largest first."""

STYLES = {Severity.error: "bold red", Severity.warning: "yellow", Severity.info: "cyan"}


@contextmanager
def progress_bar(console: Console) -> Iterator[Watch]:
    """Show a bar where the console is a terminal, a line for each thing that is begun elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading annotations", total=None)

        def watch(what: str, done: int, total: int) -> None:
            if done == 0 and not console.is_terminal:
                console.print(what, markup=False)
            progress.update(task, description=what, completed=done, total=total)

        yield watch


def show(report: DatasetReport, console: Console) -> None:
    """Print figures, findings by kind and the verdict."""
    console.print(_figures(report.splits))
    console.print(_classes(report.splits))
    for kind, group in groupby(report.findings(), key=lambda each: each[1].kind):
        findings = [*group]
        meaning = kind.value
        style = STYLES[meaning.severity]
        console.print(
            f"[{style}]{meaning.severity.value}[/] {meaning.title}: {len(findings)}; {meaning.mend}"
        )
        for split, finding in findings[:SHOWN]:
            console.print(f"    {split} {finding.where}: {finding.detail}", markup=False)
        if len(findings) > SHOWN:
            console.print(f"    and {len(findings) - SHOWN} more")
    console.print(report.verdict(), style="bold green" if report.is_fit else "bold red", markup=False)


def _figures(splits: list[SplitReport]) -> Table:
    table = Table(title="data set", title_justify="left", title_style="bold")
    table.add_column()
    for report in splits:
        table.add_column(report.split.value, justify="right")

    def row(name: str, *values: object) -> None:
        table.add_row(name, *(str(value) for value in values))

    figures = [report.statistics for report in splits]
    row("images", *(each.images for each in figures))
    row("images without boxes", *(each.images_without_boxes for each in figures))
    row("classes", *(len(each.boxes_of_class) for each in figures))
    row("boxes used", *(each.boxes for each in figures))
    row("of them crowd", *(each.crowd_boxes for each in figures))
    row("no default box above IoU 0.5", *(_share(each.unmatched, each) for each in figures))
    for place, size in enumerate(figures[0].sizes):
        row(
            f"side {size.from_px}–{size.to_px} of {IMAGE_SIZE} px (none)",
            *(f"{each.sizes[place].boxes} ({each.sizes[place].unmatched})" for each in figures),
        )
    aps = (report.truth_ap for report in splits)
    row("AP of the ground truth", *("–" if ap is None or ap < 0 else f"{ap:.3f}" for ap in aps))
    return table


def _share(count: int, statistics: Statistics) -> str:
    return f"{count} ({count / max(statistics.boxes, 1):.1%})"


def _classes(splits: list[SplitReport]) -> Table:
    counts = [report.statistics.boxes_of_class for report in splits]
    names = sorted(counts[0] | counts[-1], key=lambda name: -counts[0].get(name, 0))
    table = Table(title="boxes by class", title_justify="left", title_style="bold")
    table.add_column()
    for report in splits:
        table.add_column(report.split.value, justify="right")
    for name in names[:SHOWN_CLASSES]:
        table.add_row(Text(name), *(str(each.get(name, "–")) for each in counts))
    if len(names) > SHOWN_CLASSES:
        table.add_row(f"and {len(names) - SHOWN_CLASSES} more", *("" for _ in counts))
    return table
