"""A run, a check and a record as HTML: sentences, a curve of the losses, samples.

Scope: values to HTML that is safe to render. Knows no process and no Gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from qlora_chat.web import render
from qlora_chat.web.panels.training_runs import RunView

GIB = 1024**3
WIDTH, HEIGHT = 360, 120
SAMPLES = 5
"""Newest ones that are shown."""
SENTENCES = {
    "running": "It is being trained.",
    "finished": "It is finished.",
    "stopped": "It was stopped, and is saved: resume it whenever you like.",
    "failed": "It failed; the last lines say why.",
    "interrupted": "It was interrupted: its process is gone. Resume goes on from the last checkpoint.",
}


def run_view(run: RunView) -> str:
    """A run as it is now."""
    losses = [each for each in run.metrics if "loss" in each]
    state = f'<p role="status" data-state="{run.state}">{SENTENCES[run.state]}</p>'
    parts = [f'<h3 dir="auto">{escape(run.name)}</h3>', state]
    if run.steps:
        parts.append(f'<progress max="{run.steps}" value="{run.step}"></progress>{_figures(run, losses)}')
    elif run.state == "running":
        parts.append("<p>The data is being read, and the base loaded.</p>")
    parts += [_curve(run), _samples(run)]
    if run.state in ("failed", "running") and run.log:
        parts.append(f"<pre>{escape(chr(10).join(run.log))}</pre>")
    return "".join(parts)


def check_view(found: Mapping[str, Any]) -> str:
    """Result of a check."""
    share = found["loss_tokens"] / max(1, found["tokens"])
    rows = [
        ("Dialogues", f"{found['dialogues']:,} to train on, {found['held_out']:,} held out"),
        ("Tokens", f"{found['tokens']:,}, {share:.0%} of them in the loss"),
        ("Steps", f"{found['steps']:,}"),
        ("Memory predicted", f"{found['predicted_bytes'] / GIB:.2f} GiB of {found['free_bytes'] / GIB:.2f} GiB that are free"),
        ("Time predicted", f"{_duration(found['predicted_seconds'])} while the machine is as busy as now"),
        ("Prompt format", found["prompt_format"]),
    ]
    bad = ""
    if found["bad"]:
        bad = f'<p class="form-problem">Some records cannot be used: {found["bad"]:,}</p>{render.steps(found["problems"])}'
    return f"{render.facts(rows)}{bad}{render.steps(found['summary'])}"


def record_view(records: Sequence[Mapping[str, Any]], number: int) -> str:
    """One record as training reads it: what is learned is marked."""
    if not records:
        return ""
    record = records[min(max(number, 1), len(records)) - 1]
    messages = [("system", record["system"], False)] if record["system"] else []
    messages += [(each["role"], each["text"], each["learned"]) for each in record["messages"]]
    shown = "".join(_message(*each) for each in messages)
    return (
        f'<p class="note" dir="auto">{escape(record["where"])} · {escape(record["format"])}</p><dl class="record">{shown}</dl>'
    )


def _message(role: str, text: str, learned: bool) -> str:
    mark = ' class="learned" title="Learned"' if learned else ""
    return f'<dt>{escape(role)}</dt><dd dir="auto"{mark}>{escape(text)}</dd>'


def _figures(run: RunView, losses: Sequence[Mapping[str, Any]]) -> str:
    facts = [("Step", f"{run.step:,} of {run.steps:,}")]
    if losses:
        newest = losses[-1]
        facts += [("Loss", f"{newest['loss']:.3f}"), ("Speed", f"{newest['tokens_per_s']:,.0f} tokens/s")]
        facts.append(("Memory in use", f"{newest['gib']:.2f} GiB"))
        if run.state == "running" and run.steps:
            facts.append(("Time left", _duration(_seconds_a_step(losses) * (run.steps - run.step))))
    held_out = [each["held_out_loss"] for each in run.metrics if "held_out_loss" in each]
    if held_out:
        facts.append(("Held-out loss", f"{held_out[-1]:.3f}"))
    return render.facts(facts)


def _seconds_a_step(losses: Sequence[Mapping[str, Any]]) -> float:
    """Of the newest steps; `seconds` begins anew where a run is resumed."""
    newest = losses[-10:]
    spans = [after["seconds"] - before["seconds"] for before, after in pairwise(newest)]
    positive = [each for each in spans if each > 0]
    return sum(positive) / len(positive) if positive else float(newest[-1]["seconds"])


def _curve(run: RunView) -> str:
    """Losses of steps, and of the held-out dialogues, as a drawing."""
    trained = [(each["step"], each["loss"]) for each in run.metrics if "loss" in each]
    held_out = [(each["step"], each["held_out_loss"]) for each in run.metrics if "held_out_loss" in each]
    if len(trained) < 2:
        return ""
    values = [loss for _, loss in (*trained, *held_out)]
    low, high, last = min(values), max(values), max(run.steps or 0, trained[-1][0])

    def points(pairs: Sequence[tuple[int, float]]) -> str:
        scale = (HEIGHT - 10) / ((high - low) or 1)
        return " ".join(f"{step / last * WIDTH:.1f},{5 + (high - loss) * scale:.1f}" for step, loss in pairs)

    label = f"Loss from {trained[0][1]:.2f} to {trained[-1][1]:.2f}"
    return (
        f'<svg class="losses" role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">'
        f'<polyline class="trained" points="{points(trained)}"/><polyline class="held-out" points="{points(held_out)}"/></svg>'
        f'<p class="note">{label}</p>'
    )


def _samples(run: RunView) -> str:
    samples = [each for each in run.metrics if "sample" in each][-SAMPLES:]
    if not samples:
        return ""
    shown = "".join(f'<dt>{each["step"]:,}</dt><dd dir="auto">{escape(each["sample"])}</dd>' for each in reversed(samples))
    return f'<h3>Samples</h3><dl class="record">{shown}</dl>'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
