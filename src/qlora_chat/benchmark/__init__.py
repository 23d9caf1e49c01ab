"""Generation speed of this machine, with a check that what is timed is right.

    subject -> check against the plain path -> copy rate -> our engine, the original's path -> table, JSON, plot

Scope: `qlora-chat bench`, and what the scripts in bench/ share. The values that the parts exchange are here; importing
this module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qlora_chat.errors import UserError
from qlora_chat.settings import Device, KVCacheDtype, Sampling

SAMPLING = Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_new_tokens=256, seed=1)
"""Sampling of every figure: a page's typical settings, not greedy."""


class BenchmarkError(UserError, RuntimeError):
    """Nothing can be measured, or the measurement is wrong; the message says what to do."""


@dataclass(frozen=True)
class Subject:
    """The model to measure: the bundled demo, smollm2, or random weights of a known shape."""

    name: str
    """demo, smollm2 or 7b."""
    device: Device
    precision: str
    """bf16 or nf4; of smollm2, nf4 leaves the adapter unmerged."""
    layers: int | None = None
    """Decoder layers of a shape; None for all, fewer for a dry run."""
    kv_cache_dtype: KVCacheDtype = "auto"


@dataclass(frozen=True)
class Workload:
    """Rows to measure: every number of chats at the first context, and the first number at every context."""

    chats: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (128,)
    """Tokens of the prompt."""
    new: int = 256
    rounds: int = 3
    """Timed runs per row; figures are their medians."""

    def cells(self) -> list[tuple[int, int]]:
        """Return (chats, context) of each row."""
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
    """All chats together, from the first request to the last token."""
    first_token_ms: float
    """Median over chats that start at once."""
    first_token_cold_ms: float | None
    """First token of a new engine, counted from weights on the device; None if not measured."""
    memory_gib: float
    """Peak: the allocator's on a card, the process's on a CPU."""
    gb_per_token: float
    """Least bytes read per token: weights and mid-answer cache, each pass shared by its chats."""
    bandwidth_percent: float = 0.0
    """Those bytes per second as a share of a copy's rate in the same run."""


@dataclass(frozen=True)
class Check:
    """Comparison of the timed path with the plain path on the same weights."""

    passed: bool
    what: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Everything that one run of `qlora-chat bench` measured."""

    subject: Subject
    hardware: str
    software: dict[str, str]
    date: str
    check: Check
    copy_gb_per_s: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
