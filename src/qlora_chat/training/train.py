"""The whole of a training run, on one screen.

    dialogues, checked -> base, found -> ids under the loss -> a way that fits memory -> NF4 + LoRA -> steps -> adapter

Scope: ties the parts together. Everything that a step depends on follows from the settings, the data and the step's
number, so a run that was broken off and gone on with ends with the same adapter as an unbroken one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_chat.models import Notify
from qlora_chat.models.placement import detect_devices
from qlora_chat.settings import Device
from qlora_chat.training import TrainError
from qlora_chat.training.adapter import write_adapter
from qlora_chat.training.base import PreparedBase, find_base, prepare_base
from qlora_chat.training.checkpoint import Checkpoints
from qlora_chat.training.data.batches import Examples, plan_steps, split, tokenise
from qlora_chat.training.data.dialogues import Dialogues, read_dialogues
from qlora_chat.training.data.sources import find_data
from qlora_chat.training.loop import Loop
from qlora_chat.training.memory import GIB, StepPlan, choose
from qlora_chat.training.metrics_log import Metrics, draw
from qlora_chat.training.model.llama import Held, LoraShape, TrainableLlama
from qlora_chat.training.optimizer import Optimizer
from qlora_chat.training.recipe import TrainSettings
from qlora_chat.training.run_record import Run, adapter_record, begin


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    step: int
    steps: int
    finished: bool
    loss: float | None
    """Mean of the last 20 steps."""
    held_out_loss: float | None


def train(
    settings: TrainSettings, out: Path, notify: Notify, *, device: Device = "auto", resume: bool = False, skip_bad: bool = False
) -> Outcome:
    """Train an adapter into `out`, or go on with the run that is there. TrainError says what is in the way.

    Ctrl-C ends the run after the step at hand, saved; the outcome then says that it is not finished.
    """
    dialogues = read_dialogues([path for name in settings.data for path in find_data(name, notify)], skip_bad=skip_bad)
    _tell(dialogues, notify)
    place = detect_devices(device)[0]
    found = find_base(settings.base, place, notify)
    run = begin(out, settings, dialogues, found, resume=resume, notify=notify)
    base = prepare_base(found, place, notify)
    trained, held_out = _examples(dialogues, settings, base, notify)
    steps = plan_steps(trained, settings)
    dtype = _dtype(settings, place.device)
    value = 2 if dtype == torch.bfloat16 else 4
    plan = run.plan or _plan(base, settings, trained, steps, place.device, value, place.free)
    try:
        run = run.with_plan(plan)
        notify(_told(trained, held_out, steps, plan, place.device, dtype))
        model = _model(base, settings, plan, place.device, dtype)
        return _run(run, model, settings, trained, held_out, steps, notify)
    except KeyboardInterrupt:  # outside the loop, which takes Ctrl-C as its end
        notify(f"stopped between steps; what was saved is whole. To go on: {_resuming(run.folder)}")
        raise


def _resuming(folder: Path) -> str:
    return f"qlora-chat train --resume --out {folder}"


def _model(base: PreparedBase, settings: TrainSettings, plan: StepPlan, device: str, dtype: torch.dtype) -> TrainableLlama:
    held = Held(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"), dtype, plan.dense)
    lora = LoraShape(settings.r, settings.alpha, settings.dropout, settings.targets)
    model = TrainableLlama(base.tensors, base.base.shape, lora, held, settings.seed)
    model.checkpointing = plan.checkpointing
    return model


def _run(
    run: Run,
    model: TrainableLlama,
    settings: TrainSettings,
    trained: Examples,
    held_out: Examples | None,
    steps: list[tuple[int, ...]],
    notify: Notify,
) -> Outcome:
    checkpoints = Checkpoints(run.folder / "checkpoints", notify)
    optimizer = Optimizer.make(tuple(model.parameters()), settings)
    saved = checkpoints.newest() if run.resumed else None
    if saved:
        optimizer.load({name.removeprefix("optimizer."): each for name, each in saved.tensors.items() if name[0] == "o"})
        model.load_adapter({name.removeprefix("adapter."): each for name, each in saved.tensors.items()})
        notify(f"going on after step {saved.step} of {len(steps)}")
    metrics = Metrics(run.folder, saved.step if saved else 0)
    loop = Loop(model, optimizer, settings, trained, held_out, steps, run.plan_of(), checkpoints, metrics, notify)
    try:
        done = loop.run(saved.step if saved else 0)
    finally:
        metrics.close()
    if done < len(steps):
        notify(f"stopped after step {done} of {len(steps)}, saved; to go on: {_resuming(run.folder)}")
    else:
        record = adapter_record(run, settings, loop.losses(), done)
        write_adapter(run.folder, model.adapter_tensors(), settings, record)
    draw(metrics, run.folder, notify)
    return Outcome(run.folder, done, len(steps), done == len(steps), *loop.losses())


def _examples(
    dialogues: Dialogues, settings: TrainSettings, base: PreparedBase, notify: Notify
) -> tuple[Examples, Examples | None]:
    """(trained on, held out); what max_length cost is told."""
    longest = base.base.shape.window
    if settings.max_length > longest:
        raise TrainError(
            f"max_length is {settings.max_length}, but the base's window is {longest}: give --max-length {longest}"
        )
    trained, held_out = split(dialogues.conversations, settings)
    made = tokenise(trained, settings, base.tokenizer, base.end_id)
    if made.cut or made.empty:
        notify(
            f"{made.cut:,} of {len(trained):,} dialogues are cut at {settings.max_length} tokens, "
            f"and {made.empty:,} left out because no answer begins before that"
        )
    return made, tokenise(held_out, settings, base.tokenizer, base.end_id) if held_out else None


def _plan(
    base: PreparedBase,
    settings: TrainSettings,
    examples: Examples,
    steps: list[tuple[int, ...]],
    device: Any,
    value: int,
    free: int,
) -> StepPlan:
    lengths = [examples.length(index) for index in range(len(examples))]
    step_tokens = max(sum(lengths[index] for index in step) for step in steps)
    return choose(base.base, settings, step_tokens, max(lengths), device, value, free)


def _dtype(settings: TrainSettings, device: str) -> torch.dtype:
    bf16 = settings.compute == "bf16" or (settings.compute == "auto" and device == "cuda")
    return torch.bfloat16 if bf16 else torch.float32


def _tell(dialogues: Dialogues, notify: Notify) -> None:
    forms = ", ".join(f"{count:,} as {form}" for form, count in dialogues.forms.items())
    notify(f"{len(dialogues.conversations):,} dialogues ({forms})")
    if dialogues.unanswered:
        notify(f"{dialogues.unanswered:,} of them ended with a question that nobody answered, which is left out")
    if dialogues.skipped:
        notify(f"{dialogues.skipped:,} bad records were skipped")


def _told(
    trained: Examples, held_out: Examples | None, steps: list[Any], plan: StepPlan, device: str, dtype: torch.dtype
) -> str:
    under, tokens = int(trained.learnt.sum()), len(trained.ids)
    apart = f", {len(held_out):,} held out" if held_out else ""
    how = "recomputing layers in the backward pass" if plan.checkpointing else "keeping all activations"
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return (
        f"{len(trained):,} dialogues to train on ({tokens:,} tokens, {under / tokens:.0%} under the loss{apart}); "
        f"{len(steps):,} steps on the {device} in {name}, up to {plan.pass_tokens:,} tokens at once, {how}; "
        f"about {plan.predicted / GIB:.1f} GiB at the peak"
    )
