"""What a person sees while a compression runs: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Screen:
    """Everything goes to stderr: stdout is for results. `is_quiet`: warnings only."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._is_quiet = is_quiet
        self._bar: tuple[Progress, TaskID] | None = None

    def say(self, text: str) -> None:
        """One line about what happens now."""
        if not self._is_quiet:
            self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Something that the person should know of, and that stops nothing."""
        self._console.print(f"warning: {text}", markup=False, style="yellow")

    @contextmanager
    def work(self, what: str, total: int, done: int = 0) -> Iterator[None]:
        """A stretch of `total` equal steps, each told with `step`."""
        if self._is_quiet or not sys.stderr.isatty():
            self.say(f"{what}: {total - done} to do")
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._bar = (progress, progress.add_task(what, total=total, completed=done))
            try:
                yield
            finally:
                self._bar = None

    def step(self, what: str) -> None:
        """One of the steps is done; `what` says which, with a figure worth seeing."""
        if self._bar is None:
            self.say(f"  {what}")
        else:
            progress, task = self._bar
            progress.update(task, advance=1)
            progress.console.print(f"  {what}", markup=False)
