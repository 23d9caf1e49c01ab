"""Rendering of numbers, notices and problems, as HTML that is safe to render.

Scope: pure functions from values to text. Knows no Gradio and no sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from qlora_chat.models import ModelInfo


def status(info: ModelInfo, tokens_per_s: float | None = None, ttft_ms: float | None = None) -> str:
    """One line of HTML: model, precision, device, speed, time to first token. The context has a bar of its own."""
    facts = [
        ("model", "Model", info.name),
        ("precision", "Precision", info.precision),
        ("device", "Device", info.device),
        ("speed", "Speed", f"{tokens_per_s:.0f} tokens/s" if tokens_per_s else "speed not known yet"),
        ("ttft", "Time to first token", f"first token {ttft_ms:,.0f} ms" if ttft_ms is not None else "no token yet"),
    ]
    spans = (f'<span class="{name}" title="{title}">{escape(value)}</span>' for name, title, value in facts)
    return f'<p class="status">{" · ".join(spans)}</p>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Labels and values as a list in HTML."""
    cells = "".join(f'<dt>{escape(label)}</dt><dd dir="auto">{escape(value)}</dd>' for label, value in rows)
    return f"<dl>{cells}</dl>"


def steps(lines: Sequence[str]) -> str:
    """Lines as a list in HTML; "" where there are none."""
    return f'<ul class="steps">{"".join(f"<li>{escape(each)}</li>" for each in lines)}</ul>' if lines else ""


def notice(text: str) -> str:
    """Something a person should know."""
    return f'<p class="notice" role="status">{escape(text)}</p>' if text else ""


def problem(text: str) -> str:
    """Something that went wrong, read out by screen readers at once."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def dropped(indices: Sequence[int], window: int) -> str:
    """Notice that old turns were left out of the prompt; "" if none were."""
    if not indices:
        return ""
    exchanges = (len(indices) + 1) // 2
    if exchanges == 1:
        return f"The oldest exchange no longer fits the model's window of {window:,} tokens: the model no longer sees it."
    return (
        f"The {exchanges} oldest exchanges no longer fit the model's window of {window:,} tokens: "
        "the model no longer sees them."
    )


def banner(info: ModelInfo, more: Sequence[str] = ()) -> str:
    """Notices of the model, its prompt format and `more`, as one line of HTML; "" if there are none."""
    prompt_format = (f"Prompt format: {info.format.summary}.",) if info.format else ()
    lines = (*info.notices, *prompt_format, *more)
    spans = " ".join(f"<span>{escape(each)}</span>" for each in lines)
    return f'<p class="banner">{spans}</p>' if lines else ""
