"""What a person sees of a run in the terminal: the start-up table, progress, COCO's lines."""

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
    """A file or standard output, as long as it takes what is printed: a run does not end for want of it."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    @property
    def _stream(self) -> Any:
        # What a progress bar stands before.
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
        except OSError as error:  # a closed pipe, a full disk, a terminal that has gone
            with suppress(OSError):
                name = getattr(self._file, "name", "standard output")
                print(f"{name} is lost ({error.strerror}); going on without it", file=sys.stderr)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still buffered goes there too
            os.close(nowhere)


class PlainConsole(Console):
    """Shows names of files and classes as they are: [x] is no style, :car: no emoji, ESC steers nothing."""

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
        """Do as rich does for each string that it prints, also in tables."""
        return super().render_str(printable(text), **options)


class RunConsole:
    """Prints on rank 0, a live progress bar in a terminal, plain lines elsewhere; other ranks are silent."""

    def __init__(self, is_main: bool) -> None:
        self._console = PlainConsole(quiet=not is_main)
        bar = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        columns = "{task.fields[what]}", *bar, "{task.fields[figures]}"
        self._live = is_main and self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, disable=not self._live)
        self._said = StringIO()
        self._copy = PlainConsole(quiet=not is_main, file=self._said)

    def copy_to(self, path: Path, *header: str) -> None:
        """Append a header and all that is said, from the beginning on, to a file too. Raises OSError."""
        self._copy = PlainConsole(file=path.open("a", encoding="utf-8"))
        self._copy.print(*header, self._said.getvalue(), sep="\n", end="")

    def table(self, title: str, rows: dict[str, str]) -> None:
        """Print names and values as one table."""
        table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        self._print(table)

    def say(self, *lines: str) -> None:
        """Print lines, above the progress bar where there is one."""
        for line in lines:
            self._print(line)

    def _print(self, what: str | Table, beside_bar: bool = True) -> None:
        self._copy.print(what)
        if beside_bar or not self._live:
            self._console.print(what)

    def start(self, step: int, steps: int) -> None:
        """Begin to show progress at a step."""
        self._steps = steps
        self._task = self._progress.add_task("", total=steps, completed=step, what="epoch 0", figures="")

    def advance(self, step: int, epoch: int) -> None:
        """Show that a step was queued."""
        self._progress.update(self._task, completed=step, what=f"epoch {epoch}")

    def figures(self, step: int, record: dict[str, float], seconds_left: float) -> None:
        """Show a training record: in the bar, or as a line where there is none."""
        text = (
            f"loss {record['loss']:.3f} ({record['loss_localization']:.3f} + {record['loss_confidence']:.3f})"
            f" · lr {record['learning_rate']:.2e} · {record['images_per_second']:.1f} img/s"
            f" · data {record['data_wait']:.0%} · ETA {timedelta(seconds=round(seconds_left))}"
        )
        self._progress.update(self._task, figures=text)
        self._print(f"epoch {record['epoch']} step {step}/{self._steps} · {text}", beside_bar=False)

    @contextmanager
    def counting(self, total: int, title: str) -> Iterator[Callable[[int], None]]:
        """Show how many of the total are done; the function given is told how many more they are.

        Without a bar, say that it began.
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
