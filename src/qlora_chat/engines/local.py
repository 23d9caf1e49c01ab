"""The in-process engine: one model, one thread, any number of chats.

Scope: owns the thread and the hand-over between it and the callers. The work of a step is in scheduler.py, the
arithmetic in llama.py and sampling.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch

from qlora_chat.engines import EngineError, Stream
from qlora_chat.engines.cache import KVCache, fitting_slots
from qlora_chat.engines.llama import Forward, Span
from qlora_chat.engines.request import LocalStream, Request
from qlora_chat.engines.scheduler import Scheduler
from qlora_chat.engines.speculation import EXPECTED_COSTS, PassCosts
from qlora_chat.models import LoadedModel, ModelInfo, Notify
from qlora_chat.models.tokenizer import ModelTokenizer
from qlora_chat.models.weights import LlamaWeights
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling, cache_folder
from qlora_chat.stopping import Stops

if TYPE_CHECKING:
    from qlora_chat.engines.cuda.scheduler import CudaScheduler


class LocalEngine:
    """Generates for all callers in one batch; see the Engine protocol.

    Loading, too, happens on the engine's thread. Every thread that computes gets its own OpenMP team, and with more
    team members than cores libgomp stops spinning between operations: a token then takes 1.4 times as long.
    """

    def __init__(self, load: Callable[[], LoadedModel], slots: int | None = None, notify: Notify = lambda line: None) -> None:
        """Load the model and wait for it; whatever `load` raises is raised here."""
        self._notify = notify
        self._changed = threading.Condition()
        self._closing = False
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(load, slots), name="qlora-chat-engine", daemon=True)
        self._thread.start()
        self._ready.result()

    @property
    def forwards(self) -> int:
        """Forward passes so far."""
        return self._scheduler.forwards

    @property
    def slots(self) -> int:
        """Chats that can share a forward pass."""
        return len(self._cache.slots)

    @property
    def forward(self) -> Callable[[Sequence[Span]], torch.Tensor]:
        """The pass itself, to check its logits; only where nothing is generated, and not in a process that takes times."""
        return self._scheduler._forward

    def stream(self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None) -> Stream:
        """Begin an answer; it joins the batch at the next step. ValueError for a prompt or adapter it cannot take."""
        if adapter not in (None, self.info.adapter):
            raise ValueError(f"adapter {adapter!r} is not loaded; loaded: {self.info.adapter or 'none'}")
        self._check(prompt.ids)
        request = Request(prompt.ids, sampling, stops, self.info.window, self.tokenizer)
        with self._changed:
            if self._closing:
                raise EngineError("the engine is closed")
            self._scheduler.submit(request)
            self._changed.notify()
        return LocalStream(request)

    def close(self) -> None:
        """Cancel what is running and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise ValueError("the prompt is empty")
        if len(ids) >= self.info.window:
            raise ValueError(f"the prompt has {len(ids):,} tokens, which leaves no room in a window of {self.info.window:,}")
        wrong = next((each for each in ids if not 0 <= each < self._vocabulary), None)
        if wrong is not None:
            raise ValueError(f"the prompt holds token {wrong}, but the vocabulary ends at {self._vocabulary - 1}")

    def _live(self, load: Callable[[], LoadedModel], slots: int | None) -> None:
        try:
            self._open(load(), slots)
        except BaseException as problem:
            self._ready.set_exception(problem)
            return
        self._ready.set_result(None)
        self._work()

    def _open(self, model: LoadedModel, slots: int | None) -> None:
        weights = model.weights
        self.info: ModelInfo = model.info
        self.tokenizer: ModelTokenizer = model.tokenizer
        self._vocabulary = weights.shape.vocabulary
        opened = self._open_cuda(weights, slots) if weights.device.type == "cuda" else None
        if opened is None:
            cache = KVCache(weights, slots or fitting_slots(weights))
            costs = PassCosts(EXPECTED_COSTS[weights.device.type])
            opened = Scheduler(Forward(weights, cache), cache, costs), cache
        self._scheduler, self._cache = opened

    def _open_cuda(self, weights: LlamaWeights, slots: int | None) -> tuple[CudaScheduler, KVCache] | None:
        """The kernels made for cards; None where this model or card is not for them, and the eager pass serves."""
        from qlora_chat.engines.cuda import open_cuda
        from qlora_chat.engines.cuda.driver import KernelError
        from qlora_chat.engines.cuda.packing import CannotPack

        try:
            return open_cuda(weights, slots, cache_folder())
        except (CannotPack, KernelError) as problem:
            self._notify(f"answering without the fast kernels: {problem}")
            return None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._scheduler.idle)
                if self._closing:
                    break
            try:
                self._scheduler.step()
            except Exception as problem:
                self._scheduler.fail_all(problem)
        self._scheduler.cancel_all()
