"""Evaluation reports as files, as plots and on the terminal.

Scope: writing, reading, drawing (without a display) and printing. Knows nothing of the measurement.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_chat.evaluation import EvaluationError, read_file
from qlora_chat.evaluation.pairwise import ComparisonReport
from qlora_chat.evaluation.perplexity import PerplexityReport
from qlora_chat.evaluation.questions import KINDS
from qlora_chat.evaluation.run import QuestionsReport

COLORS = ("#0f766e", "#d97706", "#94a3b8")
Report = QuestionsReport | PerplexityReport | ComparisonReport
Values = Mapping[str, Any]
"""A report's JSON."""


def write(folder: Path, name: str, report: Report, plot: Callable[[Values, Path], None] | None = None) -> None:
    """Write folder/name.json, and folder/name.png if there is a plot of it. EvaluationError if that fails."""
    path, values = folder / f"{name}.json", asdict(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if plot:
            plot(values, path.with_suffix(".png"))
    except OSError as problem:
        raise EvaluationError(f"{path} cannot be written ({problem.strerror}); choose another folder with --out") from problem


def read_earlier(path: Path) -> dict[str, Any]:
    """Read an earlier questions.json. EvaluationError if it is none."""
    try:
        report = json.loads(read_file(path))
        if not report["runs"][0]["score"]["by_kind"]:
            raise ValueError("it holds no scores")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as problem:
        raise EvaluationError(f"{path} is no questions.json of `eval questions --out` ({problem})") from problem
    return report


# --- plots -------------------------------------------------------------------------------------------------------------


def plot_questions(report: Values, path: Path, before: Values | None = None) -> None:
    """Plot the share of right answers by kind: a bar per report, a dot per run; `before` is drawn next to it."""
    reports = [("before", before), ("after", report)] if before else [(report["model"], report)]
    kinds = [*(kind for kind in KINDS if kind in reports[0][1]["runs"][0]["score"]["by_kind"]), "all"]
    width = 0.8 / len(reports)
    with _axes(path) as axes:
        for index, (label, each) in enumerate(reports):
            for position, kind in enumerate(kinds):
                shares = [_share(run["score"], kind) for run in each["runs"]]
                x = position + (index - (len(reports) - 1) / 2) * width
                named = label if position == 0 else None
                axes.bar(x, statistics.mean(shares), width * 0.9, color=COLORS[index % 3], label=named)
                axes.plot([x] * len(shares), shares, "o", color="#1f2937", markersize=3)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_ylim(0, 1)
        axes.set_ylabel("right, 0 to 1")
        axes.legend(frameon=False)


def _share(score: Values, kind: str) -> float:
    right, total = (score["right"], score["total"]) if kind == "all" else score["by_kind"][kind]
    return right / total


def plot_comparison(report: Values, path: Path) -> None:
    """Plot the wins of each model, and ties."""
    bars = ((f"A: {report['a']}", "wins_a"), (f"B: {report['b']}", "wins_b"), ("tie", "ties"))
    with _axes(path) as axes:
        for position, (_, key) in enumerate(bars):
            axes.barh(position, report[key], color=COLORS[position])
            axes.text(report[key], position, f" {report[key]}", va="center")
        axes.set_yticks(range(3), [label for label, _ in bars])
        axes.invert_yaxis()
        axes.set_xlabel(f"prompts; sign test p = {report['p_value']}")


def plot_perplexity(report: Values, path: Path) -> None:
    """Plot nats per token of each passage, and their mean over all tokens."""
    with _axes(path) as axes:
        axes.bar(range(len(report["passages"])), report["passages"], color=COLORS[0])
        axes.axhline(report["nats"], color=COLORS[1], label=f"mean {report['nats']:.3f}, perplexity {report['perplexity']:.2f}")
        axes.set_xlabel("passage")
        axes.set_ylabel("nats per token")
        axes.legend(frameon=False)


@contextmanager
def _axes(path: Path) -> Iterator[Any]:
    """Axes of a figure that is saved as a PNG at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    figure.savefig(path, dpi=120)


# --- the terminal --------------------------------------------------------------------------------------------------------


def print_comparison(report: ComparisonReport) -> None:
    """Print the wins of each model."""
    print(f"A ({report.a}) won {report.wins_a}, B ({report.b}) won {report.wins_b}, {report.ties} ties")
    print(f"a split as uneven occurs by chance with p = {report.p_value}")


def print_scores(report: QuestionsReport) -> None:
    """Print a line per run and a column per kind."""
    from rich.console import Console
    from rich.table import Table

    kinds = [kind for kind in KINDS if kind in report.runs[0].score.by_kind]
    table = Table(title=f"{report.model}, {report.precision} on {report.device}", title_justify="left")
    for heading in ("run", *kinds, "right"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for run in report.runs:
        counts = ["/".join(map(str, run.score.by_kind[kind])) for kind in kinds]
        table.add_row("greedy" if run.seed is None else f"seed {run.seed}", *counts, f"{run.score.right}/{run.score.total}")
    Console(color_system=None).print(table)
    sampled = [run.score.share for run in report.runs if run.seed is not None]
    if sampled:
        print(f"sampled: {statistics.mean(sampled):.1%} right on average, {min(sampled):.1%} to {max(sampled):.1%}")
