"""What a person sees: live progress while things start (plain lines where there is no terminal), then prefixed logs.

Apart from run.py so that what happens and how it is shown change separately. Output that nobody takes any more (a
closed pipe, a full disk behind a redirection) is dropped: it must not stop the engines.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Literal, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from stack.supervisor import Status

Logs = Literal["auto", "all", "none"]
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red")
ANSI = dict(zip(COLOURS, ("36", "35", "33", "32", "34", "91"), strict=True))
PLAIN_PROGRESS_S = 5.0
_SETTLED = {"ready": "[green]✓[/]", "done": "[green]✓[/]", "gave up": "[red]✗[/]", "stopped": "[dim]■[/]"}


class _Console(Console):
    """rich ends the program when nobody reads any more; here that is the reader's affair."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Row:
    """What is known of one process."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self.status: Status | None = None
        self.since_s = time.monotonic()
        self.last_line = ""
        self.spinner = Spinner("dots")

    @property
    def is_moving(self) -> bool:
        return self.status is not None and self.status.state in (
            "waiting",
            "starting",
            "restarting",
            "stopping",
            "running",
        )


class Screen:
    """`auto`: logs are shown once everything is ready; `all`: from the start; `none`: never (they are in the files)."""

    def __init__(self, stream: TextIO | None = None, logs: Logs = "auto") -> None:
        self._stream = stream or sys.stdout
        self._logs = logs
        self._rows: dict[str, Row] = {}
        self._console = _Console(file=self._stream, highlight=False, soft_wrap=True)
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._progress = False
        self._next_plain_s = 0.0
        self._gone = False

    def start_progress(self) -> None:
        self._progress = True
        self._next_plain_s = time.monotonic() + PLAIN_PROGRESS_S
        if self._is_live and self._live is None:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=8, transient=True)
            self._safely(self._live.start)

    def end_progress(self) -> None:
        self._progress = False
        if self._live is not None:
            self._safely(self._live.stop)
            self._live = None

    def add(self, name: str) -> None:
        self._rows.setdefault(name, Row(COLOURS[len(self._rows) % len(COLOURS)]))

    def tell(self, status: Status) -> None:
        """A process changed its state."""
        self.add(status.name)
        row = self._rows[status.name]
        elapsed_s = time.monotonic() - row.since_s
        if row.status is None or status.state in ("starting", "stopping", "running"):
            row.since_s = time.monotonic()
        row.status = status
        took = f"after {elapsed_s:.1f} s" if status.state == "ready" else ""
        detail = status.detail or took
        if self._live is None or status.state in ("restarting", "gave up"):
            self.note(f"{status.name}: {status.state}{f' ({detail})' if detail else ''}")

    def logs(self, name: str, from_the_start: bool = False) -> Callable[[list[str]], None]:
        """A sink for one process's lines; `from_the_start`: shown while others are still starting, too."""
        self.add(name)
        return lambda lines: self._forward(name, lines, from_the_start)

    def note(self, text: str, style: str = "bold") -> None:
        """The stack's own word."""
        lines = [Text(f"penstock  {line}", style=style) for line in text.splitlines()]
        self._safely(lambda: self._console.print(*lines, sep="\n"))

    def plain(self, text: str) -> None:
        """Text as it is, for copying."""
        self._safely(lambda: self._console.print(Text(text)))

    def tick(self) -> None:
        """Call about once a second: without a terminal, says now and then what is still going on."""
        if not self._progress or self._is_live or time.monotonic() < self._next_plain_s:
            return
        self._next_plain_s = time.monotonic() + PLAIN_PROGRESS_S
        for name, row in self._rows.items():
            if row.is_moving and row.status is not None:
                last = f", last line: {row.last_line[:160]}" if row.last_line else ""
                self.note(f"{name}: {row.status.state}, {time.monotonic() - row.since_s:.0f} s{last}")

    def _forward(self, name: str, lines: list[str], from_the_start: bool) -> None:
        row = self._rows[name]
        row.last_line = lines[-1]
        if self._logs == "none" or (self._logs == "auto" and self._progress and not from_the_start):
            return
        prefix = f"{name:9} | "
        if self._live is not None:
            texts = [Text(prefix, style=row.colour) + Text(line) for line in lines]
            self._safely(lambda: self._console.print(*texts, sep="\n"))
            return
        if self._console.is_terminal:
            prefix = f"\x1b[{ANSI[row.colour]}m{prefix}\x1b[0m"
        self._safely(lambda: self._write("".join(f"{prefix}{line}\n" for line in lines)))

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()

    def _safely(self, show: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            show()
        except BrokenPipeError:
            self._gone = True
            with open(os.devnull, "wb") as nowhere:  # else the interpreter's last flush fails
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except (OSError, ValueError):  # a full disk behind a redirection; a stream closed under us
            pass

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        for justify in ("left", "left", "left", "right"):
            table.add_column(no_wrap=True, justify=justify)
        # Only the log line gives way in a narrow window.
        table.add_column(no_wrap=True, overflow="ellipsis", style="dim", ratio=1)
        for name, row in self._rows.items():
            if row.status is not None:
                mark = _SETTLED.get(row.status.state, row.spinner)
                seconds = f"{time.monotonic() - row.since_s:.0f} s" if row.is_moving else ""
                table.add_row(mark, Text(name, style=row.colour), row.status.state, seconds, Text(row.last_line[:300]))
        return table
