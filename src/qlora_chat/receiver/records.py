"""Records parsed from request bodies: checked, identified, with the columns that are counted.

Scope: payload versions 1 and 2. Knows no HTTP and no database.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from qlora_chat.settings import LOGITS_PROCESSORS

Kind = Literal["turn", "feedback", "tombstone"]
KINDS: tuple[Kind, ...] = ("turn", "feedback", "tombstone")
MAX_NAME_LENGTH = 200
"""Longest id or name in a column of its own, in characters."""
MAX_NUMBER = 1e12
"""Greatest absolute value of a number that is counted; sums and plots of such numbers stay finite."""
MAX_DEPTH = 100
"""Deepest nesting of a body: deeper ones cannot be written again by every JSON library."""
EARLIEST, LATEST = -86_400.0, 4_102_444_800.0
"""Bounds of a record's time, in seconds since 1970: every date of 1970 to 2099 in any zone."""
_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_NAME_LENGTH}}}")


class RecordRefused(ValueError):
    """The body is not a record of version 1 or 2; the message says what is wrong and quotes none of its text."""


@dataclass(frozen=True)
class Record:
    """A turn, feedback or tombstone as it was sent."""

    id: str
    """The sender's, or "v1-" and the SHA-256 of the body for a version 1 record without an id."""
    kind: Kind
    version: int
    conversation_id: str
    turn_id: str | None
    at: float
    """Time of the event, in seconds since 1970."""
    day: str
    """The sender's own date, YYYY-MM-DD."""
    body: str
    """Exactly what was sent."""
    sender: str = ""
    """Name of the sender's token; "" for LOGGING_TOKEN and for receivers without tokens."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of store.records; an absent one is NULL."""


def read_record(body: bytes, idempotency_key: str | None = None, sender: str = "") -> Record:
    """Parse a request's body; `idempotency_key` is its Idempotency-Key header. RecordRefused says what is wrong."""
    text, data = _parse(body)
    version = data.get("version", 1)
    if type(version) is not int or version not in (1, 2):
        raise RecordRefused("version must be 1 or 2")
    kind = _kind(data, version)
    at, day = _time(data)
    return Record(
        id=_record_id(data, version, idempotency_key, body),
        kind=kind,
        version=version,
        conversation_id=_identifier(data, "conversation_id"),
        turn_id=_identifier(data, "turn_id") if version == 2 and kind != "tombstone" else None,
        at=at,
        day=day,
        body=text,
        sender=sender,
        columns=_COLUMNS[kind](data),
    )


def _parse(body: bytes) -> tuple[str, dict[str, Any]]:
    try:
        text = body.decode("utf-8")
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise RecordRefused("the body is not UTF-8") from None
    except RecordRefused:
        raise
    except (ValueError, RecursionError):
        raise RecordRefused("the body is not JSON") from None
    if not isinstance(data, dict):
        raise RecordRefused(f"the body is a JSON {type(data).__name__}; an object was expected")
    if "\0" in text:
        raise RecordRefused("the body holds a NUL byte")
    if _is_too_deep(data):
        raise RecordRefused(f"the body is nested more than {MAX_DEPTH} levels deep")
    return text, data


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RecordRefused("the body holds a number that is too large for a double")
    return number


def _is_too_deep(data: Any) -> bool:
    level = [data]
    for _ in range(MAX_DEPTH):
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for inner in children for child in inner if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _kind(data: Mapping[str, Any], version: int) -> Kind:
    if version == 1:
        return "turn"
    kind = data.get("kind")
    if kind not in KINDS:
        raise RecordRefused(f"kind must be one of {', '.join(KINDS)}")
    return kind


def _record_id(data: Mapping[str, Any], version: int, idempotency_key: str | None, body: bytes) -> str:
    if idempotency_key is not None and not _ID.fullmatch(idempotency_key):
        raise RecordRefused(f"Idempotency-Key must be 1 to {MAX_NAME_LENGTH} visible ASCII characters")
    if version == 1:
        return idempotency_key or f"v1-{hashlib.sha256(body).hexdigest()}"
    record_id = _identifier(data, "id")
    if idempotency_key not in (None, record_id):
        raise RecordRefused("Idempotency-Key and id differ")
    return record_id


