"""The plots of a comparison, as SVG that stands in a page by itself: no script, no font, no file beside it.

A checkpoint has one number and one colour in all of them and in the table.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]
INK, FAINT, GRID = "#1d2733", "#66717e", "#e3e7ec"
# Okabe and Ito's colours, told apart without red and green, then darker ones of the same hues.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#5e3c99", "#7f6000", "#004c6d", "#8c2d04", "#00664a", "#8b3a6b"),
)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "penstock",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
# A perplexity so many times the lowest is a broken model's: its place would squeeze all others into a line.
BROKEN_TIMES = 1000
# So many bars at least there is room for: two would else be walls.
FEW = 5
WIDTH_IN, HEIGHT_IN = 5.6, 3.5


def colour(number: int) -> str:
    """Of the checkpoint with this place in the list, from 0."""
    return COLOURS[number % len(COLOURS)]


def plots(comparison: Mapping[str, Any]) -> dict[str, str]:
    """SVG by title; only those for which there are figures."""
    rows = comparison["checkpoints"]
    drawn = {
        "Bits against perplexity": _draw(_bits, comparison, rows),
        "Size of the weights": _draw(_size, comparison, rows),
        "Distance from the parent": _draw(_divergence, comparison, rows),
        "Output error, block by block": _draw(_error, comparison, rows),
        "Tokens per second": _draw(_speed, comparison, rows),
    }
    return {title: svg for title, svg in drawn.items() if svg is not None}


def _draw(
    draw: Callable[[Axes, Mapping[str, Any], Sequence[Row]], bool], comparison: Mapping[str, Any], rows: Sequence[Row]
) -> str | None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        if not draw(figure.subplots(), comparison, rows):
            return None
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _inline(out.getvalue())


def _inline(svg: str) -> str:
    """Only the element itself, as wide as its place."""
    body = svg[svg.index("<svg") :]
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", body, count=1), count=1
    )


def _bits(axes: Axes, comparison: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    points = [
        (number, row["bits_per_weight"], row["perplexity"])
        for number, row in enumerate(rows)
        if row["perplexity"] is not None and row["bits_per_weight"] is not None
    ]
    if not points:
        return False
    reference = next((row for row in rows if row["name"] == comparison["reference"]), None)
    if reference is not None and reference["perplexity"] is not None:
        axes.axhline(reference["perplexity"], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    values = [value for *_, value in points]
    beyond = [str(number + 1) for number, _, value in points if value > BROKEN_TIMES * min(values)]
    if beyond:
        axes.set_title(f"beyond the scale: {', '.join(beyond)}", fontsize=8.5, color=FAINT, weight="normal")
        points = [point for point in points if point[2] <= BROKEN_TIMES * min(values)]
        values = [value for *_, value in points]
    if max(values) > 3 * min(values):
        axes.set_yscale("log")
    for number, bits, value in points:
        _numbered(axes, bits, value, number)
    axes.set_xlabel("bits per weight, everything counted")
    axes.set_ylabel("perplexity")
    axes.margins(0.08, 0.12)
    _grid(axes, "both")
    return True


def _numbered(axes: Axes, x: float, y: float, number: int) -> None:
    axes.plot([x], [y], "o", markersize=15, color=colour(number), markeredgecolor="white", zorder=3)
    axes.annotate(str(number + 1), (x, y), ha="center", va="center", color="white", fontsize=8, weight="bold", zorder=4)


def _size(axes: Axes, _: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    sized = [(number, row) for number, row in enumerate(rows) if row["size_bytes"]]
    if not sized:
        return False
    largest = max(row["size_bytes"] for _, row in sized)
    factor, unit = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    _bars(axes, [(number, row["size_bytes"] / factor) for number, row in sized], lambda value: f"{value:.2f}")
    axes.set_xlabel(unit)
    return True


def _divergence(axes: Axes, _: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    told = [(number, row["kl"]) for number, row in enumerate(rows) if row["kl"] is not None]
    if not told:
        return False
    _bars(axes, told, lambda value: f"{value:.4f}")
    axes.set_xlabel("KL(parent ‖ child), nats a token")
    return True


def _bars(axes: Axes, values: Sequence[tuple[int, float]], words: Callable[[float], str]) -> None:
    places = range(len(values))
    bars = axes.barh(
        places, [value for _, value in values], color=[colour(number) for number, _ in values], height=0.66
    )
    axes.bar_label(bars, [words(value) for _, value in values], padding=4, color=INK, fontsize=8)
    axes.set_yticks(places, [str(number + 1) for number, _ in values])
    axes.set_ylim(max(len(values), FEW) - 0.5, -0.5)
    axes.margins(x=0.14)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _grid(axes, "x")


def _error(axes: Axes, _: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    told = [(number, row["blocks"]) for number, row in enumerate(rows) if any(error > 0 for error in row["blocks"])]
    if not told:
        return False
    for number, errors in told:
        places = range(1, len(errors) + 1)
        axes.plot(places, errors, color=colour(number), linewidth=1.6, marker="o", markersize=3.5, zorder=2)
    for number, height in _apart([(number, errors[-1]) for number, errors in told]):
        last = max(len(errors) for _, errors in told)
        axes.annotate(
            str(number + 1), (last, height), (8, 0), textcoords="offset points", color=colour(number), va="center",
            fontsize=8, weight="bold",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("block")
    axes.set_ylabel("relative squared error of its output")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _grid(axes, "y")
    return True


def _apart(ends: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Heights of labels that do not touch, on a logarithmic axis: each at least a twelfth of a decade over the last."""
    placed: list[tuple[int, float]] = []
    for number, height in sorted(ends, key=lambda pair: pair[1]):
        lowest = placed[-1][1] * 1.21 if placed else 0.0
        placed.append((number, max(height, lowest, 1e-12)))
    return placed


def _speed(axes: Axes, comparison: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    numbers = {row["name"]: number for number, row in enumerate(rows)}
    served = comparison["served"]
    streams = sorted({count for row in served for count in row["tokens_per_s"]}, key=int)
    if not streams:
        return False
    height = 0.8 / len(streams)
    for offset, count in enumerate(streams):
        places = [place + (offset - (len(streams) - 1) / 2) * height for place in range(len(served))]
        rates = [row["tokens_per_s"].get(count, 0.0) for row in served]
        colours = [colour(numbers[row["checkpoint"]]) for row in served]
        bars = axes.barh(places, rates, height * 0.9, color=colours, alpha=1 if offset == len(streams) - 1 else 0.55)
        words = [f"{rate:,.0f}  ({count} stream{'s' if count != '1' else ''})" if rate else "" for rate in rates]
        axes.bar_label(bars, words, padding=4, color=INK, fontsize=7.5)
    axes.set_yticks(range(len(served)), [f"{numbers[row['checkpoint']] + 1} · {row['engine']}" for row in served])
    axes.set_ylim(max(len(served), FEW - 1) - 0.5, -0.5)
    axes.margins(x=0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _grid(axes, "x")
    return True


def _grid(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, color=GRID, linewidth=0.8)
