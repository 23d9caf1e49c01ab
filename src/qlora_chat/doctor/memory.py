"""Memory that a model takes on this machine: to load, to chat over its whole window, to train; and what is free.

Scope: bytes from shapes, before anything is loaded. The prediction is the allocator's peak on a card (on a CPU, of the
process beyond its libraries); bench/card/doctor_memory.py measures it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qlora_chat.doctor import Finding
from qlora_chat.models.folders import Base
from qlora_chat.models.placement import GIB, DeviceMemory, DeviceType, WeightFormat, kv_cache_bytes, needed_bytes, weight_bytes

ALLOCATOR = 1.01
"""Blocks are rounded up, and each linear has small tensors of its own (code book, offsets)."""


@dataclass(frozen=True)
class Need:
    """Predicted peak memory of one use of the model."""

    doing: str
    held: WeightFormat
    bytes: int


def load_bytes(base: Base, weight_format: WeightFormat, adapter_bytes: int) -> int:
    """Peak of loading the weights, with the adapter if it stays unmerged; `adapter_bytes` in bf16."""
    shape = base.shape
    norms = 2 * shape.hidden * (2 * shape.layers + 1)
    unmerged = adapter_bytes if weight_format == "nf4+adapter" else 0
    return int(ALLOCATOR * (weight_bytes(base, weight_format) + norms + unmerged))


def needs(base: Base, weight_format: WeightFormat, adapter_bytes: int, rank: int, device: DeviceType) -> list[Need]:
    """Predictions for loading, chatting and training."""
    chat = needed_bytes(base, weight_format, adapter_bytes, device)
    return [
        Need("load it", weight_format, load_bytes(base, weight_format, adapter_bytes)),
        Need(f"chat over the whole window of {base.shape.window:,} tokens", weight_format, chat),
        *_training(base, rank, device),
    ]


def _training(base: Base, rank: int, device: DeviceType) -> Iterator[Need]:
    if base.is_int8:
        return
    from qlora_chat.training.memory import predicted_bytes
    from qlora_chat.training.recipe import read_recipe, settings_from

    settings = settings_from(read_recipe("guanaco-7b"), {"r": rank})
    for tokens in (512, 2048):
        if tokens <= base.shape.window:
            peak = predicted_bytes(base, settings, tokens, checkpointing=True, device=device)
            yield Need(f"train on it, {tokens:,} tokens a pass with checkpointing", "nf4+adapter", peak)


def check_memory(
    base: Base, adapter_bytes: int, rank: int, devices: Sequence[DeviceMemory], *, unmerged_first: bool = False
) -> tuple[list[Need], list[Finding]]:
    """Predictions for the best device, and a finding for each; `unmerged_first` as for candidate_formats."""
    best = devices[0]
    weight_format: WeightFormat = "nf4+adapter" if adapter_bytes else "nf4"
    if not unmerged_first and needed_bytes(base, "bf16", adapter_bytes, best.device) <= best.free:  # as `auto`
        weight_format = "bf16"
    listed = needs(base, weight_format, adapter_bytes, rank, best.device)
    saved_by_int8 = kv_cache_bytes(base, best.device) - kv_cache_bytes(base, best.device, "int8")
    return listed, [_finding(need, devices, saved_by_int8) for need in listed]


def _finding(need: Need, devices: Sequence[DeviceMemory], saved_by_int8: int) -> Finding:
    """`saved_by_int8`: bytes that a KV cache in 8 bits would save a chat."""
    best, *others = devices
    where = "the card" if best.device == "cuda" else "this machine"
    what = f"to {need.doing} ({need.held}) takes {_gib(need.bytes)} GiB, and {where} has {_gib(best.free)} GiB free"
    if need.bytes <= best.free:
        return Finding("fine", what)
    if need.doing.startswith("train"):
        return Finding("warning", what, "training would run out of memory", "use a card with more memory, or a smaller base")
    if need.doing.startswith("chat") and need.bytes - saved_by_int8 <= best.free:
        return Finding("warning", what, "keys and values in 8 bits would fit", "qlora-chat serve --kv-cache-dtype int8")
    if any(need.bytes <= other.free for other in others):
        return Finding("warning", what, "it would run on the processor, more slowly", "qlora-chat serve --device cpu")
    return Finding("blocker", what, "it would run out of memory", "free some memory, or take a smaller base")


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
