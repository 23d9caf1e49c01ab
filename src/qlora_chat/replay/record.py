"""A version 2 record as a checked value.

Scope: JSON to values. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_chat.errors import UserError
from qlora_chat.json_records import json_lines, parse
from qlora_chat.messages import AnswerSchema
from qlora_chat.settings import Sampling, SettingsError


class CannotReplay(UserError, ValueError):
    """A record that is incomplete or invalid; the message says what is missing and what to do."""


@dataclass(frozen=True)
class RecordedAnswer:
    """An answer and all that determined it."""

    turn_id: str
    prompt_text: str
    prompt_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    finish_reason: str
    sampling: Sampling
    """Settings at the first token, with the seed that was used."""
    changes: tuple[tuple[int, Sampling], ...]
    """(number of tokens before the change, settings after it)."""
    stop_texts: tuple[str, ...]
    """Besides the prompt format's."""
    schema: AnswerSchema | None
    """Schema that it had to match."""
    model: Mapping[str, Any]
    """name, base, adapter, precision, device, prompt_format, base_sha256, adapter_sha256, computed_by,
    base_form, version."""


def read_recorded_answer(text: str, turn_id: str | None = None) -> RecordedAnswer:
    """Turn of a JSON object, array or JSON lines; `turn_id` selects one of several. CannotReplay says what is wrong."""
    turns = [each for each in _objects(text) if each.get("kind", "turn") == "turn"]
    selected = [each for each in turns if turn_id in (None, each.get("turn_id"))]
    if not selected:
        raise CannotReplay(f"there is no turn {turn_id}" if turn_id else "there is no turn in it")
    if len(selected) > 1:
        raise CannotReplay(f"it holds {len(selected)} turns; choose one with --turn ID")
    return parse_recorded_answer(selected[0])


def parse_recorded_answer(data: Mapping[str, Any]) -> RecordedAnswer:
    """Answer of a record. CannotReplay for version 1, and for a record whose token ids were redacted."""
    if data.get("version") != 2:
        raise CannotReplay("it is a version 1 record, which has neither token ids nor the seed; LOGGING_VERSION=2 records both")
    prompt_ids, answer_ids = _ids(data, "prompt_ids"), _ids(data, "answer_ids")
    if not prompt_ids:
        raise CannotReplay("it holds no prompt_ids; a redaction may have removed them")
    sampling = _sampling(data, data.get("generate_kwargs"), data.get("max_new_tokens"))
    return RecordedAnswer(
        turn_id=str(data.get("turn_id")),
        prompt_text=str(data.get("messages", "")),
        prompt_ids=prompt_ids,
        answer=str(data.get("answer", "")),
        answer_ids=answer_ids,
        finish_reason=str(data.get("finish_reason")),
        sampling=sampling,
        changes=_changes(data, sampling),
        stop_texts=_stop_texts(data),
        schema=_schema(data),
        model=_mapping(data.get("model")),
    )


def _objects(text: str) -> list[dict[str, Any]]:
    expected = "a record is one JSON object, as `logs query --json` prints it"
    data = text.encode("utf-8", "surrogatepass")
    whole = parse(data)
    found = [whole] if whole.problem is None else [*json_lines(data)]
    if broken := next((each for each in found if each.problem), None):
        raise CannotReplay(f"line {broken.line} {broken.problem}; {expected}")
    records = [record for each in found for record in (each.value if isinstance(each.value, list) else [each.value])]
    if not all(isinstance(each, dict) for each in records):
        raise CannotReplay(expected)
    return records


def _ids(data: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = data.get(name)
    if not isinstance(value, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        raise CannotReplay(f"{name} must be a list of token ids")
    return tuple(value)


def _stop_texts(data: Mapping[str, Any]) -> tuple[str, ...]:
    value = data.get("stop_texts") or []
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise CannotReplay("stop_texts must be a list of texts")
    return tuple(value)


def _schema(data: Mapping[str, Any]) -> AnswerSchema | None:
    value = data.get("answer_schema")
    if value is None:
        return None
    text, strict = _mapping(value).get("text"), _mapping(value).get("strict")
    if not isinstance(text, str) or not isinstance(strict, bool):
        raise CannotReplay("answer_schema must have a text, and true or false as strict")
    return AnswerSchema(text, strict)


def _changes(data: Mapping[str, Any], sampling: Sampling) -> tuple[tuple[int, Sampling], ...]:
    """Effective changes in order: those that differ from the settings before them, and the last one of several at a token."""
    recorded = data.get("settings_changes") or []
    by_token: dict[int, Sampling] = {}
    for each in recorded if isinstance(recorded, list) else []:
        change = _mapping(each)
        at_token = change.get("at_token")
        if not isinstance(at_token, int) or isinstance(at_token, bool) or at_token < 0:
            raise CannotReplay("settings_changes: at_token must be a whole number from 0 on")
        max_new_tokens = change.get("max_new_tokens", sampling.max_new_tokens)
        by_token[at_token] = _sampling(data, change.get("generate_kwargs"), max_new_tokens)
    before, effective = sampling, []
    for at_token, after in sorted(by_token.items(), key=lambda item: item[0]):
        if after != before:
            effective.append((at_token, after))
        before = after
    return tuple(effective)


def _sampling(data: Mapping[str, Any], kwargs: Any, max_new_tokens: Any) -> Sampling:
    settings = {name: value for name, value in _mapping(kwargs).items() if value is not None}
    try:
        sampling = Sampling(max_new_tokens=max_new_tokens, seed=data.get("seed")).changed(**settings)
    except SettingsError as problem:
        raise CannotReplay(f"its settings cannot be used: {problem}") from None
    if sampling.temperature > 0 and sampling.seed is None:
        raise CannotReplay("its answer was sampled, and the seed is not recorded")
    return sampling


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
