"""Redaction of records before they leave the machine: a built-in one, or a function of the operator's.

Scope: record to record. If a redaction raises, the caller must send nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from qlora_chat.settings import SettingsError

Redact = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a record (payload version 1 or 2) and returns what may be sent. If it raises, nothing is sent."""

TEXT_FIELDS = ("history", "messages", "answer", "feedback", "tags", "stop_texts", "answer_schema")
"""Fields with text of users and the model."""
ID_FIELDS = ("prompt_ids", "answer_ids")
"""Fields with token ids, which can be decoded into text and so are emptied if any text is redacted."""

_KEY_NAMES = r"(?:api[_-]?key|secret|token|password|passwd|pwd)"
_WEB_TOKEN = re.compile(r"(?:^|-)(eyJ[A-Za-z0-9_-]{8,})")
MIN_PHONE_DIGITS = 3
MIN_WEB_TOKEN_PART = 8
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)),
    ("key", re.compile(r"\b(?:sk|pk|rk|hf|gh[pousr]|glpat|xox[abprs])[-_][A-Za-z0-9_-]{16,}\b")),
    ("key", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{20,}\b|\bAKIA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}\b")),
    ("web token", re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)++")),
    ("key", re.compile(rf"(?i)(?<=\b)({_KEY_NAMES}\s*[:=]\s*[\"']?)([^\s\"']{{6,}})")),
    ("e-mail", re.compile(
        r"(?<![A-Za-z0-9._%+-])([._%+-]*+)[A-Za-z0-9][A-Za-z0-9._%+-]*+@[A-Za-z0-9][A-Za-z0-9-]*+(?<!-)(?:\.[A-Za-z0-9-]++)++"
    )),
    ("card", re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w])")),
    ("phone", re.compile(r"(?<![\w.])(?:\+|00)\d{1,3}+(?:[ ./-]?+\(?+\d{1,5}+\)?+){0,6}(?!\w)")),
    ("phone", re.compile(r"(?<![\w.-])\(?0?\d{2,5}\)?[ /-]\d{3,4}[ -]\d{3,5}(?![\w-])")),
)  # fmt: skip

"""Patterns in the order of their use. Each reads a text in linear time, whatever it holds: runs of characters are matched whole
(possessive quantifiers) and from their beginning, and repetitions of separated digits are bounded."""


def load_redaction(name: str | None) -> Redact | None:
    """Redaction named `standard` or MODULE:FUNCTION; None without a name. SettingsError if it cannot be loaded."""
    if name is None:
        return None
    if name == "standard":
        return redact
    module, _, function = name.partition(":")
    try:
        redaction = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as problem:
        raise SettingsError(f"LOGGING_REDACT is {name!r}, which cannot be loaded ({problem})") from None
    if not callable(redaction):
        raise SettingsError(f"LOGGING_REDACT is {name!r}, which is not a function")
    return redaction  # type: ignore[return-value]


def redact(record: dict[str, Any]) -> dict[str, Any]:
    """Replace e-mail addresses, telephone and card numbers and keys with [e-mail], [phone], [card], [key]."""
    redacted = {name: _redact_value(value) if name in TEXT_FIELDS else value for name, value in record.items()}
    if any(redacted.get(name) != record.get(name) for name in TEXT_FIELDS):
        redacted |= {name: [] for name in ID_FIELDS if name in record}
    return redacted


def redact_text(text: str) -> str:
    """Redact one text."""
    for label, pattern in PATTERNS:
        text = pattern.sub(lambda match, label=label: _replacement(match, label), text)
    return text


def _replacement(match: re.Match[str], label: str) -> str:
    if label == "web token":
        return _without_web_tokens(match.group())
    if label == "card" and not _is_card(match.group()):
        return match.group()
    if label == "phone" and sum(each.isdigit() for each in match.group()) < MIN_PHONE_DIGITS:
        return match.group()
    prefix = match.group(1) if match.re.groups else ""
    return f"{prefix}[{label}]"


def _is_card(digits: str) -> bool:
    """True if the digits pass the Luhn check, as every payment card does and one in ten other numbers."""
    numbers = [int(each) for each in reversed(digits) if each.isdigit()]
    doubled = (sum(divmod(2 * each, 10)) for each in numbers[1::2])
    return (sum(numbers[::2]) + sum(doubled)) % 10 == 0


def _without_web_tokens(dotted: str) -> str:
    """Dotted parts with [key] for each JSON Web Token: three parts of some length, the first one beginning with eyJ."""
    parts, replaced, index = dotted.split("."), list[str](), 0
    while index < len(parts):
        token, rest = _WEB_TOKEN.search(parts[index]), parts[index + 1 : index + 3]
        is_token = token is not None and len(rest) == 2 and min(map(len, rest)) >= MIN_WEB_TOKEN_PART
        replaced.append(f"{parts[index][: token.start(1)]}[key]" if token and is_token else parts[index])
        index += 3 if is_token else 1
    return ".".join(replaced)


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {name: _redact_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_value(each) for each in value]
    return value
