"""Progress of a training: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class Bar:
    """Use as a context; `update` is what the training loop calls."""

    def __init__(self, name: str, done: int, total: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._live = console.is_terminal
        self._name, self._total, self._said = name, total, 0.0
        self._task = self._progress.add_task(name, total=total, completed=done, loss=0.0, rate=0.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float, tokens_per_s: float) -> None:
        self._progress.update(self._task, completed=step, loss=loss, rate=tokens_per_s)
        now = time.monotonic()
        if not self._live and (now - self._said > LINE_EVERY_S or step == self._total):
            self._said = now
            print(f"{self._name} {step}/{self._total} loss {loss:.3f} {tokens_per_s:,.0f} tokens/s", file=sys.stderr)  # noqa: T201
