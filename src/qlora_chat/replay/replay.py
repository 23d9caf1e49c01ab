"""Replay of a recorded answer: the same prompt ids, settings, seed and stops, and each settings change at its token.

Scope: one answer through an engine, and the comparison. Knows no files and no model names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from qlora_chat import __version__
from qlora_chat.chat import Chat
from qlora_chat.engines import COMPILED, EngineError, Finish, LocalModel, Stream
from qlora_chat.prompt import Prompt
from qlora_chat.replay.record import CannotReplay, RecordedAnswer
from qlora_chat.replay.tokens import text_after, top_logprobs
from qlora_chat.settings import Sampling

BEFORE_LETTERS = 60


@dataclass(frozen=True)
class Difference:
    """A value that differs from the recorded one."""

    what: str
    recorded: Any
    here: Any


@dataclass(frozen=True)
class FirstToken:
    """First token in which two answers differ."""

    index: int
    """Index in the answer, from 0."""
    recorded_id: int | None
    """None if the recorded answer ends here."""
    recorded_text: str
    here_id: int | None
    here_text: str
    before: str
    """Up to BEFORE_LETTERS of the text before it."""
    recorded_chance: float | None = None
    here_chance: float | None = None
    """Probabilities of the two tokens, 0 to 1, before sampling settings apply; None if the engine does not report them."""


@dataclass(frozen=True)
class ReplayResult:
    """Replayed answer and its differences from the recorded one."""

    answer: str
    answer_ids: tuple[int, ...]
    finish_reason: str
    first: FirstToken | None
    """None if all tokens are equal."""
    differences: tuple[Difference, ...]
    """In model, precision, device, finish reason and settings changes."""
    independent: bool
    """True if this forward pass gives the same result in any batch, so that the record alone determines the answer."""

    @property
    def identical(self) -> bool:
        """True if tokens, finish reason and settings changes are the same."""
        return self.first is None and not any(each.what in ("finish_reason", "settings_changes") for each in self.differences)


def replay(recorded: RecordedAnswer, chat: Chat) -> ReplayResult:
    """Replay an answer. CannotReplay for ids outside the vocabulary, and settings changes that the engine cannot time."""
    ids, text, finish = _generate(recorded, chat)
    differences = _model_differences(recorded, chat)
    cut_off = _is_cut_off(recorded)
    if not cut_off and finish.reason != recorded.finish_reason:
        differences.append(Difference("finish_reason", recorded.finish_reason, finish.reason))
    applied = dict(finish.changes or ())
    missed = [at_token for at_token, _ in recorded.changes if at_token not in applied and at_token < len(ids)]
    if missed:
        differences.append(Difference("settings_changes", missed, "not applied at these tokens"))
    first = first_difference(recorded.answer_ids, ids, chat)
    first = first and _with_probabilities(first, recorded, chat)
    reason = recorded.finish_reason if cut_off and first is None else finish.reason
    independent = (chat.engine.info.computed_by or "").startswith(COMPILED)
    return ReplayResult(text.strip(), ids, reason, first, tuple(differences), independent)


def _generate(recorded: RecordedAnswer, chat: Chat) -> tuple[tuple[int, ...], str, Finish]:
    """(ids, text, finish). An answer that was cut off is replayed up to its recorded length."""
    sampling = recorded.sampling
    if _is_cut_off(recorded):
        if not recorded.answer_ids:
            raise CannotReplay("its answer was cut off before the first token: there is nothing to replay")
        sampling = sampling.changed(max_new_tokens=len(recorded.answer_ids))
    stream = _stream(recorded, sampling, chat)
    ids: list[int] = []
    text = ""
    for piece in stream:
        text += piece.text
        if piece.token_id is not None:
            ids.append(piece.token_id)
        if piece.finish is not None:
            return tuple(ids), text, piece.finish
    raise CannotReplay("the engine reported no finish reason")


def _stream(recorded: RecordedAnswer, sampling: Sampling, chat: Chat) -> Stream:
    prompt, engine = Prompt(recorded.prompt_text, recorded.prompt_ids), chat.engine
    limit = sampling.max_new_tokens if _is_cut_off(recorded) else None
    changes = {at: each.changed(max_new_tokens=limit or each.max_new_tokens) for at, each in recorded.changes}
    own, schema = chat.stops_within(recorded.schema), recorded.schema
    stops = replace(own, texts=(*own.texts, *recorded.stop_texts))
    try:
        if not changes:
            return engine.stream(prompt, sampling, stops, schema=schema)
        if isinstance(engine, LocalModel):
            return engine.stream(prompt, sampling, stops, schema=schema, changes=changes)
    except ValueError as problem:
        raise CannotReplay(f"this model cannot take the recorded prompt: {problem}") from problem
    raise CannotReplay("settings were changed during the answer, and this engine cannot change them at a given token")


def _is_cut_off(recorded: RecordedAnswer) -> bool:
    """True if the answer was ended from outside."""
    return recorded.finish_reason in ("cancelled", "partial", "error")


def first_difference(recorded: Sequence[int], here: Sequence[int], chat: Chat) -> FirstToken | None:
    """First difference of two answers; None if they are equal."""
    for index, (was, now) in enumerate(zip_longest(recorded, here)):
        if was != now:
            common = here[:index]
            before = chat.engine.tokenizer.decode(common)
            was_text, now_text = ("" if each is None else text_after(chat.engine, common, each) for each in (was, now))
            return FirstToken(index, was, was_text, now, now_text, before[-BEFORE_LETTERS:])
    return None


def _with_probabilities(first: FirstToken, recorded: RecordedAnswer, chat: Chat) -> FirstToken:
    """First difference with the probabilities of both tokens, if the engine reports them."""
    ids = (*recorded.prompt_ids, *recorded.answer_ids[: first.index])
    try:
        logprobs = dict(top_logprobs(chat.engine, ids))
    except (ValueError, EngineError):
        return first

    def probability(token: int | None) -> float | None:
        tokens = chat.stops.token_ids if token is None else {token}
        probabilities = [math.exp(logprobs[each]) for each in tokens if each in logprobs]
        return round(sum(probabilities), 6) if probabilities else None

    return replace(first, recorded_chance=probability(first.recorded_id), here_chance=probability(first.here_id))


def _model_differences(recorded: RecordedAnswer, chat: Chat) -> list[Difference]:
    """Differences in the model; a value that was not recorded, or is unknown, does not differ."""
    info = chat.engine.info
    here = {
        "base": info.base,
        "adapter": info.adapter,
        "base_sha256": info.base_sha256,
        "adapter_sha256": info.adapter_sha256,
        "computed_by": info.computed_by,
        "base_form": info.base_form,
        "precision": info.precision,
        "device": info.device,
        "prompt_format": info.prompt_format,
        "version": __version__,
    }
    null_is_unknown = ("base_sha256", "adapter_sha256", "computed_by", "base_form")
    return [
        Difference(name, recorded.model[name], value)
        for name, value in here.items()
        if name in recorded.model
        and recorded.model[name] != value
        and not (name in null_is_unknown and None in (recorded.model[name], value))
    ]
