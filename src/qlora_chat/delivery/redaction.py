"""Takes out of a record what must not leave the machine; one that is ready, or a function of the operator's own.

Scope: from a record to a record. A redaction that fails gives none, and the caller then sends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from qlora_chat.settings import SettingsError

Redact = Callable[[dict[str, Any]], dict[str, Any]]
"""From a record (payload version 1 or 2) to what may be sent in its place. Whatever it raises, nothing is sent."""

TEXT_FIELDS = ("history", "messages", "answer", "feedback", "tags")
"""Where a record holds what people and the model said."""
ID_FIELDS = ("prompt_ids", "answer_ids")
"""Token ids can be turned into text again, so they go where the text was changed."""

_KEY_NAMES = r"(?:api[_-]?key|secret|token|password|passwd|pwd)"
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)),
    ("key", re.compile(r"\b(?:sk|pk|rk|hf|gh[pousr]|glpat|xox[abprs])[-_][A-Za-z0-9_-]{16,}\b")),
    ("key", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{20,}\b|\bAKIA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}\b")),
    ("key", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")),
    ("key", re.compile(rf"(?i)(?<=\b)({_KEY_NAMES}\s*[:=]\s*[\"']?)([^\s\"']{{6,}})")),
    ("e-mail", re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9-]+)+")),
    ("card", re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w])")),
    ("phone", re.compile(r"(?<![\w.])(?:\+|00)\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?!\w)")),
    ("phone", re.compile(r"(?<![\w.-])\(?0?\d{2,5}\)?[ /-]\d{3,4}[ -]\d{3,5}(?![\w-])")),
)  # fmt: skip


def redaction(name: str | None) -> Redact | None:
    """standard, or MODULE:FUNCTION. SettingsError where it cannot be found."""
    if name is None:
        return None
    if name == "standard":
        return redact
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as problem:
        raise SettingsError(f"LOGGING_REDACT is {name!r}, which cannot be loaded ({problem})") from None
    if not callable(found):
        raise SettingsError(f"LOGGING_REDACT is {name!r}, which is no function")
    return found  # type: ignore[return-value]


def redact(record: dict[str, Any]) -> dict[str, Any]:
    """E-mail addresses, telephone and card numbers and keys as [e-mail], [phone], [card], [key]."""
    cleaned = {name: _cleaned(value) if name in TEXT_FIELDS else value for name, value in record.items()}
    if any(cleaned.get(name) != record.get(name) for name in TEXT_FIELDS):
        cleaned |= {name: [] for name in ID_FIELDS if name in record}
    return cleaned


def redacted(text: str) -> str:
    """One text without them."""
    for label, pattern in PATTERNS:
        text = pattern.sub(lambda found, label=label: _replacement(found, label), text)
    return text


def _replacement(found: re.Match[str], label: str) -> str:
    if label == "card" and not _is_card(found.group()):
        return found.group()
    lead = found.group(1) if found.re.groups else ""
    return f"{lead}[{label}]"


def _is_card(digits: str) -> bool:
    """Luhn's check, which every payment card passes and nine of ten other numbers do not."""
    numbers = [int(each) for each in reversed(digits) if each.isdigit()]
    doubled = (sum(divmod(2 * each, 10)) for each in numbers[1::2])
    return (sum(numbers[::2]) + sum(doubled)) % 10 == 0


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {name: _cleaned(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(each) for each in value]
    return value
