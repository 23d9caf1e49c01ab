"""The clocks: memory bandwidth of a copy, speed of our engine, speed of the original's path.

Scope: each function is meant for a process of its own, whose main thread computes nothing (the engine's thread does).
Sampling, prompt length and number of new tokens are the same on both sides; every run has a new prompt.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from qlora_chat.benchmark import SAMPLING, BenchmarkError, Row, Subject, Workload
from qlora_chat.benchmark.subjects import OpenSubject, chat_prompt, open_subject
from qlora_chat.engines import Engine, Piece
from qlora_chat.engines.core.kv_cache import RESERVED_BYTES, free_bytes, slot_bytes
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.models.placement import GIB, peak_bytes, synchronize
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import Prompt
from qlora_chat.settings import KVCacheDtype, Sampling
from qlora_chat.stopping import Stops

GB = 1e9
COPIES = 10


def measure_copy_rate(subject: Subject) -> float:
    """GB/s of a plain copy on the device, bytes read plus bytes written; median of ten."""
    device = open_subject(subject).device
    size = 4 * GIB if device.type == "cuda" else GIB // 2
    source, target = torch.ones(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device)
    target.copy_(source)
    seconds = []
    for _ in range(COPIES):
        synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size / statistics.median(seconds) / GB


def measure_engine(subject: Subject, work: Workload) -> list[Row]:
    """Return a row per cell of the work; the model is loaded once, and every cell has an engine with a slot per chat."""
    model = open_subject(subject)
    _check_window(model, work)
    loaded: list[LoadedModel] = []
    rows = []
    for chats, context in work.cells():
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rows.append(_engine_row(model, loaded, chats, context, work, subject.kv_cache_dtype))
        gc.collect()
    return rows


def _engine_row(
    model: OpenSubject, loaded: list[LoadedModel], chats: int, context: int, work: Workload, kv_cache_dtype: KVCacheDtype
) -> Row:
    loaded_at = 0.0

    def load() -> LoadedModel:
        nonlocal loaded_at
        if not loaded or model.device.type == "cuda":  # a card's engine repacks the weights: they serve one engine
            loaded.clear()
            loaded.append(model.load())
        _check_memory(loaded[0], chats, kv_cache_dtype)
        synchronize(model.device)
        loaded_at = time.perf_counter()
        return loaded[0]

    engine = LocalEngine(load, slots=chats, kv_cache_dtype=kv_cache_dtype)
    sampling = replace(SAMPLING, max_new_tokens=work.new)
    try:
        generate_together(engine, [Prompt("", model.prompt(context, 0))], replace(sampling, max_new_tokens=1))
        cold = time.perf_counter() - loaded_at
        _timed_answers(engine, model, chats, context, replace(sampling, max_new_tokens=min(32, work.new)), 0)
        runs = [_timed_answers(engine, model, chats, context, sampling, number) for number in range(1, work.rounds + 1)]
    finally:
        engine.close()
    finishes = [pieces[-1].finish for answers, _ in runs for pieces in answers]
    return _row(
        "qlora-chat", model, chats, context, work.new, engine.token_bytes, cold_ms=1000 * cold,
        rate=statistics.median(total_rate(answers) for answers, _ in runs),
        rate_with_prompts=statistics.median(chats * work.new / seconds for _, seconds in runs),
        first_ms=statistics.median(finish.ttft_ms or 0.0 for finish in finishes if finish),
    )  # fmt: skip


def _timed_answers(
    engine: Engine, model: OpenSubject, chats: int, context: int, sampling: Sampling, number: int
) -> tuple[list[list[Piece]], float]:
    """Send all chats' prompts at once; returns their answers, and the seconds until the last one ended."""
    prompts = [Prompt("", model.prompt(context, 1 + number * 1000 + chat)) for chat in range(chats)]
    began = time.perf_counter()
    answers = generate_together(engine, prompts, replace(sampling, seed=number))
    return answers, time.perf_counter() - began


def generate_together(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, adapters: Sequence[str | None] | None = None
) -> list[list[Piece]]:
    """Start an answer to every prompt at once and return their pieces; answer i has seed sampling.seed + i."""
    seed, names = sampling.seed or 0, adapters or [None] * len(prompts)
    streams = [
        engine.stream(prompt, replace(sampling, seed=seed + index), Stops(), name)
        for index, (prompt, name) in enumerate(zip(prompts, names, strict=True))
    ]
    return [[piece for piece in stream if not piece.prefill] for stream in streams]


