"""What a step or a pass would have to make first, made while nobody asks.

Scope: which graphs are still missing, and what PyTorch's libraries load at their first call. A width of steps that is met for
the first time costs everybody who is being answered 50 ms, and seconds where its kernels were never compiled on this machine:
these are compiled beside, since the compiler leaves the interpreter alone. Belongs to the engine's thread. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.cuda.adapters import CudaAdapters
from qlora_chat.engines.cuda.driver import KernelError
from qlora_chat.engines.cuda.step import Decoder
from qlora_chat.engines.llama import Span

FIRST_PROMPT = 64
"""Tokens of a prompt that nobody asked: enough to be read in a pass."""


class Preparing:
    """Called while nothing is under way, it makes one thing; whether there may be more to make."""

    def __init__(
        self, decoder: Decoder, read: Callable[[Sequence[Span]], None], cache: KVCache, adapters: CudaAdapters, rows: int
    ) -> None:
        """`read`: a pass over prompts; `rows`: of the widest step that is likely."""
        self._decoder, self._read, self._cache, self._adapters, self._rows = decoder, read, cache, adapters, rows
        self._has_read = False
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="qlora-chat-compiler")
        self._compiling: Future[None] | None = None
        """One set of kernels at a time: a process that ends waits for no more than that."""

    def __call__(self) -> bool:
        """Takes tens of milliseconds at most, but for memory that is short."""
        compiling, self._compiling = self._compiling, None
        if compiling and not compiling.done():
            self._compiling = compiling
            return True
        if not self._has_read:
            self._has_read = True
            self._read_something()
            return True
        missing = self._decoder.missing(self._rows, self._adapters.used)
        if not missing:
            return False
        if compiling or self._decoder.compiled(missing[0]):  # what could not be compiled says so again
            self._capture(missing[0])
        else:
            self._compiling = self._compiler.submit(self._decoder.compile, missing[0])
        return True

    def _read_something(self) -> None:
        """Into a slot that holds nothing: what the first pass loads takes up to a second. Whoever takes it writes over that."""
        free = next((slot for slot in self._cache.slots if not slot.ids and not slot.busy), None)
        if free is not None:
            length = min(FIRST_PROMPT, self._cache.keys.shape[3])
            self._read([Span(free.index, 0, [0] * length, logits=0)])
            self._decoder.wait()

    def _capture(self, missing: tuple[int, bool]) -> None:
        try:
            self._decoder.capture(*missing)
        except KernelError:
            return  # the decoder has narrower steps from now on
