"""One question to several models and settings at once, and what people thought of the answers.

Scope: the models that can be compared now, answers begun together, names of what wrote them. Knows no page and no terminal.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from qlora_chat.chat import AnswerOptions, Chat, Turn
from qlora_chat.engines import EngineError
from qlora_chat.history import ModelUsed
from qlora_chat.messages import Conversation, Message
from qlora_chat.models import ModelInfo
from qlora_chat.settings import SAMPLING_SETTINGS, Sampling

FEWEST, MOST = 2, 4
"""Answers of a comparison."""


@dataclass(frozen=True)
class Contender:
    """A model that this engine can answer with now."""

    name: str
    """As AnswerOptions.adapter."""
    label: str


def contenders(info: ModelInfo) -> list[Contender]:
    """The model without an adapter, then each adapter; the model as it was opened where it has none to choose from."""
    if not info.adapters:
        return [Contender(info.adapter or info.name, info.adapter or info.name)]
    alone = [] if info.name in info.adapters else [Contender(info.name, without_adapter(info.name))]
    return [*alone, *(Contender(each, each) for each in info.adapters)]


def without_adapter(name: str) -> str:
    """Label of a model that answers without an adapter."""
    return f"{name} (no adapter)"


def what_more_needs(info: ModelInfo) -> str:
    """One line: what to start so that more can be compared."""
    start = "qlora-chat serve --base BASE --adapter NAME=FOLDER"
    if info.adapters:
        return f"Further adapters: start with {start}, once for each. Another precision needs a server of its own."
    if info.adapter:
        return (
            f"The base alone cannot answer here: it was opened together with its adapter. To keep the two apart, start {start}"
        )
    return f"No adapter is loaded to compare with. To load one, or several, start {start}"


def begin_answers(
    chat: Chat, conversation: Conversation, question: str, columns: Sequence[AnswerOptions]
) -> tuple[list[Turn], Conversation]:
    """Begin one answer a column to a question after a conversation; they share the engine's steps.

    The answers are versions of each other. Returns them, and the conversation to show: as before, with the answers on a branch
    beside it; an empty one goes on with the newest answer. Errors as Chat.reply, with nothing left running.
    """
    turns: list[Turn] = []
    asked = conversation.adding(Message("user", question))
    try:
        for options in columns:
            turns.append(chat.reply_to(asked, options, before=conversation))
            asked = turns[-1].conversation
    except BaseException:
        for turn in turns:
            turn.cancel()
            threading.Thread(target=_drain, args=(turn,), daemon=True).start()
        raise
    return turns, chat.restore(conversation, asked) if conversation.messages else asked


def _drain(turn: Turn) -> None:
    """Read a cancelled turn to its end, which saves it as far as it got."""
    with suppress(EngineError):
        for _ in turn:
            pass


def names(models: Sequence[ModelUsed], samplings: Sequence[Sampling]) -> list[str]:
    """Names of the writers, as the engine reported: the adapter, or the model without one, and the settings that differ."""
    differing = [
        name
        for name, setting in SAMPLING_SETTINGS.items()
        if setting.label and name != "seed" and len({getattr(each, name) for each in samplings}) > 1
    ]
    return [
        ", ".join([_model_name(model), *(f"{SAMPLING_SETTINGS[name].label} {getattr(sampling, name):g}" for name in differing)])
        for model, sampling in zip(models, samplings, strict=True)
    ]


def _model_name(model: ModelUsed) -> str:
    return model.adapter or without_adapter(model.name)


def with_one_seed(columns: Sequence[AnswerOptions], seed: int) -> list[AnswerOptions]:
    """The columns with the same random numbers, so that only what was chosen differs; a seed that is set stays."""
    return [
        each if each.sampling.seed is not None else replace(each, sampling=each.sampling.changed(seed=seed)) for each in columns
    ]
