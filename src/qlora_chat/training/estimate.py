"""The time of a run, predicted before its first step.

Scope: operations from shapes, and the speed of this machine, measured with a product of the run's own size. Reads no weights.
bench/training_time.py compares it with runs.
"""

from __future__ import annotations

import time

import torch

from qlora_chat.models.folders import Base
from qlora_chat.models.placement import synchronize
from qlora_chat.training.data.batches import Examples, TrainingData
from qlora_chat.training.memory import StepPlan
from qlora_chat.training.recipe import TrainSettings

PRODUCTS_SHARE = {"cuda": 0.6, "cpu": 0.55}
"""Share of a step's time in which matrices are multiplied: the rest goes into attention, norms and the optimizer."""
MEASURING_S = 0.2
EVALUATIONS = 10


def predicted_seconds(
    base: Base, settings: TrainSettings, data: TrainingData, plan: StepPlan, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds of all steps and evaluations, as they would take on the machine as busy as it is now."""
    lengths = [data.train.length(index) for index in range(len(data.train))]
    tokens = sum(lengths[index] for step in data.steps for index in step)
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
