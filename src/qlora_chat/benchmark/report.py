"""A result as a table, as JSON, and as a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_chat.benchmark import Result, Row


def as_json(result: Result) -> dict[str, Any]:
    """Return one JSON object, with ratios to the original if it ran."""
    values = {"bench": "qlora-chat bench", **asdict(result)}
    values["ratio_to_original"] = [
        {"context": ours.context, "tokens_per_s": round(ours.tokens_per_s / theirs.tokens_per_s, 2),
         "first_token": round(theirs.first_token_ms / ours.first_token_ms, 2)}
        for ours, theirs in _pairs(result.rows)
    ]  # fmt: skip
    return values


def _pairs(rows: tuple[Row, ...]) -> list[tuple[Row, Row]]:
    """Return our row of one chat and the original's at each context that both have."""
    theirs = {row.context: row for row in rows if row.path == "original"}
    return [(row, theirs[row.context]) for row in rows if row.path != "original" and row.chats == 1 and row.context in theirs]


def print_table(result: Result) -> None:
    """Print the rows as a table to standard output."""
    from rich.console import Console
    from rich.table import Table

    kv_cache = ", keys and values in int8" if result.subject.kv_cache_dtype == "int8" else ""
    table = Table(title=f"{result.subject.name}, {result.subject.precision}{kv_cache}; {result.hardware}; {result.date}")
    table.add_column("path")
    for heading in ("chats", "prompt", "new", "tokens/s", "with prompts", "first token", "cold", "memory", "of a copy's rate"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        table.add_row(
            row.path, str(row.chats), str(row.context), str(row.new), f"{row.tokens_per_s:.1f}",
            f"{row.tokens_per_s_with_prompts:.1f}", f"{row.first_token_ms:.0f} ms",
            "" if row.first_token_cold_ms is None else f"{row.first_token_cold_ms / 1000:.2f} s",
            f"{row.memory_gib:.2f} GiB", f"{row.bandwidth_percent:.1f} %",
        )  # fmt: skip
    console = Console(color_system=None)
    console.print(table)
    console.print(f"checked: {result.check.what}: {result.check.figures}")
    console.print(f"a copy moves {result.copy_gb_per_s} GB/s; {', '.join(map(' '.join, result.software.items()))}")
    for ours, theirs in _pairs(result.rows):
        console.print(
            f"one chat after {ours.context}: {ours.tokens_per_s / theirs.tokens_per_s:.2f} times the original's tokens/s, "
            f"first token in {ours.first_token_ms / theirs.first_token_ms:.2f} of its time"
        )


def plot(result: Result, target: Path) -> None:
    """Plot tokens/s over chats and over context. BenchmarkError if matplotlib is not installed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    batch, context = figure.subplots(1, 2)
    ours = [row for row in result.rows if row.path != "original"]
    first = ours[0]
    _line(batch, [(row.chats, row.tokens_per_s) for row in ours if row.context == first.context], "all chats together")
    batch.set(xlabel="chats", ylabel="tokens/s", title=f"after {first.context} tokens", xscale="log", ylim=(0, None))
    for path in ("qlora-chat", "original"):
        points = [(r.context, r.tokens_per_s) for r in result.rows if r.path == path and r.chats == first.chats]
        _line(context, points, path)
    context.set(xlabel="tokens of prompt", ylabel="tokens/s", title=f"{first.chats} chat(s)", ylim=(0, None))
    for axes in (batch, context):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{result.subject.name}, {result.subject.precision}; {result.hardware}; {result.date}", fontsize=9)
    figure.savefig(target, dpi=150)


def _line(axes: Any, points: list[tuple[int, float]], label: str) -> None:
    if points:
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, marker="o", label=label)
        axes.set_xticks(x, [str(each) for each in x])
        axes.minorticks_off()
