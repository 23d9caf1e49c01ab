"""The page of plots: statistics as HTML with inline SVG, without scripts and without requests to other hosts.

Scope: numbers to plots. Knows no store and no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from html import escape
from io import StringIO
from itertools import pairwise
from threading import Lock
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, QUIET = "#1f2937", "#94a3b8"
TEAL, AMBER, RED = "#0f766e", "#d97706", "#b91c1c"
INCHES = (5.2, 3.0)
MOST_ROWS = 12
"""Adapters and finish reasons in a plot; stats.json has all of them."""
PLOT_DAYS = 90
"""Most days in a plot, up to the newest; stats.json has all of them."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qlora-chat",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}

Stats = Mapping[str, Any]

_style_lock = Lock()
"""Matplotlib's style belongs to the whole process."""


def page(stats: Stats) -> str:
    """Complete HTML page."""
    with _style_lock:
        figures = "".join(_figure(title, note, draw, stats) for title, note, draw in _PLOTS) if stats["turns"] else _EMPTY
    return _PAGE.replace("{facts}", _facts(stats)).replace("{figures}", figures)


def _figure(title: str, note: str, draw: Callable[[Axes, Stats], None], stats: Stats) -> str:
    figure = Figure(figsize=INCHES, layout="constrained")
    with mpl.rc_context(_STYLE):
        axes = figure.add_subplot()
        draw(axes, stats)
        target = StringIO()
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)", "", target.getvalue(), flags=re.DOTALL)  # the XML declaration has no place inside HTML
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return f"<figure><figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>{svg}</figure>"


