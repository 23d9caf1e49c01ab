"""The model that is loaded, in words: its parts, how it was made and what that cost, memory and speed.

Scope: from a model's description and what was measured of it to the page's Model panel and to the first visitor's card, which
say the same. Knows no Gradio and no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from qlora_chat.engines import Engine, LocalModel
from qlora_chat.models import ModelInfo
from qlora_chat.serving.shared_engine import SharedEngine
from qlora_chat.web import render

GIB = 1024**3
MADE = {
    "bf16": "The adapter was merged into the base, in bf16.",
    "fp32": "The adapter was merged into the base, in float32.",
    "nf4": "The adapter was merged into the base, which was then quantized to NF4.",
    "nf4+adapter": "The base is in NF4, and the adapter is applied to it unmerged, as in its training.",
    "remote": "Another server computes the answers.",
}
"""Sentence on how a model was made, by ModelInfo.precision."""
NOT_MEASURED = "Not measured; qlora-chat merge measures it"
NAMED_ADAPTERS = "Adapters are applied to the base unmerged, and each answer chooses one of them."
NO_MERGE = "None: the adapter is not merged"
UNKNOWN_SPEED = "Not known before the first answer"


@dataclass(frozen=True)
class Measured:
    """Figures of the model that runs now; None for what is not known."""

    memory: int | None = None
    """Bytes, as LocalModel.memory_in_use counts them."""
    slots: int = 1
    """Chats at once."""
    chat_bytes: int = 0
    """Of one of them, over the whole window."""
    tokens_per_s: float | None = None
    ttft_ms: float | None = None

    @staticmethod
    def of(engine: Engine) -> Measured:
        """The figures of an engine; of one that is shared, those of its newest answer."""
        shared = engine if isinstance(engine, SharedEngine) else None
        speed = (shared.speed.tokens_per_s, shared.speed.ttft_ms) if shared else (None, None)
        inner = shared.inner if shared else engine
        if not isinstance(inner, LocalModel):
            return Measured(None, 1, 0, *speed)
        return Measured(inner.memory_in_use(), inner.slots, inner.token_bytes * engine.info.window, *speed)


def model_facts(info: ModelInfo, measured: Measured) -> list[tuple[str, str]]:
    """(label, value) of what there is to know of a model."""
    facts = [
        ("Base", info.base),
        ("Adapter", ", ".join(info.adapters) or info.adapter or "none"),
        ("Precision", info.precision),
        ("Computed on", info.device),
        ("Window", f"{info.window:,} tokens for question, history and answer"),
        ("Memory in use", _memory_in_use(info, measured)),
        ("Memory predicted", _memory_predicted(info, measured)),
        ("Speed", _speed(measured)),
        ("Loss of the merge", _merge_loss(info)),
    ]
    return [(label, value) for label, value in facts if value]


def making(info: ModelInfo) -> list[str]:
    """Sentences on how the model was made, and notices that a user must see."""
    has_adapter = info.adapter or info.adapters or info.precision == "remote"
    if info.adapters:
        made = NAMED_ADAPTERS
    elif info.merge and not info.adapter:
        made = f"{info.merge.adapter} was merged into it by qlora-chat merge."
    else:
        made = MADE.get(info.precision, "") if has_adapter else f"The base answers alone, in {info.precision}."
    return [*([made] if made else []), *info.notices]


def model_card(info: ModelInfo, measured: Measured) -> str:
    """The Model panel's HTML."""
    return f'<h3 class="own" dir="auto">{escape(info.name)}</h3>{description(info, measured)}{_report(info)}'


def description(info: ModelInfo, measured: Measured) -> str:
    """Facts of a model and sentences on its making, as HTML."""
    return render.facts(model_facts(info, measured)) + "".join(f"<p>{escape(each)}</p>" for each in making(info))


def _memory_in_use(info: ModelInfo, measured: Measured) -> str:
    if not measured.memory:
        return ""
    return f"{_gib(measured.memory)} {'on the card' if info.device == 'cuda' else 'by this program'}"


def _memory_predicted(info: ModelInfo, measured: Measured) -> str:
    if not info.predicted_bytes:
        return ""
    if measured.slots == 1:
        return f"{_gib(info.predicted_bytes)} for a chat over the whole window"
    one, further = _gib(info.predicted_bytes), _gib(measured.chat_bytes)
    return f"{one} for a chat over the whole window, {further} for each further one, up to {measured.slots} at once"


def _speed(measured: Measured) -> str:
    if measured.tokens_per_s is None:
        return UNKNOWN_SPEED
    if measured.ttft_ms is None:
        return f"{measured.tokens_per_s:,.0f} tokens/s in the newest answer"
    return f"{measured.tokens_per_s:,.0f} tokens/s, first token after {measured.ttft_ms:,.0f} ms in the newest answer"


def _merge_loss(info: ModelInfo) -> str:
    if info.precision == "nf4+adapter" or (info.adapters and not info.merge):
        return NO_MERGE
    loss = info.merge.loss if info.merge else None
    if loss:
        return f"KL {loss.kl:.4f} nats a token; the same first choice at {loss.top1:.1%} of {loss.tokens:,} tokens"
    return NOT_MEASURED if info.merge else ""


def _report(info: ModelInfo) -> str:
    """The table of `qlora-chat merge`, folded."""
    table = info.merge.table() if info.merge else []
    if not table:
        return ""
    rows = "".join(_row(row, "td" if index else "th") for index, row in enumerate(table))
    return f'<details><summary>Merge report</summary><div class="wide"><table>{rows}</table></div></details>'


def _row(values: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(each)}</{tag}>" for each in values) + "</tr>"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