def total_rate(answers: Sequence[Sequence[Piece]]) -> float:
    """Tokens/s of all answers together, after each one's first token."""
    return sum((pieces[-1].finish and pieces[-1].finish.tokens_per_s) or 0.0 for pieces in answers)


def clear_prefix_cache(engine: LocalEngine) -> None:
    """Empty the KV-cache slots of an idle engine, so that it prefills the next prompts whole."""
    for slot in engine._cache.slots:
        slot.ids.clear()


def quoting_prompt(engine: Engine, tokenizer: ModelTokenizer, question: str) -> Prompt:
    """Return a question whose prompt has the model's greedy answer to it, so that greedy decoding quotes that answer."""
    greedy = Sampling(temperature=0.0, max_new_tokens=160)
    answer = "".join(piece.text for piece in generate_together(engine, [chat_prompt(tokenizer, question)], greedy)[0])
    turn = f"### Human: {question}### Assistant:{answer}"
    return chat_prompt(tokenizer, question, before=turn[:900])


def measure_original(subject: Subject, work: Workload) -> list[Row]:
    """Return a row per context for one chat, which is all that the original serves at a time."""
    from qlora_chat.benchmark.original import generate

    subject_model = open_subject(subject)
    _check_window(subject_model, work)
    device = subject_model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model, rows = subject_model.load_original(), []
    sampling = replace(SAMPLING, max_new_tokens=work.new)
    shape = subject_model.shape
    for context in work.contexts:
        generate(model, subject_model.prompt(context, 0), replace(sampling, max_new_tokens=min(24, work.new)), device)
        prompts = [subject_model.prompt(context, number) for number in range(1, work.rounds + 1)]
        runs = [generate(model, prompt, sampling, device) for prompt in prompts]
        token_bytes = 4 * shape.layers * shape.kv_heads * shape.head_dim  # keys and values in bf16
        rows.append(_row(
            "original", subject_model, 1, context, work.new, token_bytes, cold_ms=None,
            rate=statistics.median((work.new - 1) / (each.total - each.first) for each in runs),
            rate_with_prompts=statistics.median(work.new / each.total for each in runs),
            first_ms=1000 * statistics.median(each.first for each in runs),
        ))  # fmt: skip
    return rows


def _row(
    path: str, model: OpenSubject, chats: int, context: int, new: int, token_bytes: int, *,
    rate: float, rate_with_prompts: float, first_ms: float, cold_ms: float | None,
) -> Row:  # fmt: skip
    """Round the medians of a row's runs; `token_bytes`: of a token in the KV cache."""
    bytes_read = model.bytes_per_pass() / chats + token_bytes * (context + new / 2)
    return Row(
        path, chats, context, new, round(rate, 2), round(rate_with_prompts, 2), round(first_ms, 2),
        None if cold_ms is None else round(cold_ms, 1), round(peak_bytes(model.device) / GIB, 3), round(bytes_read / GB, 4),
    )  # fmt: skip


def _check_window(model: OpenSubject, work: Workload) -> None:
    longest = max(work.contexts) + work.new
    if longest > model.shape.window:
        raise BenchmarkError(
            f"a prompt of {max(work.contexts)} and {work.new} new tokens add up to {longest}, "
            f"but the window is {model.shape.window}: use a shorter --context or fewer --tokens"
        )


def _check_memory(model: LoadedModel, chats: int, kv_cache_dtype: KVCacheDtype) -> None:
    """Raise BenchmarkError before the cache is allocated: an engine out of memory would lose the rows before it."""
    needed = chats * slot_bytes(model.weights, torch.int8 if kv_cache_dtype == "int8" else None)
    free = free_bytes(model.weights.device) - (RESERVED_BYTES if model.weights.device.type == "cuda" else 0)
    if needed > free:
        raise BenchmarkError(
            f"{chats} chats of {model.info.window} tokens need {needed / GIB:.1f} GiB of cache, and {free / GIB:.1f} are free: "
            "use fewer --chats"
        )
