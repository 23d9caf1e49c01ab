"""What a training step takes, predicted from shapes, and the way to run it that fits.

Scope: bytes, and the choice of checkpointing, of tokens in a pass and of keeping weights dequantised. Reads no weights.

Shapes: H hidden, F feed-forward, Q and K heads of D, V vocabulary, r rank; a token's activations are counted a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlora_chat.models.folders import Base
from qlora_chat.models.machine import weight_bytes
from qlora_chat.training import TrainError
from qlora_chat.training.loss import CHUNK_BYTES
from qlora_chat.training.recipe import TrainSettings

GIB = 1024**3
SLACK = {"cuda": GIB // 3, "cpu": GIB // 2}
"""Beside what is counted: the allocator's fragments, the libraries' own buffers."""
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

    def parameters(self) -> int:
        linears = [(name, size) for name, size in self.base.linears().items() if name != "lm_head"]
        wanted = [size for name, size in linears if name.rpartition(".")[2] in self.settings.targets]
        return sum(self.settings.r * (outs + ins) for outs, ins in wanted)

    def weights(self, dense: bool) -> int:
        if not dense:
            return weight_bytes(self.base, "nf4")
        return weight_bytes(self.base, "bf16") // 2 * self.value

    def fixed(self, dense: bool) -> int:
        """Everything but activations: weights, adapter, gradients, moments, one dequantised group, a chunk of logits."""
        state = 2 if "8bit" in self.settings.optimizer else 8
        shape = self.base.shape
        group = 0 if dense else 2 * self.base.feed_forward * shape.hidden * self.value
        logits = CHUNK_BYTES * (1 + self.value / 4)
        return int(self.weights(dense) + self.parameters() * (8 + state) + max(group, logits) + SLACK[self.device])

    def layer_token(self) -> int:
        """Bytes that one layer keeps of a token for its backward pass."""
        shape = self.base.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        kept = 4 * shape.hidden + 3 * queries + 3 * keys + 3 * self.base.feed_forward + 7 * self.settings.r
        masks = 2 * shape.hidden + queries + self.base.feed_forward if self.settings.dropout else 0
        return kept * self.value + masks

    def token(self, checkpointing: bool) -> int:
        """Bytes that the model keeps of a token, and what is in flight at the worst moment."""
        layers, shape = self.base.shape.layers, self.base.shape
        in_flight = (4 * self.base.feed_forward + 2 * shape.hidden) * self.value
        if checkpointing:
            return layers * shape.hidden * self.value + self.layer_token() + in_flight
        return layers * self.layer_token() + in_flight


def predicted_bytes(
    base: Base, settings: TrainSettings, tokens: int, *, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda"
) -> int:
    """Peak bytes of a step of one pass of `tokens`, the base in NF4, products in bf16 on a card and in fp32 on a CPU."""
    cost = _Cost(base, settings, 2 if device == "cuda" else 4, device)
    return cost.fixed(dense=False) + tokens * cost.token(checkpointing)


def allocator_peak(
    base: Base, settings: TrainSettings, tokens: int, *, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda"
) -> int:
    """Bytes that torch's allocator peaks at in such a step; predicted_bytes keeps a reserve above it.

    Gradients grow in the backward pass while what the layers kept goes, so the larger of the two counts, not both. The
    moments of a paged optimizer lie outside the allocator, in memory that moves to the host where the card is full.
    """
    cost = _Cost(base, settings, 2 if device == "cuda" else 4, device)
    paged = device == "cuda" and settings.optimizer.startswith("paged")
    moments = 0 if paged else cost.parameters() * (2 if "8bit" in settings.optimizer else 8)
    kept = tokens * (base.shape.hidden * cost.value if checkpointing else cost.layer_token()) * base.shape.layers
    work = 2 * base.feed_forward * base.shape.hidden * cost.value
    if checkpointing:
        work += tokens * cost.layer_token()
    work += tokens * (4 * base.feed_forward + 2 * base.shape.hidden) * cost.value
    return cost.weights(dense=False) + 4 * cost.parameters() + moments + max(4 * cost.parameters(), kept) + work


def choose(
    base: Base, settings: TrainSettings, step_tokens: int, longest: int, device: Literal["cuda", "cpu"], value: int, free: int
) -> StepPlan:
    """The quickest way to run steps of `step_tokens` that fits `free` bytes; `longest` is the longest dialogue.

    TrainError with what is needed and free if not even one dialogue fits with checkpointing.
    """
    cost = _Cost(base, settings, value, device)
    room = int(free * SHARE)
    dense = cost.fixed(dense=True) + longest * cost.token(True) <= room // DENSE_PART[device]
    asked = min(settings.pass_tokens or min(step_tokens, PASS_AT_MOST[device]), step_tokens)
    asked = max(asked, longest)

    def plan(checkpointing: bool, tokens: int) -> StepPlan:
        return StepPlan(checkpointing, tokens, dense, cost.fixed(dense) + tokens * cost.token(checkpointing))

    ways = {"on": (True,), "off": (False,), "auto": (False, True)}[settings.checkpointing]
    for checkpointing in ways:
        if (whole := plan(checkpointing, asked)).predicted <= room:
            return whole
    cheapest = ways[-1]
    tokens = max(0, room - cost.fixed(dense)) // cost.token(cheapest)
    if tokens < longest:
        least = plan(cheapest, longest).predicted
        hint = "" if cheapest else "--checkpointing auto, "
        raise TrainError(
            f"training needs {least / GIB:.1f} GiB and {free / GIB:.1f} GiB are free: free some memory, or try "
            f"{hint}a smaller --max-length, --r, or --optimizer paged_adamw_8bit"
        )
    return plan(cheapest, tokens)
