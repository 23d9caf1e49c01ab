"""How fast this program would answer with given weights.

Scope: one chat, greedy, no text. A figure for comparing merges in one run, not a benchmark: bench/ has those.
"""

from __future__ import annotations

import time

import torch

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu import compiled_forward
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models import Notify
from qlora_chat.models.weights.llama import LlamaWeights

PROMPT, WARM, TIMED = 16, 4, 24


def tokens_per_second(weights: LlamaWeights, notify: Notify) -> float:
    """Tokens a second of one chat after a prompt of 16 tokens, over 24 steps; on a CPU through the pass that serves there."""
    cache = KVCache(weights, slots=1)
    forward = compiled_forward(weights, cache, notify) or Forward(weights, cache)
    token = int(forward([Span(0, 0, list(range(3, 3 + PROMPT)))]).argmax())
    begin = 0.0
    for step in range(WARM + TIMED):
        if step == WARM:
            _finish(weights.device)
            begin = time.perf_counter()
        token = int(forward([Span(0, PROMPT + step, [token])]).argmax())
    _finish(weights.device)
    return TIMED / (time.perf_counter() - begin)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