def _identifier(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise RecordRefused(f"{name} must be a string of 1 to {MAX_NAME_LENGTH} visible ASCII characters")
    return value


def _time(data: Mapping[str, Any]) -> tuple[float, str]:
    """Seconds since 1970 and the sender's date. Version 1 has local time without a zone: read as this machine's."""
    name = "finished_at" if data.get("finished_at") is not None else "timestamp"
    try:
        time = datetime.fromisoformat(data[name])
        at = time.timestamp()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise RecordRefused(f"{name} must be a time in ISO 8601") from None
    if not EARLIEST <= at <= LATEST:
        raise RecordRefused(f"{name} must be a time from 1970 to 2099")
    return at, time.date().isoformat()


def _turn_columns(data: Mapping[str, Any]) -> dict[str, Any]:
    question, answer = _last_exchange(data)
    settings, model = _object(data, "generate_kwargs"), _object(data, "model")
    if not isinstance(data.get("parent_id"), str | None):
        raise RecordRefused("parent_id must be a string or null")
    return {
        "question_chars": len(question),
        "answer_chars": len(answer),
        "finish_reason": _name(data.get("finish_reason")),
        **{name: _number(settings, name) for name in LOGITS_PROCESSORS},
        **{name: _number(data, name) for name in USAGE},
        "model": _name(model.get("name")),
        **{name: _name(model.get(name)) for name in ("base", "adapter", "precision", "device")},
    }


USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens", "ttft_ms", "tokens_per_s")


def _last_exchange(data: Mapping[str, Any]) -> tuple[str, str]:
    if not isinstance(data.get("messages"), str):
        raise RecordRefused("messages must be a string: the prompt's text")
    return last_exchange(data)


def last_exchange(data: Mapping[str, Any]) -> tuple[str, str]:
    """The last question and answer: the turn of this record. RecordRefused if history is not as documented."""
    pairs = data.get("history")
    if not isinstance(pairs, list) or not pairs:
        raise RecordRefused("history must be a list of [user, assistant] pairs, and must not be empty")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise RecordRefused("history must be a list of [user, assistant] pairs of strings")
    return pairs[-1][0], pairs[-1][1]


def _feedback_columns(data: Mapping[str, Any]) -> dict[str, Any]:
    feedback = read_feedback(data)
    return {
        "rating": feedback.get("rating"),
        "edited": feedback.get("edited") is not None,
        "commented": bool(feedback.get("comment")),
    }


def read_feedback(data: Mapping[str, Any]) -> dict[str, Any]:
    """Rating, edited and comment of a feedback record. RecordRefused says what is wrong."""
    feedback = data.get("feedback")
    if not isinstance(feedback, dict):
        raise RecordRefused("feedback must be an object with rating, edited and comment")
    rating = feedback.get("rating")
    if rating is not None and (type(rating) is not int or rating not in (1, -1)):
        raise RecordRefused("feedback.rating must be 1, -1 or null")
    for name in ("edited", "comment"):
        if not isinstance(feedback.get(name), str | None):
            raise RecordRefused(f"feedback.{name} must be a string or null")
    return feedback


_COLUMNS: Mapping[Kind, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "turn": _turn_columns, "feedback": _feedback_columns, "tombstone": lambda data: {},
}  # fmt: skip


def _object(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _number(data: Mapping[str, Any], name: str) -> float | None:
    """A number that can be counted, or None for a value that is no number, which is no reason to lose a turn."""
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > MAX_NUMBER:
        raise RecordRefused(f"{name} must be a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}")
    return float(value)


def _name(value: Any) -> str | None:
    """A name that fits a column, without what a database cannot store or a terminal would interpret."""
    if not isinstance(value, str):
        return None
    return "".join(letter for letter in value[:MAX_NAME_LENGTH] if letter.isprintable()) or None
