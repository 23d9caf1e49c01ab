"""Texts, times and counts from the values of foreign exports, whatever their types are.

Scope: one value at a time. Knows no tool's format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from qlora_chat.dialogue_formats import kind_of
from qlora_chat.history.importing import BadExport
from qlora_chat.text import counted, replace_surrogates

IMAGES, ATTACHMENTS, TOOLS, REASONING = "images", "attachments", "tool messages", "reasoning"
SYSTEM, OTHER_ROLES, EMPTY = "system messages", "messages of other roles", "empty turns"
EARLY = "answers before the first question"
NO_QUESTION = "conversations without a question"
"""Names under which a report counts what is left out."""
_ONE = {
    IMAGES: "image", ATTACHMENTS: "attachment", TOOLS: "tool message", REASONING: "piece of reasoning",
    SYSTEM: "system message", OTHER_ROLES: "message of another role", EMPTY: "empty turn",
    EARLY: "answer before the first question", NO_QUESTION: "conversation without a question",
}  # fmt: skip


def named_count(name: str, count: int) -> str:
    """A number of what is left out, in words: "1 image"."""
    return counted(count, _ONE.get(name, name), "pieces of reasoning" if name == REASONING else name)


_FIRST_MILLISECONDS = 1e11
"""Numbers above are milliseconds: as seconds they would lie after the year 5000."""
_YEARS = range(1971, 9999)
_DATE_FORMATS = (
    "%B %d, %Y %I:%M%p", "%B %d, %Y %I:%M %p", "%b %d, %Y %H:%M", "%Y-%m-%d @%Hh %Mm %Ss %fms", "%Y-%m-%d@%Hh%Mm%Ss",
    "%Y-%m-%d @%Hh %Mm %Ss", "%Y-%m-%d %H:%M",
)  # fmt: skip
"""Dates as SillyTavern and text-generation-webui write them, beside ISO 8601."""


def clean(text: str) -> str:
    """Text as every store returns it: without lone surrogates and NUL."""
    return replace_surrogates(text).replace("\0", "\u2400")


def text_or_none(value: Any, limit: int = 200) -> str | None:
    """A short text on one line, or None for anything else."""
    line = " ".join(clean(value).split()) if isinstance(value, str) else ""
    return "".join(each for each in line if each.isprintable())[:limit] or None


def object_of(value: Any) -> Mapping[str, Any]:
    """The object itself; an empty one for any other value."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """The list itself; an empty one for any other value."""
    return value if isinstance(value, list) else []


def list_at(record: Mapping[str, Any], name: str) -> list[Any]:
    """List under a name. BadExport if there is none."""
    value = record.get(name)
    if not isinstance(value, list):
        raise BadExport(f"{name!r} is {kind_of(value) if name in record else 'missing'}, but must be a list")
    return value


def time_of(value: Any) -> datetime | None:
    """Time of a number (seconds or milliseconds since 1970) or of a text; None where there is none that can be read."""
    moment: datetime | None = None
    with suppress(ValueError, OverflowError, OSError):
        if isinstance(value, str) and len(value) <= 40:
            moment = _parsed_date(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            moment = datetime.fromtimestamp(value / 1000 if abs(value) > _FIRST_MILLISECONDS else value)
        if moment and moment.year in _YEARS:
            return moment.astimezone()
    return None


def _parsed_date(text: str) -> datetime | None:
    with suppress(ValueError):
        return datetime.fromisoformat(text)
    for each in _DATE_FORMATS:
        with suppress(ValueError):
            return datetime.strptime(text, each)
    return datetime.fromtimestamp(int(text) / 1000) if text.isdecimal() else None


def text_of(content: Any) -> tuple[str, Counter[str]]:
    """Text of a message's content, which may be a list of parts, and the counts of the parts that are left out."""
    if isinstance(content, str):
        return clean(content), Counter()
    texts: list[str] = []
    left_out: Counter[str] = Counter()
    for part in content if isinstance(content, list) else [content]:
        text, what = _part(part)
        texts += [text] if text.strip() else []
        left_out += Counter([what] if what else [])
    return "\n\n".join(texts), left_out


def files_of(message: Mapping[str, Any]) -> Counter[str]:
    """Counts of the files beside a message."""
    types = (str(object_of(each).get("type")) for each in list_of(message.get("files")))
    return Counter(IMAGES if each.startswith("image") else ATTACHMENTS for each in types)


def _part(part: Any) -> tuple[str, str | None]:
    """(text, name of what is left out) of one part of a message."""
    if isinstance(part, str):
        return clean(part), None
    if not isinstance(part, dict):
        return "", None
    kind = part.get("type") or part.get("content_type") or "text"
    text = part.get("text")
    text = text.get("value") if isinstance(text, dict) else text
    if kind in ("text", "input_text", "output_text", "audio_transcription"):
        return clean(text) if isinstance(text, str) else "", None
    return "", _kind_left_out(str(kind))


def _kind_left_out(kind: str) -> str:
    if "image" in kind:
        return IMAGES
    if "tool" in kind or "function" in kind:
        return TOOLS
    return REASONING if any(each in kind for each in ("think", "reason", "thought")) else ATTACHMENTS
