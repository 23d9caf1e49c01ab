"""A decode step as one CUDA graph: tokens in, next tokens out, everything between on the device.

Scope: the host's side: setting the rows, capturing graphs of 1 to 64 rows once, starting steps and waiting for them. Sampling
is part of the graph, so the host only has to start a step. The kernels are in launches.py. Knows no requests and no text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.buffers import RING, Buffers
from qlora_chat.engines.cuda.decode.launches import Launches
from qlora_chat.engines.cuda.decode.rows import BUCKETS, MAX_ROWS, Row, pack_rows
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.prefill.dequantize import Dequantizer
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import LoraTable
from qlora_chat.engines.cuda.weights.model import CudaWeights
from qlora_chat.engines.cuda.weights.tiling import Card


class GraphKey(NamedTuple):
    """Key of a captured graph."""

    rows: int
    adapted: bool
    """Its rows may have adapters."""


class Decoder:
    """Runs rows through the weights, writes keys and values into the cache, and samples tokens."""

    def __init__(self, weights: CudaWeights, cache: KVCache, cache_folder: Path | None) -> None:
        """Compile the kernels of one to eight rows; the others are compiled at their first use. KernelError if that fails."""
        self.weights, self.cache = weights, cache
        self._device = weights.norm.device
        properties = torch.cuda.get_device_properties(self._device)
        self._card = Card(
            properties.multi_processor_count, properties.shared_memory_per_block_optin, dependent_launch=properties.major >= 9
        )
        self.kernels = Kernels(cache_folder, self._card.shared_limit)
        self._lora: LoraTable | None = None
        self._adapted = False
        """True if a row has an adapter; steps without adapters have graphs of their own."""
        self._graphs: dict[GraphKey, Callable[[], None]] = {}
        """Run a step: the graph's replay, or its launches one by one where it could not be captured."""
        self.stream = torch.cuda.Stream(self._device)
        """Stream of the steps; prefill must run on it too."""
        self._begun, self._ended = ([torch.cuda.Event(enable_timing=True) for _ in range(RING)] for _ in range(2))
        self._steps = 0
        self._buffers = Buffers(weights, cache)
        self._sampled = self._buffers.sampled.numpy()
        self.logits: Tensor = self._buffers.logits
        """(64, V) float32: of the step that ended last."""
        self.rope_cos_sin: Tensor = self._buffers.rope_cos_sin
        self.dequantize = Dequantizer(self.kernels, self._card, self._device, kv8=cache.key_scales is not None)
        self.max_rows = self._max_rows(None)
        """Rows of a step on this card, with the adapters there are."""
        self._max_equal = self._equal_rows(None, self.max_rows)
        self.launches(1).load()

    def set_lora(self, lora: LoraTable) -> None:
        """Let rows have the adapters of this table from the next `set_rows` on. KernelError if this card cannot; nothing has
        changed then. Waits for the steps in flight."""
        self.stream.synchronize()
        max_rows = self._max_rows(lora)
        equal_rows = [self._equal_rows(each, max_rows) for each in (None, lora)]
        self._launches(1, lora).load()
        self._buffers.resize_counters(lora.counters(MAX_ROWS))  # before the table is used: its sums need that many
        self._lora, self.max_rows = lora, max_rows
        self._max_equal = {rows: min(each[rows] for each in equal_rows) for rows in equal_rows[0]}
        self._graphs.clear()  # the counters have moved

    def wait_for_current_stream(self) -> None:
        """Order the following steps after the work on PyTorch's current stream."""
        self.stream.wait_stream(torch.cuda.current_stream(self._device))

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Set the rows of the following steps; the device advances them by itself, a token per step."""
        self._adapted = any(row.adapter >= 0 for row in rows)
        packed = torch.from_numpy(pack_rows(rows)).pin_memory()
        with torch.cuda.stream(self.stream):
            self._buffers.rows.copy_(packed, non_blocking=True)

    def set_seen(self, slot: int, tokens: Sequence[int]) -> None:
        """Set the tokens that the repetition penalty of a slot's chat applies to."""
        seen = np.zeros(self._buffers.seen.shape[1] * 32, dtype=np.uint8)
        seen[np.asarray(tokens, dtype=np.int64)] = 1
        words = torch.from_numpy(np.packbits(seen, bitorder="little").view(np.int32)).pin_memory()
        with torch.cuda.stream(self.stream):
            self._buffers.seen[slot].copy_(words, non_blocking=True)

    def start(self, count: int) -> int:
        """Start a step over the first `count` rows; returns its number."""
        key = GraphKey(_bucket(count), self._adapted)
        run = self._graphs.get(key) or self.capture(key)
        number = self._steps
        self._begun[number % RING].record(self.stream)
        with torch.cuda.stream(self.stream):
            run()
        self._ended[number % RING].record(self.stream)
        self._steps += 1
        return number

    def finish(self, number: int) -> None:
        """Wait until a step has ended."""
        self._ended[number % RING].synchronize()

    def step_seconds(self, number: int) -> tuple[float, float]:
        """Device time of a finished step: from the end of the previous one to its beginning, and its own."""
        begun, ended = self._begun[number % RING], self._ended[number % RING]
        gap = self._ended[(number - 1) % RING].elapsed_time(begun) if number else 0.0
        return gap / 1000, begun.elapsed_time(ended) / 1000

    def sampled_token(self, row: int, count: int) -> int:
        """Token number `count` of a row's chat, from a finished step; -1: its logits are not finite."""
        return int(self._sampled[row, count % RING])

    def launches(self, rows: int, adapted: bool | None = None) -> Launches:
        """The kernels of a step over so many rows; with adapters as the rows that were set last, unless `adapted` says."""
        return self._launches(rows, self._lora if (self._adapted if adapted is None else adapted) else None)

    def missing_graphs(self, rows: int, adapted: Sequence[bool]) -> list[GraphKey]:
        """Graphs not yet captured for steps of up to so many rows, with or without adapters as listed; narrow ones first."""
        widest = _bucket(min(rows, self.max_rows))
        keys = [GraphKey(bucket, each) for bucket in BUCKETS if bucket <= widest for each in adapted]
        return [key for key in keys if key not in self._graphs]

    def max_equal_rows(self, rows: int) -> int:
        """Rows of the widest step that gives each row the same bits as a step over so many, with adapters or without."""
        return min(self.max_rows, self._max_equal[_bucket(rows)])

    def capture(self, key: GraphKey) -> Callable[[], None]:
        """Capture a step's graph; where memory is short, fall back to its launches, which take the host longer. KernelError if
        a kernel cannot be compiled; later steps are narrower then."""
        launches = self.launches(*key)
        try:
            launches.load()
        except KernelError:
            self.max_rows = max(1, min(self.max_rows, key.rows // 2))
            raise
        try:
            run = self._captured(launches)
        except RuntimeError:
            run = launches.run
        self._graphs[key] = run
        return run

    def _captured(self, launches: Launches) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self.stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launches.run()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()  # or later work on this stream would be captured instead of run
                raise
            graph.capture_end()
        return graph.replay

    def _equal_rows(self, lora: LoraTable | None, max_rows: int) -> dict[int, int]:
        """`max_equal_rows` of each bucket."""
        equal: dict[int, int] = {}
        roundings = {rows: self._launches(rows, lora).rounding for rows in BUCKETS if rows <= max_rows}
        for rows, wider in zip(reversed(roundings), (0, *reversed(roundings)), strict=False):
            equal[rows] = equal[wider] if wider and roundings[wider] == roundings[rows] else rows
        return equal

    def _max_rows(self, lora: LoraTable | None) -> int:
        fitting = next((rows for rows in reversed(BUCKETS) if self._launches(rows, lora).fit()), None)
        if fitting is None:
            raise KernelError(f"{self._card.shared_limit:,} bytes of shared memory a block are too few for a step of one row")
        return fitting

    def _launches(self, rows: int, lora: LoraTable | None) -> Launches:
        return Launches(self.weights, self.cache, self._buffers, self.kernels, self._card, rows, lora)


def _bucket(rows: int) -> int:
    """Rows of the graph that a step over so many runs in."""
    return next(bucket for bucket in BUCKETS if bucket >= rows)
