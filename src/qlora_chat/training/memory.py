"""Memory of a training step, predicted from shapes, and the fastest plan that fits.

Scope: bytes; whether to checkpoint, how many tokens a micro-batch has, whether to store weights dequantized. Reads no weights.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Literal

from qlora_chat.models.folders import Base
from qlora_chat.models.placement import GIB, DeviceMemory, weight_bytes
from qlora_chat.training import TrainError
from qlora_chat.training.model.loss import CHUNK_BYTES
from qlora_chat.training.recipe import TrainSettings

SLACK = {"cuda": GIB // 12, "cpu": GIB // 2}
"""Bytes beyond the prediction: rounded-up blocks and cuBLAS's workspace on a card; the libraries themselves on a CPU."""
USABLE_SHARE = 0.9
"""Share of the free memory that a plan may use."""
DENSE_DIVISOR = {"cuda": 16, "cpu": 2}
"""Weights are stored dequantized if the peak is at most this fraction of the memory: a card dequantizes quickly."""
MAX_PASS_TOKENS = {"cuda": 32_768, "cpu": 4_096}
"""Larger micro-batches gain nothing."""


@dataclass(frozen=True)
class StepPlan:
    """Decisions on how steps run, recorded in run.json."""

    checkpointing: bool
    pass_tokens: int
    """Tokens of a micro-batch."""
    dense: bool
    """Weights are dequantized once and stored."""
    predicted: int
    """Peak bytes."""


@dataclass(frozen=True)
class _MemoryModel:
    """Bytes of a run on one device."""

    base: Base
    settings: TrainSettings
    value_bytes: int
    """Bytes of a number in matrix products."""
    device: Literal["cuda", "cpu"]
    dense: bool = False

    def peak(self, tokens: int, checkpointing: bool, *, accumulating: bool) -> int:
        """Peak of a micro-batch of `tokens`, which is in the loss or in the backward pass of a layer.

        Activations are freed while gradients appear, so the larger of the two counts; but a step of several micro-batches
        (`accumulating`) has the gradients of the first one all the time.
        """
        shape = self.base.shape
        layer, gradients = tokens * self._layer_token(), 4 * self._parameters()
        stored = shape.layers * (tokens * shape.hidden * self.value_bytes if checkpointing else layer)
        inside = layer if checkpointing else 0
        backward = (stored + gradients if accumulating else max(stored, gradients)) + inside + self._gradients_in_layer(tokens)
        loss = stored + self._loss(tokens) + (gradients if accumulating else 0)
        return self._constant() + max(backward, loss)

    def _constant(self) -> int:
        """Weights, the adapter in float32, AdamW's two moments (paged ones are outside the allocator), slack."""
        state = 2 if "8bit" in self.settings.optimizer else 8
        if self.device == "cuda" and self.settings.optimizer.startswith("paged"):
            state = 0
        weights = weight_bytes(self.base, "bf16") // 2 * self.value_bytes if self.dense else weight_bytes(self.base, "nf4")
        return weights + self._parameters() * (4 + state) + SLACK[self.device]

    def _parameters(self) -> int:
        sizes = [size for name, size in self.base.linears().items() if name.rpartition(".")[2] in self.settings.targets]
        return sum(self.settings.r * (outs + ins) for outs, ins in sizes)

    def _layer_token(self) -> int:
        """Bytes per token that one layer stores for its backward pass."""
        shape = self.base.shape
        queries, keys, feed_forward = shape.queries, shape.keys, shape.feed_forward
        values = 4 * shape.hidden + 3 * queries + 3 * keys + 3 * feed_forward + 7 * self.settings.r
        masks = 2 * shape.hidden + queries + feed_forward if self.settings.dropout else 0
        return values * self.value_bytes + masks

    def _gradients_in_layer(self, tokens: int) -> int:
        """Gradients inside a layer: those of SwiGLU, or of gate and up with their weights dequantized."""
        hidden, feed_forward = self.base.shape.hidden, self.base.shape.feed_forward
        group = 0 if self.dense else 2 * feed_forward * hidden
        return self.value_bytes * max(
            group + tokens * (2 * feed_forward + 3 * hidden), tokens * (5 * feed_forward + 2 * hidden)
        )

    def _loss(self, tokens: int) -> int:
        """A chunk of logits in the compute type and in float32, and hidden states with their gradient."""
        shape = self.base.shape
        rows = min(tokens, CHUNK_BYTES // (4 * shape.vocabulary))
        return rows * shape.vocabulary * (4 + self.value_bytes) + 2 * tokens * shape.hidden * self.value_bytes


def predicted_bytes(
    base: Base, settings: TrainSettings, tokens: int, *, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda"
) -> int:
    """Peak bytes of a step of one micro-batch of `tokens`: base in NF4, computed in bf16 on a card, in fp32 on a CPU."""
    memory = _MemoryModel(base, settings, 2 if device == "cuda" else 4, device)
    return memory.peak(tokens, checkpointing, accumulating=False)


def plan_memory(
    base: Base, settings: TrainSettings, step_tokens: int, longest: int, memory: DeviceMemory, value_bytes: int
) -> StepPlan:
    """Return the fastest plan for steps of `step_tokens` that fits the device; `longest` is the longest dialogue's tokens.

    TrainError with the bytes needed and free if not even one dialogue fits with checkpointing.
    """
    room, device = int(memory.free * USABLE_SHARE), memory.device
    model = _MemoryModel(base, settings, value_bytes, device, dense=True)
    dense = model.peak(longest, True, accumulating=True) <= room // DENSE_DIVISOR[device]
    if not dense:
        model = replace(model, dense=False)
    max_tokens = max(longest, min(settings.pass_tokens or MAX_PASS_TOKENS[device], step_tokens))

    def peak(tokens: int, checkpointing: bool) -> int:
        return model.peak(tokens, checkpointing, accumulating=tokens < step_tokens)

    candidates = {"on": (True,), "off": (False,), "auto": (False, True)}[settings.checkpointing]
    for checkpointing in candidates:
        if (predicted := peak(max_tokens, checkpointing)) <= room:
            return StepPlan(checkpointing, max_tokens, dense, predicted)
    checkpointing = candidates[-1]
    tokens = bisect_right(range(max_tokens), room, key=lambda count: peak(count, checkpointing)) - 1
    if tokens < longest:
        hint = "" if checkpointing else "--checkpointing auto, "
        raise TrainError(
            f"training needs {peak(longest, checkpointing) / GIB:.1f} GiB and {memory.free / GIB:.1f} GiB are free: "
            f"free some memory, or try {hint}a smaller --max-length, --r, or --optimizer paged_adamw_8bit"
        )
    return StepPlan(checkpointing, tokens, dense, peak(tokens, checkpointing))
