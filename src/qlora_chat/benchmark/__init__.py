"""How fast this machine writes, measured so that it can be believed.

    what is measured -> checked against the plain path -> copy rate -> ours, the original's -> table, JSON, plot

Scope: `qlora-chat bench`. The values that its parts exchange are here; importing this module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qlora_chat.errors import UserError
from qlora_chat.settings import Device, KVCacheDtype, Sampling

SAMPLING = Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_new_tokens=256, seed=1)
"""What every figure is measured with: a page's real sampling, not greedy."""


class BenchmarkError(UserError, RuntimeError):
    """Nothing can be measured, or what was measured is not to be believed; the message says what to do."""


@dataclass(frozen=True)
class Subject:
    """What is measured: the bundled demo, or random weights of a known shape."""

    name: str
    """demo or 7b."""
    device: Device
    precision: str
    """bf16 or nf4."""
    layers: int | None = None
    """Decoder layers of a shape; None takes all, fewer are a dry run."""
    kv_cache_dtype: KVCacheDtype = "auto"


@dataclass(frozen=True)
class Workload:
    """How much of what: a row for every number of chats at the first context, and for every context with the first."""

    chats: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (128,)
    """Tokens of the prompt."""
    new: int = 256
    rounds: int = 3
    """Timed runs of each row; figures are their medians."""

    def cells(self) -> list[tuple[int, int]]:
        """(chats, context) of each row."""
        batch = [(chats, self.contexts[0]) for chats in self.chats]
        return batch + [(self.chats[0], context) for context in self.contexts[1:]]


@dataclass(frozen=True)
class Row:
    """One path at one number of chats and one context."""

    path: str
    """qlora-chat or original."""
    chats: int
    context: int
    new: int
    tokens_per_s: float
    """All chats together, after each chat's first token."""
    tokens_per_s_with_prompts: float
    """All chats together, from the first question to the last token."""
    first_token_ms: float
    """Median over chats, all asking at once."""
    first_token_cold_ms: float | None
    """The very first, from weights on the device and nothing else done; None where it was not measured."""
    memory_gib: float
    """Peak: the card's, as the allocator saw it; the process' own on a CPU."""
    gb_per_token: float
    """What a token must read at least: weights and the cache in mid-answer, each pass shared by its chats."""
    bandwidth_percent: float = 0.0
    """Those bytes a second, of what a copy on this device moves in the same run."""


@dataclass(frozen=True)
class Check:
    """What the timed path computes, against the plain path on the same weights."""

    passed: bool
    what: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Everything one run of `qlora-chat bench` found."""

    subject: Subject
    hardware: str
    software: dict[str, str]
    date: str
    check: Check
    copy_gb_per_s: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
