"""What a step or a pass would have to make first, made while nobody asks.

Scope: which graphs are still missing, and what PyTorch's libraries load at their first call. A width of steps that is met for
the first time costs everybody who is being answered 50 ms, and seconds where its kernels were never compiled on this machine:
these are compiled beside, since the compiler leaves the interpreter alone. Belongs to the engine's thread. Knows no requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from qlora_chat.engines.cuda.decode.graph import Decoder, Graph
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters


class Preparing:
    """Called while nothing is under way, it makes one thing; whether there may be more to make."""

    def __init__(
        self,
        decoder: Decoder,
        adapters: CudaAdapters,
        rows: int,
        rehearse: Callable[[int], None],
        lengths: Iterable[int],
    ) -> None:
        """`rows`: of the widest step that is likely; `rehearse`: what libraries are asked for by prompts of the `lengths`."""
        self._decoder, self._adapters, self._rows = decoder, adapters, rows
        self._rehearse, self._lengths = rehearse, deque(lengths)
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="qlora-chat-compiler")
        self._compiling: tuple[Graph, Future[None]] | None = None
        """One kernel at a time, and whose: a process that ends waits for no more than that."""

    def __call__(self) -> bool:
        """Takes tens of milliseconds at most, but for memory that is short."""
        if self._compiling and not self._compiling[1].done():
            return True
        compiling, self._compiling = self._compiling, None
        if self._lengths:
            self._rehearse_next()
            return True
        missing = self._decoder.missing(self._rows, self._adapters.used)
        if not missing:
            return False
        graph = missing[0]
        failed = compiling is not None and compiling[0] == graph and compiling[1].exception() is not None
        if failed or self._decoder.compiled(graph):
            return self._capture(graph)
        self._compiling = graph, self._compiler.submit(self._decoder.compile, graph)
        return True

    def _rehearse_next(self) -> None:
        try:
            self._rehearse(self._lengths.popleft())
        except torch.OutOfMemoryError:
            self._lengths.clear()  # prompts are read in smaller parts, then

    def _capture(self, graph: Graph) -> bool:
        most_rows = self._decoder.most_rows
        try:
            self._decoder.capture(*graph)
        except KernelError:
            if self._decoder.compiled(graph):
                self._decoder.most_rows = most_rows  # memory was short, perhaps for a moment: whoever needs it finds out
                return False
        return True  # without what cannot be compiled the decoder has narrower steps
