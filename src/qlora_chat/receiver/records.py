"""From the bytes of a request to a record: checked, named, and with the figures that are counted taken out.

Scope: payload versions 1 and 2. Knows no HTTP and no database.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Kind = Literal["turn", "feedback", "tombstone"]
KINDS: tuple[Kind, ...] = ("turn", "feedback", "tombstone")
LONGEST_NAME = 200
"""Characters of an id or a name that is kept in a column of its own."""
_ID = re.compile(rf"[\x21-\x7e]{{1,{LONGEST_NAME}}}")


class RecordRefused(ValueError):
    """The body is no record of version 1 or 2; the message says what is wrong and quotes none of its text."""


@dataclass(frozen=True)
class Record:
    """One thing that was sent."""

    id: str
    """Given by the sender, or "v1-" and the SHA-256 of the body where version 1 came without one."""
    kind: Kind
    version: int
    conversation_id: str
    turn_id: str | None
    at: float
    """When it happened, in seconds since 1970."""
    day: str
    """The sender's own date, YYYY-MM-DD."""
    body: str
    """Exactly what was sent."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Columns of store.records beyond those above; what is absent is NULL."""


def read_record(body: bytes, given_id: str | None = None) -> Record:
    """The record in a request's body; `given_id` is its Idempotency-Key. RecordRefused says what is wrong."""
    text, data = _parsed(body)
    version = data.get("version", 1)
    if version not in (1, 2) or isinstance(version, bool):
        raise RecordRefused("version must be 1 or 2")
    kind = _kind(data, version)
    at, day = _moment(data)
    return Record(
        id=_record_id(data, version, given_id, body),
        kind=kind,
        version=version,
        conversation_id=_identifier(data, "conversation_id"),
        turn_id=_turn_id(data, version, kind),
        at=at,
        day=day,
        body=text,
        figures=_FIGURES[kind](data),
    )


def _parsed(body: bytes) -> tuple[str, dict[str, Any]]:
    try:
        text = body.decode("utf-8")
        data = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise RecordRefused("the body is not UTF-8") from None
    except (ValueError, RecursionError):
        raise RecordRefused("the body is not JSON") from None
    if not isinstance(data, dict):
        raise RecordRefused(f"the body is a JSON {type(data).__name__}; an object was expected")
    if "\0" in text:
        raise RecordRefused("the body holds a NUL byte")
    return text, data


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _kind(data: Mapping[str, Any], version: int) -> Kind:
    if version == 1:
        return "turn"
    kind = data.get("kind")
    if kind not in KINDS:
        raise RecordRefused(f"kind must be one of {', '.join(KINDS)}")
    return kind


def _record_id(data: Mapping[str, Any], version: int, given: str | None, body: bytes) -> str:
    if given is not None and not _ID.fullmatch(given):
        raise RecordRefused(f"Idempotency-Key must be 1 to {LONGEST_NAME} visible ASCII characters")
    if version == 1:
        return given or f"v1-{hashlib.sha256(body).hexdigest()}"
    own = _identifier(data, "id")
    if given not in (None, own):
        raise RecordRefused("Idempotency-Key and id differ")
    return own


def _identifier(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise RecordRefused(f"{name} must be a string of 1 to {LONGEST_NAME} visible ASCII characters")
    return value


def _turn_id(data: Mapping[str, Any], version: int, kind: Kind) -> str | None:
    return _identifier(data, "turn_id") if version == 2 and kind != "tombstone" else None


def _moment(data: Mapping[str, Any]) -> tuple[float, str]:
    """Seconds since 1970 and the sender's date. Version 1 gives local time without a zone: taken as this machine's."""
    name = "finished_at" if data.get("finished_at") is not None else "timestamp"
    try:
        moment = datetime.fromisoformat(data[name])
        return moment.timestamp(), moment.date().isoformat()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise RecordRefused(f"{name} must be a time as ISO 8601 writes it") from None


def _turn_figures(data: Mapping[str, Any]) -> dict[str, Any]:
    question, answer = _last_exchange(data)
    settings, model = _object(data, "generate_kwargs"), _object(data, "model")
    return {
        "question_chars": len(question),
        "answer_chars": len(answer),
        "finish_reason": _name(data.get("finish_reason")),
        **{name: _number(settings.get(name)) for name in ("temperature", "top_p", "top_k", "repetition_penalty")},
        **{name: _number(data.get(name)) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
        **{name: _number(data.get(name)) for name in ("ttft_ms", "tokens_per_s")},
        **{column: _name(model.get(name)) for column, name in _MODEL_COLUMNS.items()},
    }


_MODEL_COLUMNS = {
    "model": "name", "base": "base", "adapter": "adapter", "precision": "precision", "device": "device",
}  # fmt: skip


def _last_exchange(data: Mapping[str, Any]) -> tuple[str, str]:
    """What was asked and answered last: the turn that this record is about."""
    pairs = data.get("history")
    if not isinstance(pairs, list) or not pairs:
        raise RecordRefused("history must be a list of [user, assistant] pairs, and must not be empty")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise RecordRefused("history must be a list of [user, assistant] pairs of strings")
    if not isinstance(data.get("messages"), str):
        raise RecordRefused("messages must be a string: the prompt's text")
    return pairs[-1][0], pairs[-1][1]


def _feedback_figures(data: Mapping[str, Any]) -> dict[str, Any]:
    feedback = _object(data, "feedback")
    rating = feedback.get("rating")
    if rating not in (1, -1, None) or isinstance(rating, bool):
        raise RecordRefused("feedback.rating must be 1, -1 or null")
    for name in ("edited", "comment"):
        if not isinstance(feedback.get(name), str | None):
            raise RecordRefused(f"feedback.{name} must be a string or null")
    return {"rating": rating, "edited": feedback.get("edited") is not None, "commented": bool(feedback.get("comment"))}


def _tombstone_figures(_: Mapping[str, Any]) -> dict[str, Any]:
    return {}


_FIGURES = {"turn": _turn_figures, "feedback": _feedback_figures, "tombstone": _tombstone_figures}


def _object(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A finite number, or None: a figure that cannot be counted is no reason to lose a turn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _name(value: Any) -> str | None:
    """A name short enough for a column, without what a database cannot hold or a terminal would obey."""
    if not isinstance(value, str):
        return None
    return "".join(letter for letter in value[:LONGEST_NAME] if letter.isprintable()) or None
