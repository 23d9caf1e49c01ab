"""The interface between a scheduler and a forward pass: spans of tokens in, logits out, adapters by KV-cache slot.

Scope: types alone. The eager pass (engines/eager) and the compiled one (engines/cpu) implement ForwardPass; the CUDA
path's adapters implement AdapterPass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

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
    def copies(self) -> float:
        """Memory of a packed adapter, as a multiple of the adapter's own bytes."""
        ...

    def pack(self, matrices: LoraMatrices, scaling: float, /) -> object:
        """Convert an adapter to the pass's own form, for slots to name. Compared by identity. MemoryError without room."""
        ...


class ForwardPass(AdapterPass, Protocol):
    """One pass of the model over spans, which writes keys and values into the cache."""

    @property
    def backend_name(self) -> str:
        """Value of ModelInfo.computed_by: passes of the same name round alike."""
        ...

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last `logits` tokens of each span, one row a token in the spans' order: (R, V) float32."""
        ...
