"""A recorded answer made again: the same ids, settings, seed and stops, each change at its token.

Scope: one answer through an engine, and the comparison. Knows no files and no names of models on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from qlora_chat import __version__
from qlora_chat.chat import Chat
from qlora_chat.engines import COMPILED, EngineError, Finish, ReplayableEngine, Stream
from qlora_chat.prompt import Prompt
from qlora_chat.replay.record import CannotReplay, Recorded
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

BEFORE_LETTERS = 60
LIKELIEST = 20
"""Tokens whose chances are asked for where two answers part."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was recorded."""

    what: str
    recorded: Any
    here: Any


@dataclass(frozen=True)
class FirstToken:
    """Where two answers part."""

    index: int
    """Counted from 0."""
    recorded_id: int | None
    """None: the recorded answer ends here."""
    recorded_text: str
    here_id: int | None
    here_text: str
    before: str
    """The end of what both have in common."""
    recorded_chance: float | None = None
    here_chance: float | None = None
    """What the model itself gives the two here, 0 to 1, before settings; None where the engine cannot tell."""


@dataclass(frozen=True)
class Replayed:
    """The answer made again, beside the recorded one."""

    answer: str
    answer_ids: tuple[int, ...]
    finish_reason: str
    first: FirstToken | None
    """None where every token is the same."""
    differences: tuple[Difference, ...]
    """In what answered, how it was held, how it ended and which settings it took."""
    independent: bool
    """Whether this pass computes each chat as if it were alone, so that nothing but the record decides the answer."""

    @property
    def identical(self) -> bool:
        """Whether it is the same answer, token for token, to the same end."""
        return self.first is None and not any(each.what in ("finish_reason", "settings_changes") for each in self.differences)


def replay(recorded: Recorded, chat: Chat) -> Replayed:
    """Make the answer again. CannotReplay where this engine cannot: ids outside its vocabulary, settings at a token."""
    ids, text, finish = _generate(recorded, chat)
    differences = [*_in_what_answers(recorded, chat)]
    cut = _cut_off(recorded)
    if not cut and finish.reason != recorded.finish_reason:
        differences.append(Difference("finish_reason", recorded.finish_reason, finish.reason))
    missed = [made for made, _ in recorded.changes if made not in dict(finish.changes or ()) and made < len(ids)]
    if missed:
        differences.append(Difference("settings_changes", missed, "not taken up at these tokens"))
    first = first_difference(recorded.answer_ids, ids, chat)
    first = first and _with_chances(first, recorded, chat)
    reason = recorded.finish_reason if cut and first is None else finish.reason
    independent = (chat.engine.info.computed_by or "").startswith(COMPILED)
    return Replayed(text.strip(), ids, reason, first, tuple(differences), independent)


def _generate(recorded: Recorded, chat: Chat) -> tuple[tuple[int, ...], str, Finish]:
    """Ids, text and end. An answer that a person cut off is made as far as it was."""
    sampling = recorded.sampling
    longest = len(recorded.answer_ids)
    if _cut_off(recorded):
        if not longest:
            raise CannotReplay("its answer ended before the first token: there is nothing to make again")
        sampling = sampling.changed(max_new_tokens=longest)
    stream = _begun(recorded, sampling, chat)
    ids: list[int] = []
    text = ""
    for piece in stream:
        text += piece.text
        if piece.token_id is not None:
            ids.append(piece.token_id)
        if piece.finish is not None:
            return tuple(ids), text, piece.finish
    raise CannotReplay("the engine ended without saying why")


def _begun(recorded: Recorded, sampling: Sampling, chat: Chat) -> Stream:
    prompt, engine = Prompt(recorded.prompt_text, recorded.prompt_ids), chat.engine
    most = sampling.max_new_tokens if _cut_off(recorded) else None
    changes = {made: each.changed(max_new_tokens=most or each.max_new_tokens) for made, each in recorded.changes}
    try:
        if not changes:
            return engine.stream(prompt, sampling, chat.stops)
        if isinstance(engine, ReplayableEngine):
            return engine.stream_with_changes(prompt, sampling, chat.stops, changes)
    except ValueError as problem:
        raise CannotReplay(f"this model cannot take the recorded prompt: {problem}") from problem
    raise CannotReplay("settings were changed in mid-answer, and this engine cannot change them at a given token")


def _cut_off(recorded: Recorded) -> bool:
    """Whether the answer did not come to an end of its own."""
    return recorded.finish_reason in ("cancelled", "partial", "error")


def first_difference(recorded: Sequence[int], here: Sequence[int], chat: Chat) -> FirstToken | None:
    """Where two answers part, or None where they are the same."""
    for index, (was, now) in enumerate(zip_longest(recorded, here)):
        if was != now:
            common = here[:index]
            before = chat.engine.tokenizer.decode(common)
            was_text, now_text = (_text_after(common, each, chat) for each in (was, now))
            return FirstToken(index, was, was_text, now, now_text, before[-BEFORE_LETTERS:])
    return None


def _with_chances(first: FirstToken, recorded: Recorded, chat: Chat) -> FirstToken:
    """The same, with how close the two were."""
    ids = (*recorded.prompt_ids, *recorded.answer_ids[: first.index])
    try:
        stream = chat.engine.stream(Prompt("", ids), Sampling(temperature=0.0, max_new_tokens=1, logprobs=LIKELIEST), Stops())
        likeliest = dict(next(iter(stream)).top_logprobs)
    except (ValueError, EngineError):
        return first

    def chance(token: int | None) -> float | None:
        ends = chat.stops.token_ids if token is None else {token}
        found = [math.exp(likeliest[each]) for each in ends if each in likeliest]
        return round(sum(found), 6) if found else None

    return replace(first, recorded_chance=chance(first.recorded_id), here_chance=chance(first.here_id))


def _text_after(common: Sequence[int], token: int | None, chat: Chat) -> str:
    """A token's text as it follows others: a token alone may lose its space."""
    if token is None:
        return ""
    decode = chat.engine.tokenizer.decode
    return decode([*common, token])[len(decode(common)) :]


def _in_what_answers(recorded: Recorded, chat: Chat) -> list[Difference]:
    """What answers now and is not what answered then; what was not recorded cannot differ."""
    info = chat.engine.info
    here = {
        "base": info.base,
        "adapter": info.adapter,
        "base_sha256": info.base_sha256,
        "adapter_sha256": info.adapter_sha256,
        "computed_by": info.computed_by,
        "precision": info.precision,
        "device": info.device,
        "prompt_format": info.prompt_format,
        "version": __version__,
    }
    known = {name: value for name, value in here.items() if name in recorded.model}
    unsaid = ("base_sha256", "adapter_sha256", "computed_by")  # null: not known
    return [
        Difference(name, recorded.model[name], value)
        for name, value in known.items()
        if recorded.model[name] != value and not (name in unsaid and None in (recorded.model[name], value))
    ]
