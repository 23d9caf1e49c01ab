"""A run that is not started: its records one by one, and its predicted steps, memory and time.

Scope: what `train` does before it reads weights, by the same functions, with bad records listed instead of refused; and the
operations of the run at the speed of this machine, measured with a product of the run's own size (bench/training_time.py
compares the predicted time with runs). Writes nothing but the cache's small files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qlora_chat.dialogue_formats.dialogue import Dialogue
from qlora_chat.models import Notify
from qlora_chat.models.cache import Cache
from qlora_chat.models.folders import Base
from qlora_chat.models.placement import GIB, synchronize
from qlora_chat.models.prepare import ModelText
from qlora_chat.settings import Device, cache_folder
from qlora_chat.training.data.batches import Examples, TrainingData, prepare_data
from qlora_chat.training.data.dialogues import load_dialogues, text_reader, usable_dialogues
from qlora_chat.training.memory import StepPlan, plan_memory
from qlora_chat.training.recipe import TrainSettings
from qlora_chat.training.resolve import ResolvedRun

MOST_RECORDS = 200
"""Records that are shown one by one."""
MOST_CHARACTERS = 2_000
"""Of each message of them."""
PRODUCTS_SHARE = {"cuda": 0.6, "cpu": 0.55}
"""Share of a step's time in which matrices are multiplied: the rest goes into attention, norms and the optimizer."""
MEASURING_S = 0.2
EVALUATIONS = 10


@dataclass(frozen=True)
class TrainingCheck:
    """Everything that is known of a run before it starts."""

    base: str
    prompt_format: str
    device: str
    summary: tuple[str, ...]
    """Lines about the dialogues, and about everything that is left out or changed."""
    bad: int
    """Records that cannot be used."""
    problems: tuple[str, ...]
    """The first of them, each with its place and the reason."""
    dialogues: int
    held_out: int
    tokens: int
    loss_tokens: int
    steps: int
    predicted_bytes: int
    free_bytes: int
    predicted_seconds: float
    records: tuple[Mapping[str, Any], ...]
    """The first records as training reads them: where, format, and messages with role, text and whether it is learned."""

    def lines(self) -> list[str]:
        """Lines for a person."""
        minutes, share = self.predicted_seconds / 60, self.loss_tokens / self.tokens
        return [
            *self.summary,
            f"{self.dialogues:,} dialogues to train on ({self.tokens:,} tokens, {share:.0%} in the loss), "
            f"{self.held_out:,} held out; {self.steps:,} steps on the {self.device}, in the prompt format {self.prompt_format}",
            f"about {self.predicted_bytes / GIB:.1f} GiB at the peak, and {self.free_bytes / GIB:.1f} GiB are free; "
            f"about {minutes:,.1f} minutes while the machine is as busy as now",
        ]


def check_run(settings: TrainSettings, notify: Notify, *, device: Device = "auto") -> TrainingCheck:
    """Check a run's data, and predict its steps. TrainError where nothing could be trained on, or it would not fit."""
    dialogues = load_dialogues(settings.data, notify, skip_bad=True)
    found = ResolvedRun.of(settings, device, notify)
    settings, memory, model = found.settings, found.memory, found.model
    text = ModelText.read(model.base.name, model.config, None, Cache(cache_folder(), notify))
    template = found.open_format(text)
    dialogues = usable_dialogues(dialogues, text_reader(template), skip_bad=True)
    data = prepare_data(dialogues, settings, text.tokenizer, text.special.eos, model.config.shape.window, template)
    dtype = found.compute_dtype
    plan = plan_memory(model.config, settings, data.max_step_tokens(), data.longest(), memory, dtype.itemsize)
    return TrainingCheck(
        base=model.base.name,
        prompt_format=found.chosen.name,
        device=memory.device,
        summary=tuple(dialogues.summary()),
        bad=dialogues.bad.tally.total(),
        problems=tuple(dialogues.bad.first),
        dialogues=len(data.train),
        held_out=len(data.held_out) if data.held_out else 0,
        tokens=len(data.train.ids),
        loss_tokens=int(data.train.loss_mask.sum()),
        steps=len(data.steps),
        predicted_bytes=plan.predicted,
        free_bytes=memory.free,
        predicted_seconds=round(predicted_seconds(model.config, settings, data, plan, found.device, dtype), 3),
        records=tuple(_record(each) for each in (*dialogues.train, *dialogues.held_out)[:MOST_RECORDS]),
    )


def _record(dialogue: Dialogue) -> Mapping[str, Any]:
    messages = [
        {
            "role": message.role,
            "text": message.content[:MOST_CHARACTERS],
            "learned": message.role == "assistant" and index not in dialogue.without_loss,
        }
        for index, message in enumerate(dialogue.conversation.messages)
    ]
    return {"where": dialogue.where, "format": dialogue.format, "system": dialogue.conversation.system, "messages": messages}


def predicted_seconds(
    base: Base, settings: TrainSettings, data: TrainingData, plan: StepPlan, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds of all steps and evaluations, as they would take on the machine as busy as it is now."""
    tokens = sum(data.train.length(index) for step in data.steps for index in step)
    passes = 3 if plan.checkpointing else 2  # forward, the gradients of inputs, and again forward where layers are recomputed
    operations = _operations(base, data.train, tokens, passes, 2)
    if data.held_out is not None:
        every = settings.eval_every or max(1, len(data.steps) // EVALUATIONS)
        held_out = len(data.held_out.ids) * max(1, len(data.steps) // every)
        operations += _operations(base, data.held_out, held_out, 1, 1)
    rows = max(1, min(plan.pass_tokens, data.max_step_tokens()))
    rate = operations_per_second(rows, base.shape.hidden, base.shape.feed_forward, device, dtype)
    return operations / rate / PRODUCTS_SHARE[device.type]


def operations_per_second(rows: int, ins: int, outs: int, device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of products (rows, ins) @ (ins, outs)."""
    left, right = (torch.ones(shape, device=device, dtype=dtype) for shape in ((rows, ins), (ins, outs)))
    _ = left @ right  # libraries prepare themselves at the first one
    synchronize(device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < MEASURING_S:
        _ = left @ right
        synchronize(device)
        count += 1
    return count * 2.0 * rows * ins * outs / (time.perf_counter() - began)


def _operations(base: Base, examples: Examples, tokens: int, passes: int, head_passes: int) -> float:
    """Floating-point operations in the frozen linears for so many tokens of examples; those with a loss reach the head."""
    inner = sum(outs * ins for outs, ins in base.shape.linears().values())
    loss_tokens = int(tokens * int(examples.loss_mask.sum()) / max(1, len(examples.loss_mask)))
    return 2.0 * (passes * tokens * inner + head_passes * loss_tokens * base.shape.vocabulary * base.shape.hidden)
