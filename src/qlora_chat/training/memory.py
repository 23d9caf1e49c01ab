"""What a training step takes, predicted from shapes, and the way to run it that fits.

Scope: bytes, and the choice of checkpointing, of tokens in a pass and of keeping weights dequantised. Reads no weights.

Shapes: H hidden, F feed-forward, Q and K heads of D, V vocabulary, r rank; a token's activations are counted a layer.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from qlora_chat.models.folders import Base
from qlora_chat.models.placement import weight_bytes
from qlora_chat.training import TrainError
from qlora_chat.training.model.loss import CHUNK_BYTES
from qlora_chat.training.recipe import TrainSettings

GIB = 1024**3
SLACK = {"cuda": GIB // 12, "cpu": GIB // 2}
"""Beside what is counted: blocks rounded up and cuBLAS's workspace on a card; the libraries themselves on a CPU."""
SHARE = 0.9
"""Of the free memory that a plan may use."""
DENSE_PART = {"cuda": 16, "cpu": 2}
"""Weights are kept dequantised where the whole takes at most one part of so many: a card dequantises quickly."""
PASS_AT_MOST = {"cuda": 32_768, "cpu": 4_096}
"""Longer passes gain nothing."""


@dataclass(frozen=True)
class StepPlan:
    """How steps are run."""

    checkpointing: bool
    pass_tokens: int
    dense: bool
    """Weights are dequantised once and kept."""
    predicted: int
    """Peak bytes."""


@dataclass(frozen=True)
class _Cost:
    """Bytes of a run on one device."""

    base: Base
    settings: TrainSettings
    value: int
    """Bytes of a number in products."""
    device: Literal["cuda", "cpu"]
    dense: bool = False

    def peak(self, tokens: int, checkpointing: bool, *, several: bool) -> int:
        """The worst moment of a step: in the loss, or in the backward pass of a layer.

        What layers keep is let go of while gradients come, so the larger of the two counts; but where a step takes
        `several` passes, the gradients of the first are there all the time.
        """
        shape = self.base.shape
        layer, gradients = tokens * self._layer_token(), 4 * self._parameters()
        kept = shape.layers * (tokens * shape.hidden * self.value if checkpointing else layer)
        inside = layer if checkpointing else 0
        backward = (kept + gradients if several else max(kept, gradients)) + inside + self._in_flight(tokens)
        loss = kept + self._loss(tokens) + (gradients if several else 0)
        return self._always() + max(backward, loss)

    def _always(self) -> int:
        """Weights, the adapter in float32, AdamW's two moments (paged ones lie outside the allocator), slack."""
        state = 2 if "8bit" in self.settings.optimizer else 8
        if self.device == "cuda" and self.settings.optimizer.startswith("paged"):
            state = 0
        weights = weight_bytes(self.base, "bf16") // 2 * self.value if self.dense else weight_bytes(self.base, "nf4")
        return weights + self._parameters() * (4 + state) + SLACK[self.device]

    def _parameters(self) -> int:
        linears = [(name, size) for name, size in self.base.linears().items() if name != "lm_head"]
        wanted = [size for name, size in linears if name.rpartition(".")[2] in self.settings.targets]
        return sum(self.settings.r * (outs + ins) for outs, ins in wanted)

    def _layer_token(self) -> int:
        """Bytes that one layer keeps of a token for its backward pass."""
        shape = self.base.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        kept = 4 * shape.hidden + 3 * queries + 3 * keys + 3 * self.base.feed_forward + 7 * self.settings.r
        masks = 2 * shape.hidden + queries + self.base.feed_forward if self.settings.dropout else 0
        return kept * self.value + masks

    def _in_flight(self, tokens: int) -> int:
        """Slopes on their way through a layer: those of SwiGLU, or of gate and up with their weights dequantised."""
        hidden, feed_forward = self.base.shape.hidden, self.base.feed_forward
        group = 0 if self.dense else 2 * feed_forward * hidden
        return self.value * max(group + tokens * (2 * feed_forward + 3 * hidden), tokens * (5 * feed_forward + 2 * hidden))

    def _loss(self, tokens: int) -> int:
        """A chunk of logits, once in products' type and once in float32, and hidden states with their gradient."""
        shape = self.base.shape
        rows = min(tokens, CHUNK_BYTES // (4 * shape.vocabulary))
        return rows * shape.vocabulary * (4 + self.value) + 2 * tokens * shape.hidden * self.value


def predicted_bytes(
    base: Base, settings: TrainSettings, tokens: int, *, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda"
) -> int:
    """The allocator's peak in a step of one pass of `tokens`: the base in NF4, products in bf16 on a card, in fp32 on a CPU."""
    cost = _Cost(base, settings, 2 if device == "cuda" else 4, device)
    return cost.peak(tokens, checkpointing, several=False)


def choose(
    base: Base, settings: TrainSettings, step_tokens: int, longest: int, device: Literal["cuda", "cpu"], value: int, free: int
) -> StepPlan:
    """The quickest way to run steps of `step_tokens` that fits `free` bytes; `longest` is the longest dialogue.

    TrainError with what is needed and free if not even one dialogue fits with checkpointing.
    """
    room = int(free * SHARE)
    held_dense = _Cost(base, settings, value, device, dense=True)
    dense = held_dense.peak(longest, True, several=True) <= room // DENSE_PART[device]
    cost = held_dense if dense else _Cost(base, settings, value, device)
    asked = max(longest, min(settings.pass_tokens or PASS_AT_MOST[device], step_tokens))

    def peak(tokens: int, checkpointing: bool) -> int:
        return cost.peak(tokens, checkpointing, several=tokens < step_tokens)

    ways = {"on": (True,), "off": (False,), "auto": (False, True)}[settings.checkpointing]
    for checkpointing in ways:
        if (bytes_ := peak(asked, checkpointing)) <= room:
            return StepPlan(checkpointing, asked, dense, bytes_)
    cheapest = ways[-1]
    tokens = bisect_right(range(asked), room, key=lambda count: peak(count, cheapest)) - 1
    if tokens < longest:
        hint = "" if cheapest else "--checkpointing auto, "
        needed = peak(longest, cheapest) / GIB
        raise TrainError(
            f"training needs {needed:.1f} GiB and {free / GIB:.1f} GiB are free: free some memory, or try {hint}"
            f"a smaller --max-length, --r, or --optimizer paged_adamw_8bit"
        )
    return StepPlan(cheapest, tokens, dense, peak(tokens, cheapest))
