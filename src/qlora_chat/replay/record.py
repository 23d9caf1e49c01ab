"""What a version 2 record says of its answer, checked.

Scope: from JSON to values. Knows no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_chat.errors import UserError
from qlora_chat.settings import Sampling, SettingsError


class CannotReplay(UserError, ValueError):
    """The record does not say enough, or something else; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Recorded:
    """An answer as it was recorded."""

    turn_id: str
    prompt_text: str
    prompt_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    finish_reason: str
    sampling: Sampling
    """As the answer began, with the seed that was used."""
    changes: tuple[tuple[int, Sampling], ...]
    """(tokens made before, settings from then on)."""
    model: Mapping[str, Any]
    """name, base, adapter, precision, device, prompt_format, base_sha256, adapter_sha256, computed_by, version."""


def read_recorded(text: str, turn_id: str | None = None) -> Recorded:
    """The turn in a JSON object, or in JSON lines; `turn_id` picks one of several. CannotReplay says what is wrong."""
    turns = [each for each in _objects(text) if each.get("kind", "turn") == "turn"]
    chosen = [each for each in turns if turn_id in (None, each.get("turn_id"))]
    if not chosen:
        raise CannotReplay(f"there is no turn {turn_id}" if turn_id else "there is no turn in it")
    if len(chosen) > 1:
        raise CannotReplay(f"it holds {len(chosen)} turns; choose one with --turn ID")
    return recorded(chosen[0])


def recorded(data: Mapping[str, Any]) -> Recorded:
    """The turn that a record describes. CannotReplay for version 1, and for one whose ids were taken out."""
    if data.get("version") != 2:
        raise CannotReplay(
            "it is a version 1 record, which keeps neither token ids nor the seed; LOGGING_VERSION=2 records both"
        )
    prompt_ids, answer_ids = _ids(data, "prompt_ids"), _ids(data, "answer_ids")
    if not prompt_ids:
        raise CannotReplay("it holds no prompt_ids: they were taken out, by redaction perhaps")
    first = _sampling(data, data.get("generate_kwargs"), data.get("max_new_tokens"))
    return Recorded(
        turn_id=str(data.get("turn_id")),
        prompt_text=str(data.get("messages", "")),
        prompt_ids=prompt_ids,
        answer=str(data.get("answer", "")),
        answer_ids=answer_ids,
        finish_reason=str(data.get("finish_reason")),
        sampling=first,
        changes=_changes(data, first),
        model=_mapping(data.get("model")),
    )


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        whole = json.loads(text)
        found = whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError):
        found = [_line(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not all(isinstance(each, dict) for each in found):
        raise CannotReplay("a record is a JSON object, as `logs query --json` prints it")
    return found


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise CannotReplay(
            f"line {number} is not JSON; a record is one JSON object, as `logs query --json` prints it"
        ) from None


def _ids(data: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = data.get(name)
    if not isinstance(value, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        raise CannotReplay(f"{name} must be a list of token ids")
    return tuple(value)


def _changes(data: Mapping[str, Any], first: Sampling) -> tuple[tuple[int, Sampling], ...]:
    """Changes that changed something; of several at one token the last."""
    listed = data.get("settings_changes") or []
    at: dict[int, Sampling] = {}
    for each in listed if isinstance(listed, list) else []:
        change = _mapping(each)
        made = change.get("at_token")
        if not isinstance(made, int) or isinstance(made, bool) or made < 0:
            raise CannotReplay("settings_changes: at_token must be a whole number from 0 on")
        longest = change.get("max_new_tokens", first.max_new_tokens)
        at[made] = _sampling(data, change.get("generate_kwargs"), longest)
    before, effective = first, []
    for made, sampling in sorted(at.items(), key=lambda item: item[0]):
        if sampling != before:
            effective.append((made, sampling))
        before = sampling
    return tuple(effective)


def _sampling(data: Mapping[str, Any], kwargs: Any, max_new_tokens: Any) -> Sampling:
    given = {name: value for name, value in _mapping(kwargs).items() if value is not None}
    try:
        sampling = Sampling(max_new_tokens=max_new_tokens, seed=data.get("seed")).changed(**given)
    except SettingsError as problem:
        raise CannotReplay(f"its settings cannot be used: {problem}") from None
    if sampling.temperature > 0 and sampling.seed is None:
        raise CannotReplay("its answer was sampled, and the seed is not recorded")
    return sampling


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
