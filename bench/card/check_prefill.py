"""Prefill on a card, a part of check_kernels.py: the cache after a pass, whole and in parts; attention; biases."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from check_common import cached_part, poison, relative, say

from qlora_chat.benchmark.check import INT8_KV_FACTOR
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.cuda.decode.rows import GREEDY, Row
from qlora_chat.engines.cuda.prefill.reader import _Product, causal_attention
from qlora_chat.engines.cuda.weights.packing import natural_order, pack


def check_prefill(decoder, prefill, plain_cache, forward, matrix):
    """Run all checks; `matrix`: one in NF4."""
    shape = decoder.weights.shape
    check_prompts(prefill, decoder.cache, forward, plain_cache, shape, decoder.stream)
    check_parts(decoder, prefill, shape)
    check_attention(shape.head_dim)
    check_bias(decoder, matrix)


def check_attention(dim):
    """Prompts from their beginning and continued, with as many key heads as query heads and with fewer, against float32."""
    for heads, kv_heads in ((32, 32), (32, 8), (9, 3)):
        for count, seen in ((70, 70), (33, 333), (1, 40), (1024, 2000)):
            queries = torch.randn(1, heads, count, dim, device="cuda").bfloat16()
            keys, values = (torch.randn(1, kv_heads, 2048, dim, device="cuda").bfloat16()[:, :, :seen] for _ in range(2))
            attended = causal_attention(queries, keys, values)
            wide = [each.float().repeat_interleave(heads // kv_heads, dim=1) for each in (keys, values)]
            mask = torch.ones((count, seen), dtype=torch.bool, device="cuda").tril(seen - count)
            scores = (queries.float() @ wide[0].transpose(-1, -2) / math.sqrt(dim)).masked_fill(~mask, -math.inf)
            error = relative(attended, scores.softmax(-1) @ wide[1])
            say(f"attention of a prompt, {heads} heads to {kv_heads}, {count} of {seen}", error < 5e-3, relative=f"{error:.1e}")


def check_bias(decoder, part):
    """A product with biases, whose tiles have another order than its outputs."""
    order = natural_order(part.outputs)[::-1]
    bias = torch.randn(part.outputs, device="cuda")
    packed = pack([replace(part, bias=bias)], order)
    x = torch.randn(64, part.inputs, device="cuda").bfloat16()
    y = torch.empty(64, part.outputs, dtype=torch.bfloat16, device="cuda")
    with torch.inference_mode():
        _Product.of(packed, decoder.dequantize)(x, y, torch.cuda.current_stream().cuda_stream)
        expected = x.double() @ decoder.dequantize(packed).double().T + bias.double()
    error = relative(y, expected)
    say("a prompt's product with biases", error < 5e-3, relative=f"{error:.1e}")


def check_prompts(prefill, cache, forward, plain_cache, shape, stream):
    """Keys and values of a prefill pass against the plain bf16 pass's: several prompts at once, then more of one. The
    first layer's bound is bf16's rounding, which random weights amplify fivefold and more over 32 layers, in either pass."""
    generator = torch.Generator().manual_seed(9)
    ids = [torch.randint(5, shape.vocabulary, (length,), generator=generator).tolist() for length in (70, 300, 33)]
    spans = [[Span(0, 0, ids[0], logits=0), Span(2, 0, ids[1], logits=0)], [Span(2, len(ids[1]), ids[2], logits=0)]]
    cached = []
    for run, into in ((forward, plain_cache), (prefill, cache)):
        poison(into, 3)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for each in spans:
                run(each)
        torch.cuda.synchronize()
        cached.append([part for slot, seen in ((0, 70), (2, 333)) for part in cached_part(into, slot, seen)])
    coarser = INT8_KV_FACTOR if cache.key_scales is not None else 1
    for name, plain, ours in zip(("keys", "values", "keys, two parts", "values, two parts"), *cached, strict=True):
        error = relative(ours, plain)
        first = relative(ours[0], plain[0])
        near = error < 1e-1 * coarser and first < (1e-2 if coarser == 1 else 1.5e-2)
        say(f"prompt's {name}", near, relative=f"{error:.1e}", first_layer=f"{first:.1e}")


def check_parts(decoder, prefill, shape):
    """A pass in parts, with steps of another chat between them, leaves what it leaves at once, to the bit."""
    ids = torch.randint(5, shape.vocabulary, (300,), generator=torch.Generator().manual_seed(10)).tolist()
    cached, seconds = [], (0.0, 0.0)
    for weights in (math.inf, 50_000_000):
        poison(decoder.cache, 3)
        torch.cuda.synchronize()
        decoder.set_rows([Row(1, 0, 7, GREEDY)])
        parts = prefill.begin([Span(0, 0, ids[:200], logits=0), Span(2, 0, ids[200:], logits=0)])
        while not parts.ended:
            with torch.cuda.stream(decoder.stream):
                parts.run(weights)
            number = decoder.start(1)
            decoder.finish(number)
            seconds = decoder.step_seconds(number)
        torch.cuda.synchronize()
        cached.append([part for slot, seen in ((0, 200), (2, 100)) for part in cached_part(decoder.cache, slot, seen)])
    same = all(torch.equal(at_once, in_parts) for at_once, in_parts in zip(*cached, strict=True))
    before, own = (round(each * 1e3, 3) for each in seconds)
    say("prompt in parts between steps", same and min(seconds) > 0, last_part_ms=before, step_ms=own)


def time_prompts(decoder, prefill):
    for length in (128, 512, 2048):
        ids = torch.randint(5, 32000, (length,)).tolist()
        with torch.cuda.stream(decoder.stream), torch.inference_mode():
            prefill([Span(0, 0, ids, logits=0)])
            torch.cuda.synchronize()
            times = []
            for _ in range(5):
                begin = time.perf_counter()
                prefill([Span(0, 0, ids, logits=0)])
                torch.cuda.synchronize()
                times.append((time.perf_counter() - begin) * 1e3)
        say(f"time prompt of {length}", ms=round(sorted(times)[2], 2))
