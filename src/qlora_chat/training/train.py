"""A training run from start to finish.

    dialogues -> base -> run.json -> token ids and steps -> plan that fits memory -> NF4 + LoRA -> steps -> adapter

Scope: connects the parts. Everything that a step depends on follows from the settings, the data and the step's number, so
a run that was interrupted and resumed ends with the same adapter as an unbroken one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qlora_chat.models import Notify
from qlora_chat.models.cache import Cache
from qlora_chat.models.placement import GIB
from qlora_chat.models.prepare import prepare
from qlora_chat.prompt import ChatFormat
from qlora_chat.settings import Device, cache_folder
from qlora_chat.training.adapter import write_adapter
from qlora_chat.training.checkpoint import Checkpoints
from qlora_chat.training.data.batches import TrainingData, prepare_data
from qlora_chat.training.data.dialogues import load_dialogues, text_reader, usable_dialogues
from qlora_chat.training.loop import TrainingLoop
from qlora_chat.training.memory import StepPlan, plan_memory
from qlora_chat.training.metrics_log import MetricsLog, plot_losses
from qlora_chat.training.model.llama import ComputeFormat, LoraShape, TrainableLlama
from qlora_chat.training.optimizer import Optimizer
from qlora_chat.training.recipe import TrainSettings
from qlora_chat.training.resolve import ResolvedRun
from qlora_chat.training.run_record import Run
from qlora_chat.training.samples import SampleWriter


@dataclass(frozen=True)
class TrainResult:
    """The end of a run, or its interruption."""

    folder: Path
    step: int
    steps: int
    loss: float | None
    """Mean of the last 20 steps."""
    held_out_loss: float | None

    @property
    def finished(self) -> bool:
        """True after the last step; False after an interruption."""
        return self.step == self.steps


def train(
    settings: TrainSettings,
    run: Run,
    notify: Notify,
    *,
    device: Device = "auto",
    skip_bad: bool = False,
    sample: str | None = None,
) -> TrainResult:
    """Train an adapter in the run's folder, or continue the run that is there. TrainError says what prevents it.

    Ctrl-C ends the run after the current step, saved; the result is then not finished. `sample` is a question that is answered
    at each evaluation.
    """
    dialogues = load_dialogues(settings.data, notify, skip_bad=skip_bad)
    found = ResolvedRun.of(settings, device, notify)
    settings, memory, start = found.settings, found.memory, found.start
    run = run.start(settings, dialogues, found.model.base, start and start.part)
    # a base in 16 bits is quantized into chat's cache first
    model = prepare(found.model, Cache(cache_folder(), notify))
    base, tokenizer = model.base, model.text.tokenizer
    template = found.open_format(model.text)
    for line in (*model.notices, *(start.lines() if start else ()), found.chosen.line, *template.notices):
        notify(line)
    dialogues = usable_dialogues(dialogues, text_reader(template), skip_bad=skip_bad)
    data = prepare_data(dialogues, settings, tokenizer, model.text.special.eos, base.shape.window, template)
    for line in dialogues.summary():
        notify(line)
    dtype = found.compute_dtype
    plan = run.plan or plan_memory(base, settings, data.max_step_tokens(), data.longest(), memory, dtype.itemsize)
    try:
        run = run.with_plan(plan, len(data.steps))
        notify(_describe(data, plan, memory.device, dtype))
        compute = ComputeFormat(found.device, dtype, plan.dense)
        lora = LoraShape(settings.r, settings.alpha, settings.dropout, settings.targets)
        trainable = TrainableLlama(model.tensors, base.shape, lora, compute, settings.seed)
        trainable.checkpointing = plan.checkpointing
        if start:
            trainable.load_adapter(start.tensors())
        special = model.text.special.stops
        writer = SampleWriter(sample, template, tokenizer, special, base.shape.window) if sample else None
        return _run_steps(run, trainable, settings, template, data, plan, notify, writer)
    except KeyboardInterrupt:  # outside the loop, which takes Ctrl-C as its end
        notify(f"stopped between steps; to continue: {_resume_command(run)}")
        raise


def _run_steps(
    run: Run,
    model: TrainableLlama,
    settings: TrainSettings,
    template: ChatFormat,
    data: TrainingData,
    plan: StepPlan,
    notify: Notify,
    sample: SampleWriter | None,
) -> TrainResult:
    """Restore the newest checkpoint of a resumed run, train, and write the adapter after the last step."""
    checkpoints = Checkpoints(run.folder / "checkpoints", notify)
    checkpoint = checkpoints.newest() if run.resumed else None
    start, total = checkpoint.step if checkpoint else 0, len(data.steps)
    if start > total:
        notify(f"{start} steps are done already, and {total} are fewer: none is added, and the adapter is that of step {start}")
        total, settings = start, replace(settings, steps=start)
        run = run.with_settings(settings)
    optimizer = Optimizer.create(tuple(model.parameters()), settings)
    metrics = MetricsLog(run.folder, start)
    loop = TrainingLoop(model, optimizer, settings, data, plan, checkpoints, metrics, notify, sample)
    if checkpoint:
        loop.restore(checkpoint)
        notify(f"resuming after step {start} of {total}")
    try:
        done = loop.run(start)
    finally:
        metrics.close()
    result = TrainResult(run.folder, done, total, loop.mean_loss(), loop.held_out_loss)
    if result.finished:
        record = run.adapter_record(settings, template, done, result.loss, result.held_out_loss)
        write_adapter(run.folder, model.adapter_tensors(), settings, record, template.template_text)
    else:
        notify(f"stopped after step {done} of {total}, saved; to continue: {_resume_command(run)}")
    plot_losses(metrics, run.folder, notify)
    return result


def _resume_command(run: Run) -> str:
    return f"qlora-chat train --resume --out {run.folder}"


def _describe(data: TrainingData, plan: StepPlan, device: str, dtype: torch.dtype) -> str:
    loss_tokens, tokens = int(data.train.loss_mask.sum()), len(data.train.ids)
    held_out = f", {len(data.held_out):,} held out" if data.held_out else ", none held out"
    activations = "recomputing layers in the backward pass" if plan.checkpointing else "storing all activations"
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    steps = "1 step" if len(data.steps) == 1 else f"{len(data.steps):,} steps"
    return (
        f"{len(data.train):,} dialogues to train on ({tokens:,} tokens, {loss_tokens / tokens:.0%} in the loss{held_out}); "
        f"{steps} on the {device} in {name}, up to {plan.pass_tokens:,} tokens at once, {activations}; "
        f"about {plan.predicted / GIB:.1f} GiB at the peak"
    )
