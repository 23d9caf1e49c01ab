"""Figures of a merge: its loss against the unmerged adapter, its bytes, its speed in this program.

Scope: one folder at a time, on one device. Speed is one chat, greedy, no text: a figure for comparing merges in one run,
not a benchmark (bench/ has those).
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu import compiled_forward
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.merging.candidates import Candidate, Origin, Reference
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.merge_loss import HeldOut, compare, perplexity
from qlora_chat.models.folders import Base
from qlora_chat.models.placement import DeviceType, synchronize
from qlora_chat.models.weights.llama import Adapter, LlamaWeights, build
from qlora_chat.models.weights.shards import StoredFormat

PROMPT, WARM_UP, TIMED = 16, 4, 24
"""Tokens of the prompt; decode steps before and under the clock."""


@dataclass(frozen=True)
class Measure:
    """Measures merges on one text."""

    text: HeldOut
    device: DeviceType
    notify: Notify

    def reference(self, nf4: Base, adapter: AdapterFolder) -> tuple[Tensor, Reference]:
        """Logits (N, V) of the unmerged adapter on its NF4 base, and its figures."""
        from qlora_chat.models.adapter.merge import unmerged_logits

        logits = unmerged_logits(nf4, adapter, self.device, self.text)
        try:
            speed = self._speed(nf4, Adapter.read(adapter))
        except ModelError:  # a variant of LoRA that PEFT alone can apply unmerged
            speed = None
        size = _weight_file_bytes(nf4.folder) + _weight_file_bytes(adapter.folder)
        return logits, Reference(len(logits), round(perplexity(logits, self.text.targets), 3), size, speed)

    def candidate(self, origin: Origin, form: StoredFormat, folder: Path, reference: Tensor) -> Candidate:
        """Figures of the merge in `folder`, against the reference's logits (N, V)."""
        from qlora_chat.models.adapter.merge import folder_logits

        loss = compare(reference, folder_logits(folder, self.device, self.text), self.text.targets)
        candidate = Candidate(origin, form, loss, _weight_file_bytes(folder), self._speed(Base.read(folder)))
        self.notify(f"{candidate.name}: KL {loss.kl}, agreement {loss.top1:.1%}, perplexity {loss.perplexity}")
        return candidate

    def _speed(self, base: Base, adapter: Adapter | None = None) -> float:
        weights = build(base.checkpoint(), base.shape, torch.device(self.device), adapter=adapter)
        speed = round(tokens_per_second(weights, self.notify), 1)
        del weights
        gc.collect()
        return speed


def tokens_per_second(weights: LlamaWeights, notify: Notify) -> float:
    """Decode speed of one chat after a prompt of 16 tokens, over 24 steps; on a CPU through the pass that serves there."""
    cache = KVCache(weights, slots=1)
    forward = compiled_forward(weights, cache, notify) or Forward(weights, cache)
    token = int(forward([Span(0, 0, list(range(3, 3 + PROMPT)))]).argmax())
    begin = 0.0
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            synchronize(weights.device)
            begin = time.perf_counter()
        token = int(forward([Span(0, PROMPT + step, [token])]).argmax())
    synchronize(weights.device)
    return TIMED / (time.perf_counter() - begin)


def _weight_file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
