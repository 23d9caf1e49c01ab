"""How much memory a model will take here: to load, to chat over its whole window, to train; and what this machine has.

Scope: bytes from shapes, before anything is loaded. What is predicted is the allocator's peak on a card (for a CPU, of the
process beyond its libraries); bench/card/doctor_memory.py measures it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qlora_chat.doctor import Finding
from qlora_chat.models.folders import Base
from qlora_chat.models.placement import GIB, NF4_BYTES, OVERHEAD, DeviceMemory, Held, cache_bytes

ALLOCATOR = 1.01
"""Blocks are rounded up, and each linear has small tensors of its own (code book, offsets)."""


@dataclass(frozen=True)
class Need:
    """Predicted peak of one thing a user may do."""

    doing: str
    held: Held
    bytes: int


def load_bytes(base: Base, held: Held, adapter: int) -> int:
    """Peak of a load: weights, with the adapter beside them where it stays unmerged. `adapter` is its bytes in bf16."""
    shape = base.shape
    outer = 2 * shape.vocabulary * shape.hidden * (1 if shape.tied_head else 2)
    inner = sum(outs * ins for name, (outs, ins) in base.linears().items() if name != "lm_head")
    norms = 2 * shape.hidden * (2 * shape.layers + 1)
    weights = inner * (2 if held == "bf16" else NF4_BYTES)
    return int(ALLOCATOR * (outer + weights + norms + (adapter if held == "nf4+adapter" else 0)))


def chat_bytes(base: Base, held: Held, adapter: int, device: str) -> int:
    """Peak of one chat over the whole window: a load, keys and values, and what a start reserves beside them."""
    return load_bytes(base, held, adapter) + cache_bytes(base, device) + OVERHEAD[device]


def needs(base: Base, held: Held, adapter: int, rank: int, device: str) -> list[Need]:
    """What loading, chatting and training would take."""
    listed = [
        Need("load it", held, load_bytes(base, held, adapter)),
        Need(f"chat over the whole window of {base.shape.window:,} tokens", held, chat_bytes(base, held, adapter, device)),
    ]
    return [*listed, *_training(base, rank, device)]


def _training(base: Base, rank: int, device: str) -> Iterator[Need]:
    if base.eight_bits:
        return
    from qlora_chat.training.memory import predicted_bytes
    from qlora_chat.training.recipe import read_recipe, settings_from

    settings = settings_from(read_recipe("guanaco-7b"), {"r": rank})
    for tokens in (512, 2048):
        if tokens <= base.shape.window:
            peak = predicted_bytes(base, settings, tokens, checkpointing=True, device="cpu" if device == "cpu" else "cuda")
            yield Need(f"train on it, {tokens:,} tokens a pass with checkpointing", "nf4+adapter", peak)


def check_memory(base: Base, adapter: int, rank: int, places: Sequence[DeviceMemory]) -> tuple[list[Need], list[Finding]]:
    """Predicted needs on the best device, and which of them this machine can serve."""
    place = places[0]
    held = _held(base, adapter, place)
    listed = needs(base, held, adapter, rank, place.device)
    saved = cache_bytes(base, place.device) - cache_bytes(base, place.device, "int8")
    return listed, [_finding(need, place, places, saved) for need in listed]


def _held(base: Base, adapter: int, place: DeviceMemory) -> Held:
    """bf16 where a chat fits so, as `auto` decides; else in 4 bits, the adapter unmerged."""
    if chat_bytes(base, "bf16", adapter, place.device) <= place.free:
        return "bf16"
    return "nf4+adapter" if adapter else "nf4"


def _finding(need: Need, place: DeviceMemory, places: Sequence[DeviceMemory], saved: int) -> Finding:
    """`saved`: bytes that keys and values in 8 bits would save a chat."""
    where = "the card" if place.device == "cuda" else "this machine"
    said = f"to {need.doing} ({need.held}) takes {_gib(need.bytes)} GiB, and {where} has {_gib(place.free)} GiB free"
    if need.bytes <= place.free:
        return Finding("fine", said)
    if need.doing.startswith("train"):
        return Finding("warning", said, "training would run out of memory", "use a card with more memory, or a smaller base")
    if need.doing.startswith("chat") and need.bytes - saved <= place.free:
        why, mend = "keys and values in 8 bits would fit", "qlora-chat serve --kv-cache-dtype int8"
        return Finding("warning", said, why, mend)
    if any(need.bytes <= other.free for other in places[1:]):
        return Finding("warning", said, "it would run on the processor, more slowly", "qlora-chat serve --device cpu")
    return Finding("blocker", said, "it would run out of memory", "free some memory, or take a smaller base")


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
