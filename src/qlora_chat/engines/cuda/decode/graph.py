"""A decode step as one CUDA graph: tokens in, next tokens out, everything between on the device.

Scope: what the host does: rows put, graphs of 1 to 64 rows captured once, steps started and waited for. Sampling is part of the
graph, so that a step needs nothing from the host but to be started. What is launched is in launches.py. Knows no requests and
no text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.buffers import RING, Buffers
from qlora_chat.engines.cuda.decode.launches import Launches
from qlora_chat.engines.cuda.decode.rows import BUCKETS, MOST_ROWS, Row, columns_of
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.prefill.dequantize import Unpacker
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import LowRank
from qlora_chat.engines.cuda.weights.model import CudaWeights
from qlora_chat.engines.cuda.weights.tiling import Card

Graph = tuple[int, bool]
"""Of how many rows, and whether these may have adapters."""


class Decoder:
    """Runs rows through the weights, writing keys and values into the cache and choosing tokens.

    A row is one token of one chat: a chat's newest (which is `ready` to choose the next) or one of a prompt that is being read.
    """

    def __init__(self, weights: CudaWeights, cache: KVCache, cache_folder: Path | None) -> None:
        """Compile what one to eight rows need; the rest is compiled when it is first asked for. KernelError says why not."""
        self.weights, self.cache = weights, cache
        self._device = weights.norm.device
        properties = torch.cuda.get_device_properties(self._device)
        self._card = Card(
            properties.multi_processor_count, properties.shared_memory_per_block_optin, early=properties.major >= 9
        )
        self.kernels = Kernels(cache_folder, self._card.shared_limit)
        self._low_rank: LowRank | None = None
        self._adapted = False
        """Whether a row has an adapter; steps without any have graphs of their own, which know of none."""
        self._graphs: dict[Graph, Callable[[], None]] = {}
        """What runs a step of so many rows: a graph's replay, or its launches one by one where there could be no graph."""
        self._stream = torch.cuda.Stream(self._device)
        self._begun, self._ended = ([torch.cuda.Event(enable_timing=True) for _ in range(RING)] for _ in range(2))
        self._steps = 0
        self._buffers = Buffers(weights, cache)
        self._drawn = self._buffers.drawn.numpy()
        self.unpack = Unpacker(self.kernels, self._card, self._device, kv8=cache.key_scales is not None)
        """One matrix as bf16, for reading prompts."""
        self.most_rows = self._most_rows(None)
        """Of a step on this card, with the adapters there are."""
        self._alike = self._alike_of(None, self.most_rows)
        self.launches(1).prepare()

    def adapt(self, low_rank: LowRank) -> None:
        """Let rows have the adapters of this table from the next `put` on; nothing may be under way. KernelError if this card
        cannot; nothing has been changed then."""
        self.wait()
        most_rows = self._most_rows(low_rank)
        alike = [self._alike_of(each, most_rows) for each in (None, low_rank)]
        self._launches(1, low_rank).prepare()
        self._buffers.make_counters(low_rank.counters(MOST_ROWS))  # first: for the rows of a table there must be enough
        self._low_rank, self.most_rows = low_rank, most_rows
        self._alike = {rows: min(each[rows] for each in alike) for rows in alike[0]}
        self._graphs.clear()  # the counters have moved

    def catch_up(self) -> None:
        """What PyTorch's current stream has been given comes before the steps that follow."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def put(self, rows: Sequence[Row]) -> None:
        """What the following steps work on; the device goes on from there by itself, a token a step."""
        self._adapted = any(row.adapter >= 0 for row in rows)
        packed = torch.from_numpy(columns_of(rows)).pin_memory()
        with torch.cuda.stream(self._stream):
            self._buffers.rows.copy_(packed, non_blocking=True)

    def see(self, slot: int, tokens: Sequence[int]) -> None:
        """The tokens, and only these, count as seen for the repetition penalty of the chat in a slot."""
        seen = np.zeros(self._buffers.seen.shape[1] * 32, dtype=np.uint8)
        seen[np.asarray(tokens, dtype=np.int64)] = 1
        words = torch.from_numpy(np.packbits(seen, bitorder="little").view(np.int32)).pin_memory()
        with torch.cuda.stream(self._stream):
            self._buffers.seen[slot].copy_(words, non_blocking=True)

    def start(self, count: int) -> int:
        """Begin a step over the first `count` rows; the number to give to `finish`."""
        bucket = _bucket(count)
        run = self._graphs.get((bucket, self._adapted)) or self.capture(bucket, self._adapted)
        number = self._steps
        self._begun[number % RING].record(self._stream)
        with torch.cuda.stream(self._stream):
            run()
        self._ended[number % RING].record(self._stream)
        self._steps += 1
        return number

    def finish(self, number: int) -> None:
        """Wait until a step has ended."""
        self._ended[number % RING].synchronize()

    def took(self, number: int) -> tuple[float, float]:
        """Seconds of the card's time from the end of the step before a finished one to its beginning, and those of its own."""
        begun, ended = self._begun[number % RING], self._ended[number % RING]
        before = self._ended[(number - 1) % RING].elapsed_time(begun) if number else 0.0
        return before / 1000, begun.elapsed_time(ended) / 1000

    def wait(self) -> None:
        """Wait until everything that was begun on `stream` has ended, prompts included."""
        self._stream.synchronize()

    def drawn(self, row: int, count: int) -> int:
        """The token that a finished step chose for a row as its chat's draw number `count`; -1: logits are not finite."""
        return int(self._drawn[row, count % RING])

    @property
    def logits(self) -> Tensor:
        """(64, V) float32: of the step that ended last."""
        return self._buffers.logits

    @property
    def turns(self) -> Tensor:
        """(window, D / 2, 2) float32: cos and sin of a position."""
        return self._buffers.turns

    @property
    def stream(self) -> torch.cuda.Stream:
        """On which steps run; a prompt must be read on it, too."""
        return self._stream

    def launches(self, rows: int) -> Launches:
        """Of a step over so many rows, with adapters if a row that was put last has one."""
        return self._of((rows, self._adapted))

    def missing(self, most: int, adapted: Sequence[bool]) -> list[Graph]:
        """What has not been captured of all that steps of up to so many rows need, with adapters or without as named; narrow
        ones first."""
        widest = _bucket(min(most, self.most_rows))
        wanted = [(rows, each) for rows in BUCKETS if rows <= widest for each in adapted]
        return [each for each in wanted if each not in self._graphs]

    def compiled(self, graph: Graph) -> bool:
        """Whether all of its kernels have been compiled."""
        return self._of(graph).compiled

    def compile(self, graph: Graph) -> None:
        """One kernel of what `compiled` asks for; on any thread. KernelError says why it cannot be."""
        self._of(graph).compile()

    def most_alike(self, rows: int) -> int:
        """Most rows of a step that computes each row to the bit as a step over so many does, adapters or none."""
        return min(self.most_rows, self._alike[_bucket(rows)])

    def _alike_of(self, low_rank: LowRank | None, most_rows: int) -> dict[int, int]:
        """What `most_alike` says, by the rows of the graphs."""
        found: dict[int, int] = {}
        roundings = {rows: self._launches(rows, low_rank).rounding for rows in BUCKETS if rows <= most_rows}
        for rows, wider in zip(reversed(roundings), (0, *reversed(roundings)), strict=False):
            found[rows] = found[wider] if wider and roundings[wider] == roundings[rows] else rows
        return found

    def _most_rows(self, low_rank: LowRank | None) -> int:
        found = next((rows for rows in reversed(BUCKETS) if self._launches(rows, low_rank).fit()), None)
        if found is None:
            raise KernelError(f"{self._card.shared_limit:,} bytes of shared memory a block are too few for a step of one row")
        return found

    def _launches(self, rows: int, low_rank: LowRank | None) -> Launches:
        return Launches(self.weights, self.cache, self._buffers, self.kernels, self._card, rows, low_rank)

    def capture(self, rows: int, adapted: bool) -> Callable[[], None]:
        """A graph of a step; where there is no memory for one, its launches, which take the host longer."""
        launches = self._of((rows, adapted))
        try:
            launches.prepare()
        except KernelError:
            self.most_rows = max(1, min(self.most_rows, rows // 2))  # who is answered next has narrower steps
            raise
        try:
            run = self._recorded(launches)
        except RuntimeError:
            run = launches.run
        self._graphs[rows, adapted] = run
        return run

    def _of(self, graph: Graph) -> Launches:
        rows, adapted = graph
        return self._launches(rows, self._low_rank if adapted else None)

    def _recorded(self, launches: Launches) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launches.run()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()  # or whatever follows on this stream would be recorded instead of run
                raise
            graph.capture_end()
        return graph.replay


def _bucket(rows: int) -> int:
    """Rows of the graph that a step over so many runs in."""
    return next(each for each in BUCKETS if each >= rows)