def _turns_per_day(axes: Axes, stats: Stats) -> None:
    days = stats["days"]
    counts = {date.fromisoformat(each["day"]): each["turns"] for each in days}
    tomorrow = date.today() + timedelta(1)
    last = max((day for day in counts if day <= tomorrow), default=max(counts))  # one wrong clock must not hide all other days
    first = max(min(counts), last - timedelta(PLOT_DAYS - 1))
    every = [first + timedelta(each) for each in range((last - first).days + 1)]
    axes.bar(range(len(every)), [counts.get(day, 0) for day in every], color=TEAL, width=0.8)
    step = max(1, len(every) // 6)
    axes.set_xticks(range(0, len(every), step), [day.strftime("%d %b") for day in every[::step]])
    axes.set_ylabel("turns")
    _whole_numbers(axes.yaxis)


def _histogram(measure: str, unit: str) -> Callable[[Axes, Stats], None]:
    def draw(axes: Axes, stats: Stats) -> None:
        axes.set_xlabel(unit)
        axes.set_ylabel("turns")
        _whole_numbers(axes.yaxis)
        distribution = stats["measures"][measure]
        if distribution is None:
            _message(axes, "version 1 does not record it")
            return
        edges, counts = distribution["histogram"]["edges"], distribution["histogram"]["counts"]
        widths = [right - left for left, right in pairwise(edges)]
        axes.bar(edges[:-1], counts, width=widths, align="edge", color=TEAL, edgecolor="white", linewidth=0.5)
        median = distribution["median"]
        axes.axvline(median, color=AMBER, linewidth=1.5)
        axes.annotate(
            f"median {_rounded(median)}", (median, 1), xycoords=("data", "axes fraction"),
            xytext=(4, -2), textcoords="offset points", va="top", color=AMBER,
        )  # fmt: skip

    return draw


def _finish_reasons(axes: Axes, stats: Stats) -> None:
    reasons = list(stats["finish_reasons"].items())[:MOST_ROWS][::-1]
    bars = axes.barh([_short(name) for name, _ in reasons], [count for _, count in reasons], color=TEAL)
    axes.bar_label(bars, padding=3, color=INK)
    axes.set_xlabel("turns")
    _whole_numbers(axes.xaxis)


def _by_temperature(axes: Axes, stats: Stats) -> None:
    _votes(axes, [(_degree(row["temperature"]), row) for row in stats["feedback_by_temperature"] if _is_rated(row)])


def _by_adapter(axes: Axes, stats: Stats) -> None:
    rows = sorted(filter(_is_rated, stats["feedback_by_adapter"]), key=lambda row: row["turns"], reverse=True)
    _votes(axes, [(_short(row["adapter"]), row) for row in rows])


def _is_rated(row: Stats) -> bool:
    return bool(row["up"] or row["down"] or row["edited"])


def _votes(axes: Axes, named: Sequence[tuple[str, Stats]]) -> None:
    """One row each: thumbs up to the right of zero, thumbs down to the left, edited answers below."""
    axes.set_xlabel("turns")
    if not named:
        _message(axes, "no feedback yet")
        return
    rows = [row for _, row in named[:MOST_ROWS]]
    positions = range(len(rows))
    axes.barh(positions, [row["up"] for row in rows], color=TEAL, height=0.4, label="thumbs up")
    axes.barh(positions, [-row["down"] for row in rows], color=RED, height=0.4, label="thumbs down")
    axes.barh(
        [position + 0.3 for position in positions], [row["edited"] for row in rows], color=AMBER, height=0.2, label="edited"
    )
    axes.axvline(0, color=QUIET, linewidth=0.8)
    axes.set_yticks(positions, [name for name, _ in named[:MOST_ROWS]])
    axes.invert_yaxis()
    _whole_numbers(axes.xaxis)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _whole_numbers(axis: Any) -> None:
    axis.get_major_locator().set_params(integer=True)


def _message(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=QUIET)
    axes.set_xticks([])
    axes.set_yticks([])


def _degree(temperature: float | None) -> str:
    return "not recorded" if temperature is None else f"{temperature:g}"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(name: str) -> str:
    """A name that fits next to a bar. A dollar sign would begin a formula."""
    return (name if len(name) <= 28 else f"{name[:27]}…").replace("$", r"\$")


_PLOTS: tuple[tuple[str, str, Callable[[Axes, Stats], None]], ...] = (
    ("Turns a day", f"by the senders' dates, at most {PLOT_DAYS} days", _turns_per_day),
    ("Finish reasons", "how answers ended", _finish_reasons),
    ("Answer length", "the last bar holds what lies beyond", _histogram("completion_tokens", "tokens")),
    ("Prompt length", "the last bar holds what lies beyond", _histogram("prompt_tokens", "tokens")),
    ("Time to first token", "the last bar holds what lies beyond", _histogram("ttft_ms", "ms")),
    ("Speed", "after the first token; the last bar holds what lies beyond", _histogram("tokens_per_s", "tokens/s")),
    ("Feedback by temperature", "the newest of each turn", _by_temperature),
    ("Feedback by adapter", "the newest of each turn", _by_adapter),
)


def _facts(stats: Stats) -> str:
    facts = [
        ("turns", f"{stats['turns']:,}"),
        ("conversations", f"{stats['conversations']:,}"),
        ("with feedback", f"{stats['turns_with_feedback']:,}"),
        ("conversations erased", f"{stats['erased_conversations']:,}"),
        *([("unreadable, left out", f"{stats['unreadable']:,}")] if stats["unreadable"] else []),
        ("newest", (stats["last"] or "none yet").replace("T", " ")),
    ]
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)


_EMPTY = '<p class="nothing">Nothing has arrived yet. Start a chat with LOGGING_URL set to this server\'s /log.</p>'
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>QLoRA Chat logs</title>
<style>
:root { color-scheme: light; font-family: ui-sans-serif, system-ui, sans-serif; color: #1f2937; background: #f8fafc; }
body { max-width: 74rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.15rem; margin: 0 0 .75rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1rem; }
dt { font-size: .8rem; color: #475569; }
dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: #fff; border: 1px solid #e2e8f0; border-radius: .75rem; }
figcaption { font-size: .85rem; color: #475569; margin-bottom: .25rem; }
figcaption b { color: #1f2937; }
svg { width: 100%; height: auto; display: block; }
.nothing { color: #475569; }
</style></head>
<body><h1>QLoRA Chat logs</h1><dl>{facts}</dl><main>{figures}</main></body></html>
"""
