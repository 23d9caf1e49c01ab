"""The interface between a scheduler and a forward pass: spans of tokens in, logits out, adapters by KV-cache slot.

Scope: types, and how layers and batches divide into products and runs of rows, which every pass has to know. The eager pass
(engines/eager) and the compiled one (engines/cpu) implement ForwardPass; the CUDA path's adapters implement AdapterPass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from qlora_chat.models.weights.shape import FUSED

A = TypeVar("A")
LoraMatrices = Mapping[str, tuple[Tensor, Tensor]]
"""A (r, in) and B (out, r) of a LoRA by the linear's Hugging Face name."""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one chat that go through the model in one pass."""

    slot: int
    start: int
    """Position of the first token; the cache holds everything before it."""
    ids: Sequence[int]
    logits: int = 1
    """Number of last tokens that need logits: several to verify a draft, none where the rest of a prompt follows."""


class AdapterPass(Protocol):
    """A pass that applies to each chat the adapter that its KV-cache slot names."""

    @property
    def backend_name(self) -> str:
        """Value of ModelInfo.computed_by: passes of the same name round alike."""
        ...

    @property
    def copies(self) -> float:
        """Memory of a packed adapter, as a multiple of the adapter's own bytes."""
        ...

    def pack(self, matrices: LoraMatrices, scaling: float, /) -> object:
        """Convert an adapter to the pass's own form, for slots to name. Compared by identity. MemoryError without room."""
        ...


class ForwardPass(AdapterPass, Protocol):
    """One pass of the model over spans, which writes keys and values into the cache."""

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last `logits` tokens of each span, one row a token in the spans' order: (R, V) float32."""
        ...


def fused_names(index: int) -> list[tuple[str, ...]]:
    """Hugging Face names of the linears that each product of a layer is fused from."""
    return [tuple(f"model.layers.{index}.{name}" for name in names) for names in FUSED]


def adapter_runs(spans: Sequence[Span], adapter_of: Callable[[int], A | None]) -> list[tuple[A, slice]]:
    """Rows of a pass by the adapter of their slot: neighbouring spans of one adapter are a run, those without one in none."""
    runs: list[tuple[A, slice]] = []
    end = 0
    for span in spans:
        start, end = end, end + len(span.ids)
        adapter = adapter_of(span.slot)
        if adapter is None:
            continue
        if runs and runs[-1][0] is adapter and runs[-1][1].stop == start:
            start = runs.pop()[1].start
        runs.append((adapter, slice(start, end)))
    return runs
