"""Dialogues -> token ids with a loss mask, and the order in which steps take them.

Scope: tokenizing, the held-out split, and a list of steps that follows from the seeds alone, so that a resumed run sees the
same dialogues. Knows no weights.

Shapes: T tokens of all examples, N tokens of a micro-batch, concatenated without padding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qlora_chat.chat_templates.renderer import TemplateError
from qlora_chat.dialogue_formats.dialogue import Dialogue
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT, SYSTEM_TEXT, ChatFormat, SpanTokenizer, TrainingText, training_text
from qlora_chat.training import TrainError
from qlora_chat.training.data.dialogues import Dialogues, content_of
from qlora_chat.training.data.tally import Tally
from qlora_chat.training.recipe import MAX_STEPS, TrainSettings

MAX_HELD_OUT = 500
IGNORED = -100
"""Target of a token without a loss."""
ESCAPED = "had a role marker of the prompt format in a text, now written with a space"
SYSTEM_LOST = "lost the system text, which the chat template leaves out of a finished dialogue"
MEGABATCH = 50
"""Steps whose dialogues are sorted by length together, as Transformers' group_by_length does."""


@dataclass(frozen=True)
class Examples:
    """Tokenized dialogues, concatenated."""

    ids: Tensor  # (T,) int32
    loss_mask: Tensor  # (T,) bool
    offsets: tuple[int, ...]
    """Start of each dialogue, and the end of the last."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def length(self, index: int) -> int:
        """Tokens of one dialogue that run through the model: all but the last."""
        return self.offsets[index + 1] - self.offsets[index] - 1


@dataclass(frozen=True)
class TrainingData:
    """The examples of a run and the order in which its steps take them."""

    train: Examples
    held_out: Examples | None
    steps: Sequence[tuple[int, ...]]
    """Indices into `train` of every step, in order."""

    def max_step_tokens(self) -> int:
        """Tokens of the largest step."""
        return max(sum(self.train.length(index) for index in step) for step in self.steps)

    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(self.train.length(index) for index in range(len(self.train)))


@dataclass(frozen=True)
class MicroBatch:
    """Whole dialogues, concatenated, that run through the model at once."""

    ids: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64, IGNORED where the next token has no loss
    lengths: tuple[int, ...]
    """Tokens of each dialogue; they add up to N."""

    def loss_tokens(self) -> int:
        """Number of targets with a loss."""
        return int((self.targets >= 0).sum())


def prepare_data(
    dialogues: Dialogues,
    settings: TrainSettings,
    tokenizer: SpanTokenizer,
    end_id: int | None,
    window: int,
    template: ChatFormat = DEFAULT_FORMAT,
) -> TrainingData:
    """Split, tokenize and order the dialogues; the tallies of `dialogues` count those that are left out or cut off.

    TrainError if max_length is beyond the base's window or leaves nothing.
    """
    if settings.max_length > window:
        raise TrainError(f"max_length is {settings.max_length}, but the base's window is {window}: set --max-length {window}")
    if not dialogues.train:
        raise TrainError(f"{', '.join(dialogues.files)}: every file is to be evaluated, by its name; name a file to train on")
    train, held_out = split(dialogues, settings)
    tokenizing = Tokenizing(settings, tokenizer, end_id, template, dialogues.left_out, dialogues.changed)
    examples, evaluated = tokenizing.examples(train), tokenizing.examples(held_out)
    if not len(examples):
        raise TrainError(
            f"no answer begins within the first {settings.max_length} tokens of any of the {len(train):,} dialogues to train "
            "on; raise --max-length"
        )
    return TrainingData(examples, evaluated if len(evaluated) else None, plan_steps(examples, settings))


@dataclass(frozen=True)
class Tokenizing:
    """The step from dialogues to token ids."""

    settings: TrainSettings
    tokenizer: SpanTokenizer
    end_id: int | None
    template: ChatFormat = DEFAULT_FORMAT
    left_out: Tally = field(default_factory=Tally)
    changed: Tally = field(default_factory=Tally)

    def examples(self, dialogues: Sequence[Dialogue]) -> Examples:
        """Token ids and loss masks of the dialogues that have a loss token within max_length."""
        rng = random.Random(f"system {self.settings.data_seed}")
        limit = self.settings.max_length
        ids: list[Tensor] = []
        masks: list[Tensor] = []
        offsets = [0]
        for dialogue in dialogues:
            text = self._text(dialogue, rng)
            mask = text.loss_mask[:limit]
            if not any(mask[1:]):
                self.left_out.add(f"without an answer that begins within --max-length ({limit:,} tokens)", dialogue.where)
                continue
            if len(text.ids) > limit:
                self.changed.add(f"are cut off at --max-length ({limit:,} tokens)", dialogue.where)
            ids.append(torch.tensor(text.ids[:limit], dtype=torch.int32))
            masks.append(torch.tensor(mask, dtype=torch.bool))
            offsets.append(offsets[-1] + len(mask))
        if not ids:
            return Examples(torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.bool), (0,))
        return Examples(torch.cat(ids), torch.cat(masks), tuple(offsets))

    def _text(self, dialogue: Dialogue, rng: random.Random) -> TrainingText:
        conversation, settings = dialogue.conversation, self.settings
        bare = conversation.system is None
        if settings.system_share and rng.random() < settings.system_share and bare:
            conversation = Conversation(conversation.id, conversation.messages, SYSTEM_TEXT)
        texts = (conversation.system or "", *(each.content for each in conversation.messages))
        if any(self.template.escape(each) != each for each in texts):
            self.changed.add(ESCAPED, dialogue.where)
        try:
            return training_text(conversation, self.template, self.tokenizer, self.end_id, settings.loss, dialogue.without_loss)
        except TemplateError as problem:
            raise TrainError(f"{dialogue.where}: {problem}") from problem


def split(dialogues: Dialogues, settings: TrainSettings) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return (training, held-out) dialogues; the same for the same data and data_seed.

    All copies of a dialogue are on one side. Files that are held out take the place of a share of the others.
    """
    if dialogues.held_out:
        return list(dialogues.train), _sampled(dialogues.held_out, settings)
    count = min(MAX_HELD_OUT, round(len(dialogues.train) * settings.held_out))
    if settings.held_out and len(dialogues.train) > 1:
        count = max(1, count)
    copies: dict[tuple[str | None, ...], list[int]] = {}
    for index, each in enumerate(dialogues.train):
        copies.setdefault(content_of(each), []).append(index)
    groups, rng = list(copies.values()), random.Random(f"held out {settings.data_seed}")
    chosen = rng.sample(range(len(groups)), min(count, len(groups)))
    held_out: set[int] = set()
    for each in (*chosen, *rng.sample(sorted(set(range(len(groups))) - set(chosen)), len(groups) - len(chosen))):
        if len(held_out) + len(groups[each]) <= min(count, len(dialogues.train) - 1):
            held_out.update(groups[each])
    train = [each for index, each in enumerate(dialogues.train) if index not in held_out]
    return train, [dialogues.train[index] for index in sorted(held_out)]


