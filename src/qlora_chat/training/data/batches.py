"""Dialogues -> token ids under the loss, and the order in which steps take them.

Scope: tokenising, what is held out, and a plan of steps that follows from the seeds alone, so that a run which is gone
on with meets the same dialogues. Knows no weights.

Shapes: N tokens of a pass, laid end to end without padding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.messages import Conversation
from qlora_chat.prompt import SYSTEM_TEXT, SpanTokenizer, prompt_format, training_text
from qlora_chat.training import TrainError
from qlora_chat.training.recipe import TrainSettings

HELD_OUT_AT_MOST = 500
MEGABATCH = 50
"""Steps whose dialogues are sorted by length together, as Transformers' group_by_length does."""


@dataclass(frozen=True)
class Examples:
    """Tokenised dialogues in one row."""

    ids: Tensor  # (T,) int32
    learnt: Tensor  # (T,) bool
    offsets: tuple[int, ...]
    """Where each begins in the row; one more for the end."""
    empty: int = 0
    """Dialogues left out because nothing under the loss was left of them within max_length."""
    cut: int = 0
    """Dialogues of which max_length cut the end off."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def length(self, index: int) -> int:
        """Tokens of one dialogue that run through the model: all but the last."""
        return self.offsets[index + 1] - self.offsets[index] - 1


@dataclass(frozen=True)
class Pass:
    """Whole dialogues laid end to end: what runs through the model at once."""

    ids: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64, -100 where the next token is not under the loss
    lengths: tuple[int, ...]
    """Tokens of each dialogue; they add up to N."""


def tokenise(
    conversations: Sequence[Conversation], settings: TrainSettings, tokenizer: SpanTokenizer, end_id: int | None
) -> Examples:
    """Ids of every dialogue, at most max_length each. TrainError if nothing to learn is left."""
    form, chance = prompt_format(settings.prompt_format), random.Random(f"system {settings.data_seed}")
    ids: list[Tensor] = []
    learnt: list[Tensor] = []
    offsets, empty, cut = [0], 0, 0
    for conversation in conversations:
        bare = conversation.system is None
        if settings.system_share and chance.random() < settings.system_share and bare:
            conversation = Conversation(conversation.id, conversation.messages, SYSTEM_TEXT)
        text = training_text(conversation, form, tokenizer, end_id, settings.loss)
        cut += len(text.ids) > settings.max_length
        under = text.learnt[: settings.max_length]
        if not any(under[1:]):
            empty += 1
            continue
        ids.append(torch.tensor(text.ids[: settings.max_length], dtype=torch.int32))
        learnt.append(torch.tensor(under, dtype=torch.bool))
        offsets.append(offsets[-1] + len(under))
    if not ids:
        raise TrainError(f"no answer begins within the first {settings.max_length} tokens of any dialogue; raise --max-length")
    return Examples(torch.cat(ids), torch.cat(learnt), tuple(offsets), empty, cut)


def split(conversations: Sequence[Conversation], settings: TrainSettings) -> tuple[list[Conversation], list[Conversation]]:
    """(trained on, held out); the same for the same data and data_seed."""
    count = min(HELD_OUT_AT_MOST, round(len(conversations) * settings.held_out))
    if settings.held_out and len(conversations) > 1:
        count = max(1, count)
    chosen = set(random.Random(f"held out {settings.data_seed}").sample(range(len(conversations)), count))
    trained = [each for index, each in enumerate(conversations) if index not in chosen]
    return trained, [conversations[index] for index in sorted(chosen)]


def plan_steps(examples: Examples, settings: TrainSettings) -> list[tuple[int, ...]]:
    """The dialogues of every step of the run, in order."""
    steps: list[tuple[int, ...]] = []
    epoch = 0
    while settings.steps is None or len(steps) < settings.steps:
        of_epoch = _epoch(examples, settings, epoch)
        steps += of_epoch
        epoch += 1
        if settings.steps is None and epoch >= settings.epochs:
            excess = epoch - settings.epochs
            return steps[: max(1, len(steps) - round(excess * len(of_epoch)))]
    return steps[: settings.steps]


def _epoch(examples: Examples, settings: TrainSettings, epoch: int) -> list[tuple[int, ...]]:
    chance = random.Random(f"order {settings.data_seed} {epoch}")
    order = list(range(len(examples)))
    chance.shuffle(order)
    if settings.group_by_length:
        width = MEGABATCH * settings.batch
        runs = [order[begin : begin + width] for begin in range(0, len(order), width)]
        order = [index for run in runs for index in sorted(run, key=examples.length, reverse=True)]
    steps = list(_filled(examples, order, settings.packing)) if settings.packing else _counted(order, settings.batch)
    if settings.group_by_length:
        chance.shuffle(steps)
    return steps


def _counted(order: Sequence[int], count: int) -> list[tuple[int, ...]]:
    return [tuple(order[begin : begin + count]) for begin in range(0, len(order), count)]


def _filled(examples: Examples, order: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Steps of whole dialogues, up to `most` tokens each; one longer than that has a step of its own."""
    step: list[int] = []
    used = 0
    for index in order:
        length = examples.length(index)
        if step and used + length > most:
            yield tuple(step)
            step, used = [], 0
        step.append(index)
        used += length
    if step:
        yield tuple(step)


def passes_of(examples: Examples, step: Sequence[int], most: int, device: torch.device) -> list[Pass]:
    """A step's dialogues in passes of at most `most` tokens (a longer dialogue has one of its own)."""
    return [_laid(examples, indices, device) for indices in _filled(examples, step, most)]


def _laid(examples: Examples, indices: Sequence[int], device: torch.device) -> Pass:
    ids, targets = [], []
    for index in indices:
        begin, end = examples.offsets[index], examples.offsets[index + 1]
        ids.append(examples.ids[begin : end - 1])
        following = examples.ids[begin + 1 : end].long()
        targets.append(following.masked_fill(~examples.learnt[begin + 1 : end], -100))
    lengths = tuple(len(each) for each in ids)
    return Pass(torch.cat(ids).long().to(device), torch.cat(targets).to(device), lengths)
