"""Evaluation reports as files and on the terminal.

Scope: writing, reading and printing. Knows nothing of the measurement.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_chat.errors import UserError
from qlora_chat.evaluation.pairwise import ComparisonReport
from qlora_chat.evaluation.questions import KINDS
from qlora_chat.evaluation.run import QuestionsReport


class ReportError(UserError, RuntimeError):
    """A report cannot be written; the message says where and why."""


def write(folder: Path, name: str, report: Mapping[str, Any]) -> Path:
    """Write folder/name.json and return its path. ReportError if the folder cannot be written."""
    path = folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as problem:
        raise ReportError(f"{path} cannot be written ({problem.strerror}); choose another folder with --out") from problem
    return path


def read_earlier(path: Path) -> dict[str, Any]:
    """Read an earlier questions.json. ReportError if it is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if not report["runs"][0]["score"]["by_kind"]:
            raise ValueError("it holds no scores")
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as problem:
        raise ReportError(f"{path} is no questions.json of `eval questions --out` ({problem})") from problem
    return report


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
    Console().print(table)
    sampled = [run.score.share for run in report.runs if run.seed is not None]
    if sampled:
        print(f"sampled: {statistics.mean(sampled):.1%} right on average, {min(sampled):.1%} to {max(sampled):.1%}")
