"""Rendering of conversations, numbers and problems, as Markdown and HTML that is safe to render.

Scope: pure functions from values to text. What a person typed is shown as typed; what a model wrote is Markdown
without HTML and without images. Knows no Gradio and no sessions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qlora_chat.messages import Conversation, FinishReason, Message
from qlora_chat.models import ModelInfo

_MARKDOWN = re.compile(r"^[^a-zA-Z]|[\\`*_\[\]<>&~|#@\n\r\t]|:(?=//)|(?<=www)\.| $", re.IGNORECASE)
"""Characters with a meaning in Markdown, in a text without line breaks."""
_CODE = re.compile(
    r"(^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}\2[`~]*[ \t]*$|\Z)"  # a fenced block, to its fence or to the end
    r"|(?<!`)(`+)(?!`).+?(?<!`)\3(?!`))",  # `code`
    re.DOTALL | re.MULTILINE,
)
_TAG = re.compile(r"<(?=[a-zA-Z/!?])")
_IMAGE = re.compile(r"!(?=\[)")

_MARKS: dict[FinishReason, str] = {
    "cancelled": "*Stopped.*",
    "length": "*Cut off: the answer reached its limit of new tokens, or the model's window is full.*",
    "error": "*Ended by an error.*",
    "partial": "*Cut off: the program ended while this was being written.*",
}


def literal(text: str) -> str:
    """Markdown that shows the text as it was typed; page.css keeps its spaces and line breaks.

    Character references are never Markdown's structure, so nothing typed becomes a heading, a link or a tag. With the
    line breaks among them the text is one line, and only its first character could begin a block.
    """
    return _MARKDOWN.sub(lambda match: f"&#{ord(match.group())};", text)


def markdown(text: str) -> str:
    """A model's Markdown with HTML tags shown instead of obeyed, and images as links: nothing is fetched unasked."""
    parts = _CODE.split(text)
    return "".join(
        _IMAGE.sub("&#33;", _TAG.sub("&lt;", part)) if index % 4 == 0 else part
        for index, part in enumerate(parts)
        if part and index % 4 < 2
    )


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as a Chatbot takes it."""
    return [shown for message in conversation.messages if (shown := _message(message))]


def message_at(conversation: Conversation, index: Any) -> Message | None:
    """The answer that a page shows at a place of its list; None for what no page sends."""
    visible = [message for message in conversation.messages if _message(message)]
    if type(index) is not int or not 0 <= index < len(visible):
        return None
    return visible[index] if visible[index].role == "assistant" else None


def thumbs(conversation: Conversation, ratings: Mapping[str, int]) -> list[str | None]:
    """For each answer that is shown, the thumb that was given to it, as a Chatbot takes it."""
    answers = [message for message in conversation.messages if message.role == "assistant" and _message(message)]
    return [{1: "Like", -1: "Dislike"}.get(ratings.get(message.id, 0)) for message in answers]


def _message(message: Message) -> dict[str, Any] | None:
    if message.role == "user":
        return {"role": "user", "content": literal(message.content)}
    return answer(message.content, message.finish_reason)


def answer(text: str, finish_reason: FinishReason | None = None) -> dict[str, Any] | None:
    """An answer, marked if it ended early; None while there is nothing to show."""
    mark = _MARKS.get(finish_reason) if finish_reason else None
    content = [{"type": "text", "text": each} for each in (markdown(text), mark) if each]
    return {"role": "assistant", "content": content} if content else None


def status(info: ModelInfo, used: int | None = None, tokens_per_s: float | None = None, ttft_ms: float | None = None) -> str:
    """One line of HTML: model, precision, device, speed, time to first token, context used of total."""
    facts = [
        ("model", "Model", info.name),
        ("precision", "Precision", info.precision),
        ("device", "Device", info.device),
        ("speed", "Speed", f"{tokens_per_s:.0f} tokens/s" if tokens_per_s else "speed not known yet"),
        ("ttft", "Time to first token", f"first token {ttft_ms:,.0f} ms" if ttft_ms is not None else "no token yet"),
        ("context", "Context used", f"context {'?' if used is None else format(used, ',')} of {info.window:,}"),
    ]
    spans = (f'<span class="{name}" title="{title}">{escape(value)}</span>' for name, title, value in facts)
    return f'<p class="status">{" · ".join(spans)}</p>'


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
    return f'<p class="banner">{escape(" ".join(lines))}</p>' if lines else ""
