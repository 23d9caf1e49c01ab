"""Plots of evaluation reports.

Scope: a report's JSON in, a PNG out, without a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qlora_chat.evaluation.questions import KINDS

COLORS = ("#0f766e", "#d97706", "#94a3b8")
Report = Mapping[str, Any]


def plot_questions(reports: Sequence[tuple[str, Report]], path: Path) -> None:
    """Plot the share of right answers by kind: a bar per report, a dot per run; `reports` are (label, JSON)."""
    figure, axes = _figure()
    kinds = [kind for kind in KINDS if kind in reports[0][1]["runs"][0]["score"]["by_kind"]]
    width = 0.8 / len(reports)
    for index, (label, report) in enumerate(reports):
        for position, kind in enumerate([*kinds, "all"]):
            shares = [_share(run["score"], kind) for run in report["runs"]]
            x = position + (index - (len(reports) - 1) / 2) * width
            mean = sum(shares) / len(shares)
            axes.bar(x, mean, width * 0.9, color=COLORS[index % 3], label=label if position == 0 else None)
            axes.plot([x] * len(shares), shares, "o", color="#1f2937", markersize=3)
    axes.set_xticks(range(len(kinds) + 1), [*kinds, "all"])
    axes.set_ylim(0, 1)
    axes.set_ylabel("right, 0 to 1")
    axes.legend(frameon=False)
    _save(figure, path)


def _share(score: Mapping[str, Any], kind: str) -> float:
    right, total = (score["right"], score["total"]) if kind == "all" else score["by_kind"][kind]
    return right / total


def plot_comparison(report: Report, path: Path) -> None:
    """Plot the wins of each model, and ties."""
    figure, axes = _figure()
    bars = ((f"A: {report['a']}", "wins_a"), (f"B: {report['b']}", "wins_b"), ("tie", "ties"))
    for position, (_, key) in enumerate(bars):
        axes.barh(position, report[key], color=COLORS[position])
        axes.text(report[key], position, f" {report[key]}", va="center")
    axes.set_yticks(range(3), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel(f"prompts; sign test p = {report['p_value']}")
    _save(figure, path)


def plot_perplexity(report: Report, path: Path) -> None:
    """Plot nats per token of each passage, and their mean over all tokens."""
    figure, axes = _figure()
    axes.bar(range(len(report["passages"])), report["passages"], color=COLORS[0])
    axes.axhline(report["nats"], color=COLORS[1], label=f"mean {report['nats']:.3f}, perplexity {report['perplexity']:.2f}")
    axes.set_xlabel("passage")
    axes.set_ylabel("nats per token")
    axes.legend(frameon=False)
    _save(figure, path)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
