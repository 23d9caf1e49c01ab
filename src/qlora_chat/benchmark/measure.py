"""The clocks: what a copy moves, what our engine writes, what the original's path writes.

Scope: each function is meant for a process of its own, whose main thread computes nothing (the engine's thread does).
Sampling, prompt length and number of new tokens are the same on both sides; each run asks what nobody asked before.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from qlora_chat.benchmark import SAMPLING, BenchmarkError, Row, Subject, Workload
from qlora_chat.benchmark.subjects import Opened, opened
from qlora_chat.engines import Finish
from qlora_chat.engines.core.kv_cache import SPARE_BYTES, slot_bytes
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import KVCacheDtype, Sampling
from qlora_chat.stopping import Stops

GIB, GB = 1024**3, 1e9
COPIES = 10


@dataclass(frozen=True)
class Timed:
    """Medians over a row's runs; the fields are Row's."""

    rate: float
    whole: float
    first_ms: float
    cold_ms: float | None


def copy_rate(subject: Subject) -> float:
    """GB/s that a plain copy moves on the device, bytes read and bytes written both counted; median of ten."""
    device = opened(subject).device
    size = 4 * GIB if device.type == "cuda" else GIB // 2
    source, target = torch.ones(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device)
    target.copy_(source)
    seconds = []
    for _ in range(COPIES):
        _wait_for(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size / statistics.median(seconds) / GB


def ours(subject: Subject, work: Workload) -> list[Row]:
    """A row for every cell of the work; the model is loaded once, and every cell gets an engine with as many slots as chats."""
    what = opened(subject)
    _check_window(what, work)
    held: list[LoadedModel] = []
    rows = []
    for chats, context in work.cells():
        if what.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rows.append(_our_row(what, held, chats, context, work, subject.kv_cache_dtype))
        gc.collect()
    return rows


def _our_row(
    what: Opened, held: list[LoadedModel], chats: int, context: int, work: Workload, kv_cache_dtype: KVCacheDtype
) -> Row:
    loaded_at = 0.0

    def load() -> LoadedModel:
        nonlocal loaded_at
        if not held or what.device.type == "cuda":  # a card's engine lays the weights out anew: they serve one engine
            held.clear()
            held.append(what.ours())
        _check_memory(held[0], chats, kv_cache_dtype)
        _wait_for(what.device)
        loaded_at = time.perf_counter()
        return held[0]

    engine = LocalEngine(load, slots=chats, kv_cache_dtype=kv_cache_dtype)
    sampling = replace(SAMPLING, max_new_tokens=work.new)
    try:
        list(engine.stream(Prompt("", what.prompt(context, 0)), replace(sampling, max_new_tokens=1), Stops()))
        cold = time.perf_counter() - loaded_at
        _answers(engine, what, chats, context, replace(sampling, max_new_tokens=min(32, work.new)), 0)
        runs = [_answers(engine, what, chats, context, sampling, number) for number in range(1, work.rounds + 1)]
    finally:
        engine.close()
    timed = Timed(
        rate=statistics.median(sum(each.tokens_per_s or 0.0 for each in finishes) for finishes, _ in runs),
        whole=statistics.median(chats * work.new / seconds for _, seconds in runs),
        first_ms=statistics.median(each.ttft_ms or 0.0 for finishes, _ in runs for each in finishes),
        cold_ms=1000 * cold,
    )
    return _row("qlora-chat", what, chats, context, work.new, timed, engine.token_bytes)


def _answers(
    engine: LocalEngine, what: Opened, chats: int, context: int, sampling: Sampling, number: int
) -> tuple[list[Finish], float]:
    """All chats ask at once; how each answer ended, and the seconds until the last had."""
    prompts = [Prompt("", what.prompt(context, 1 + number * 1000 + chat)) for chat in range(chats)]
    began = time.perf_counter()
    streams = [engine.stream(prompt, replace(sampling, seed=number), Stops()) for prompt in prompts]
    ends = [list(stream)[-1].finish for stream in streams]
    return [each for each in ends if each is not None], time.perf_counter() - began


def original(subject: Subject, work: Workload) -> list[Row]:
    """One chat at each context, which is what the original serves at a time."""
    from qlora_chat.benchmark.original import generate

    what = opened(subject)
    _check_window(what, work)
    if what.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model, rows = what.original(), []
    sampling = replace(SAMPLING, max_new_tokens=work.new)
    for context in work.contexts:
        generate(model, what.prompt(context, 0), replace(sampling, max_new_tokens=min(24, work.new)), what.device)
        runs = [generate(model, what.prompt(context, number), sampling, what.device) for number in range(1, work.rounds + 1)]
        timed = Timed(
            rate=statistics.median((work.new - 1) / (each.whole - each.first) for each in runs),
            whole=statistics.median(work.new / each.whole for each in runs),
            first_ms=1000 * statistics.median(each.first for each in runs),
            cold_ms=None,
        )
        kept = 4 * what.shape.layers * what.shape.kv_heads * what.shape.head_dim  # keys and values in bf16
        rows.append(_row("original", what, 1, context, work.new, timed, kept))
    return rows


def _row(path: str, what: Opened, chats: int, context: int, new: int, timed: Timed, kept: int) -> Row:
    """A row from times and from the bytes that a token leaves in the cache."""
    each = what.bytes_a_pass() / chats + kept * (context + new / 2)
    cold = None if timed.cold_ms is None else round(timed.cold_ms, 1)
    return Row(
        path, chats, context, new, round(timed.rate, 2), round(timed.whole, 2), round(timed.first_ms, 2),
        cold, round(_peak_bytes(what.device) / GIB, 3), round(each / GB, 4),
    )  # fmt: skip


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_window(what: Opened, work: Workload) -> None:
    longest = max(work.contexts) + work.new
    if longest > what.shape.window:
        raise BenchmarkError(
            f"a prompt of {max(work.contexts)} and {work.new} new tokens make {longest}, "
            f"but the window is {what.shape.window}: take a shorter --context or fewer --tokens"
        )


def _check_memory(model: LoadedModel, chats: int, kv_cache_dtype: KVCacheDtype) -> None:
    """Before the cache is made: an engine that dies of it would take the rows before it along."""
    needed = chats * slot_bytes(model.weights, torch.int8 if kv_cache_dtype == "int8" else None)
    if model.weights.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.weights.device)[0] - SPARE_BYTES
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise BenchmarkError(
            f"{chats} chats of {model.info.window} tokens need {needed / GIB:.1f} GiB of cache, and {free / GIB:.1f} are free: "
            "take fewer --chats"
        )


def software() -> dict[str, str]:
    """Versions that a figure depends on, of what is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"torch": torch.__version__}
    for name in ("transformers", "peft", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