def _sampled(dialogues: Sequence[Dialogue], settings: TrainSettings) -> list[Dialogue]:
    """MAX_HELD_OUT of them at most."""
    count = min(MAX_HELD_OUT, len(dialogues))
    chosen = random.Random(f"held out {settings.data_seed}").sample(range(len(dialogues)), count)
    return [dialogues[index] for index in sorted(chosen)]


def plan_steps(examples: Examples, settings: TrainSettings) -> list[tuple[int, ...]]:
    """Return the examples of every step of the run, in order. TrainError for more than MAX_STEPS."""
    steps: list[tuple[int, ...]] = []
    epoch = 0
    while settings.steps is None or len(steps) < settings.steps:
        of_epoch = _epoch(examples, settings, epoch)
        steps += of_epoch
        if len(steps) > MAX_STEPS and settings.steps is None:
            raise TrainError(f"{settings.epochs:g} epochs are more than {MAX_STEPS:,} steps: set fewer, or --steps")
        epoch += 1
        if settings.steps is None and epoch >= settings.epochs:
            excess = epoch - settings.epochs
            return steps[: max(1, len(steps) - round(excess * len(of_epoch)))]
    return steps[: settings.steps]


def _epoch(examples: Examples, settings: TrainSettings, epoch: int) -> list[tuple[int, ...]]:
    rng = random.Random(f"order {settings.data_seed} {epoch}")
    order = list(range(len(examples)))
    rng.shuffle(order)
    if settings.group_by_length:
        megabatches = _chunks(order, MEGABATCH * settings.batch)
        order = [index for each in megabatches for index in sorted(each, key=examples.length, reverse=True)]
    steps = list(_packed(examples, order, settings.packing)) if settings.packing else _chunks(order, settings.batch)
    if settings.group_by_length:
        rng.shuffle(steps)
    return steps


def _chunks(order: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(order[begin : begin + size]) for begin in range(0, len(order), size)]


def _packed(examples: Examples, order: Sequence[int], max_tokens: int) -> Iterator[tuple[int, ...]]:
    """Yield groups of whole dialogues up to `max_tokens` tokens; a longer dialogue gets a group of its own."""
    group: list[int] = []
    tokens = 0
    for index in order:
        length = examples.length(index)
        if group and tokens + length > max_tokens:
            yield tuple(group)
            group, tokens = [], 0
        group.append(index)
        tokens += length
    if group:
        yield tuple(group)


def micro_batches(examples: Examples, step: Sequence[int], max_tokens: int, device: torch.device) -> list[MicroBatch]:
    """Return a step's dialogues in micro-batches of at most `max_tokens` tokens (a longer dialogue gets its own)."""
    return [_concatenate(examples, indices, device) for indices in _packed(examples, step, max_tokens)]


def _concatenate(examples: Examples, indices: Sequence[int], device: torch.device) -> MicroBatch:
    ids, targets = [], []
    for index in indices:
        begin, end = examples.offsets[index], examples.offsets[index + 1]
        ids.append(examples.ids[begin : end - 1])
        following = examples.ids[begin + 1 : end].long()
        targets.append(following.masked_fill(~examples.loss_mask[begin + 1 : end], IGNORED))
    lengths = tuple(len(each) for each in ids)
    return MicroBatch(torch.cat(ids).long().to(device), torch.cat(targets).to(device), lengths)
