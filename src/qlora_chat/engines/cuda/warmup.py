"""Warm-up while the engine is idle: graphs and libraries that a later step or prefill pass would wait for.

Scope: a step of a new width would delay every answer by the 50 ms of its capture, and by seconds where its kernels have to be
compiled. Those are compiled on another thread, since NVRTC releases the interpreter lock. Belongs to the engine's thread. Knows
no requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from qlora_chat.engines.cuda.decode.graph import Decoder, GraphKey
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters


class Warmup:
    """Prepares one thing per call, in tens of milliseconds; returns whether there may be more."""

    def __init__(
        self,
        decoder: Decoder,
        adapters: CudaAdapters,
        rows: int,
        warm_up_prefill: Callable[[int], None],
        lengths: Iterable[int],
    ) -> None:
        """`rows`: of the widest step to expect; `warm_up_prefill`: runs for each number of tokens in `lengths`."""
        self._decoder, self._adapters, self._rows = decoder, adapters, rows
        self._warm_up_prefill, self._lengths = warm_up_prefill, deque(lengths)
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="qlora-chat-compiler")
        self._compiling: tuple[GraphKey, Future[None]] | None = None
        """One kernel at a time, and its graph: a process that exits waits for no more than that."""

    def __call__(self) -> bool:
        if self._compiling and not self._compiling[1].done():
            return True
        compiling, self._compiling = self._compiling, None
        if self._lengths:
            try:
                self._warm_up_prefill(self._lengths.popleft())
            except torch.OutOfMemoryError:
                self._lengths.clear()  # prefill passes will be smaller
            return True
        missing = self._decoder.missing_graphs(self._rows, self._adapters.used)
        if not missing:
            return False
        graph, launches = missing[0], self._decoder.launches(*missing[0])
        failed = compiling is not None and compiling[0] == graph and compiling[1].exception() is not None
        if failed or launches.compiled:
            return self._capture(graph)
        self._compiling = graph, self._compiler.submit(launches.compile_one)
        return True

    def _capture(self, graph: GraphKey) -> bool:
        max_rows = self._decoder.max_rows
        try:
            self._decoder.capture(graph)
        except KernelError:
            if self._decoder.launches(*graph).compiled:
                self._decoder.max_rows = max_rows  # memory was short, maybe briefly: the step that needs the graph tries again
                return False
        return True  # the decoder does without widths that cannot be compiled
