"""What a run prints in the terminal: the start-up table, progress, COCO's metrics."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ssd.errors import UserError, printable


class _Output:
    """A file or standard output. Once a write fails, output goes to /dev/null, so that the run survives."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    @property
    def _stream(self) -> Any:
        # While a progress bar is shown, rich replaces sys.stdout by a proxy of it.
        return self._file or getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with self._or_nowhere():
            self._stream.write(text)

    def flush(self) -> None:
        with self._or_nowhere():
            self._stream.flush()

    @contextmanager
    def _or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a closed pipe, a full disk, a closed terminal
            with suppress(OSError):
                name = getattr(self._file, "name", "standard output")
                print(f"{name} is lost ({error.strerror}); going on without it", file=sys.stderr)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # buffered text goes there too
            os.close(nowhere)


class PlainConsole(Console):
    """Prints text literally: names may hold [x] (not a style), :car: (not an emoji) or ESC (replaced)."""

    def __init__(self, quiet: bool = False, file: IO[str] | None = None) -> None:
        if file is None:
            cast(Any, sys.stdout).reconfigure(errors="replace")  # for terminals without × or →
        super().__init__(
            file=cast(IO[str], _Output(file)),
            force_terminal=None if file is None else False,
            quiet=quiet,
            soft_wrap=True,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape control characters; rich calls this for each string that it prints, also in tables."""
        return super().render_str(printable(text), **options)


class RunConsole:
    """Prints on rank 0 only: a live progress bar in a terminal, otherwise plain lines."""

    def __init__(self, is_main: bool) -> None:
        self._console = PlainConsole(quiet=not is_main)
        bar = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        columns = "{task.fields[what]}", *bar, "{task.fields[figures]}"
        self._live = is_main and self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, disable=not self._live)
        self._said = StringIO()
        self._copy = PlainConsole(quiet=not is_main, file=self._said)

    def copy_to(self, path: Path, *header: str) -> None:
        """Append a header and all output, from the start of the run, to a file too. Raises OSError."""
        self._copy = PlainConsole(file=path.open("a", encoding="utf-8"))
        self._copy.print(*header, self._said.getvalue(), sep="\n", end="")

    def table(self, title: str, rows: dict[str, str]) -> None:
        """Print a table of names and values."""
        table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        self._print(table)

    def say(self, *lines: str) -> None:
        """Print lines, above the progress bar if there is one."""
        for line in lines:
            self._print(line)

    def _print(self, what: str | Table, beside_bar: bool = True) -> None:
        self._copy.print(what)
        if beside_bar or not self._live:
            self._console.print(what)

    def start(self, step: int, steps: int) -> None:
        """Start showing progress from a step."""
        self._steps = steps
        self._task = self._progress.add_task("", total=steps, completed=step, what="epoch 0", figures="")

    def advance(self, step: int, epoch: int) -> None:
        """Show that a step has been queued on the device."""
        self._progress.update(self._task, completed=step, what=f"epoch {epoch}")

    def figures(self, step: int, record: dict[str, float], seconds_left: float) -> None:
        """Show a training record: in the progress bar, or as a line if there is none."""
        text = (
            f"loss {record['loss']:.3f} ({record['loss_localization']:.3f} + {record['loss_confidence']:.3f})"
            f" · lr {record['learning_rate']:.2e} · {record['images_per_second']:.1f} img/s"
            f" · data {record['data_wait']:.0%} · ETA {timedelta(seconds=round(seconds_left))}"
        )
        self._progress.update(self._task, figures=text)
        self._print(f"epoch {record['epoch']} step {step}/{self._steps} · {text}", beside_bar=False)

    @contextmanager
    def counting(self, total: int, title: str) -> Iterator[Callable[[int], None]]:
        """Show how many of the total are done; call the yielded function with the number of new ones.

        Without a progress bar, only the title is printed.
        """
        self._print(title, beside_bar=False)
        task = self._progress.add_task("", total=total, what=title, figures="")
        yield lambda more: self._progress.advance(task, more)
        self._progress.remove_task(task)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if isinstance(error, UserError):
            self._copy.print(f"error: {error}")
        self._copy.file.close()
