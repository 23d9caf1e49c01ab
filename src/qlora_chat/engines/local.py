"""The in-process engine: one model, one thread, any number of chats.

Scope: owns the thread and the hand-over between it and the callers. The work of a step is in scheduler.py, the
arithmetic in llama.py and sampling.py.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from qlora_chat.engines import COMPILED, EngineError, Stream
from qlora_chat.engines.core.kv_cache import KVCache, fitting_slots, slot_bytes
from qlora_chat.engines.core.lora_registry import AdaptedPass, LoraRegistry, base_of
from qlora_chat.engines.core.prompt_lookup import EXPECTED_COSTS, PassCosts
from qlora_chat.engines.core.request import LocalStream, Request
from qlora_chat.engines.core.scheduler import Scheduler
from qlora_chat.engines.cpu import CpuForward, open_cpu
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.engines.eager.multi_lora import MultiLoraForward
from qlora_chat.models import LoadedModel, ModelError, ModelInfo, Notify
from qlora_chat.models.folders import adapter_bytes
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.llama import LlamaWeights
from qlora_chat.prompt import Prompt
from qlora_chat.settings import KVCacheDtype, Sampling, cache_folder
from qlora_chat.stopping import Stops

if TYPE_CHECKING:
    from qlora_chat.engines.cuda.scheduler import CudaScheduler

T = TypeVar("T")
POLL = 0.02
"""Seconds between two looks at what is to be prepared: whoever asks waits for no more than one thing that is."""


class LocalEngine:
    """Generates for all callers in one batch; see the Engine protocol.

    Loading, too, happens on the engine's thread. Every thread that computes gets its own OpenMP team, and with more
    team members than cores libgomp stops spinning between operations: a token then takes 1.4 times as long.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        slots: int | None = None,
        notify: Notify = lambda line: None,
        kv_cache_dtype: KVCacheDtype = "auto",
    ) -> None:
        """Load the model and wait for it; whatever `load` raises is raised here."""
        self._notify = notify
        self._kv_cache_dtype: KVCacheDtype = kv_cache_dtype
        self._changed = threading.Condition()
        self._closing = False
        self._lost: str | None = None
        """Why nothing can be computed any more."""
        self._adapters: LoraRegistry | None = None
        self._work_to_do: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
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
    def token_bytes(self) -> int:
        """What one token of a chat leaves in the cache."""
        return slot_bytes(self._model.weights, self._cache.dtype) // self.info.window

    @property
    def forward(self) -> Callable[[Sequence[Span]], torch.Tensor]:
        """The pass itself, to check its logits; only where nothing is generated."""
        return lambda spans: self._on_thread(lambda: self._scheduler.compute_logits(spans))

    def stream(self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None) -> Stream:
        """Begin an answer; it joins the batch at the next step. ValueError for a prompt or adapter it cannot take."""
        return self.stream_with_changes(prompt, sampling, stops, {}, adapter)

    def stream_with_changes(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, changes: Mapping[int, Sampling], adapter: str | None = None
    ) -> Stream:
        """Begin an answer whose settings change at given tokens; see Punctual."""
        lora = self._lora(adapter)
        self._check(prompt.ids)
        request = Request(prompt.ids, sampling, stops, self.info.window, self.tokenizer, changes)
        request.adapter = lora
        with self._changed:
            if self._closing:
                raise EngineError("the engine is closed")
            if self._lost:
                raise EngineError(self._lost)
            self._scheduler.submit(request)
            self._changed.notify()
        return LocalStream(request)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Keep an adapter beside the base; see AdapterHost. Answers being written wait while it is read."""
        self._on_thread(lambda: self._load_adapter(name, folder))

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for it; see AdapterHost."""
        self._on_thread(lambda: self._unload_adapter(name))

    def close(self) -> None:
        """Cancel what is running and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _lora(self, name: str | None) -> object:
        """The adapter of that name, as a request carries it; None for the model as it was opened."""
        if name in (None, self.info.adapter):
            return None
        lora = self._adapters.get(name) if self._adapters and name else None
        if lora is None:
            loaded = ", ".join(self.info.adapters) or self.info.adapter or "none"
            raise ValueError(f"adapter {name!r} is not loaded; loaded: {loaded}")
        return lora

    def _load_adapter(self, name: str, folder: Path) -> None:
        if self._adapters is None:
            self._adapters = LoraRegistry(self._model, self._cache, self._adapted_pass())
        self._adapters.load(name, folder)
        self.info = replace(self.info, adapters=self._adapters.names)

    def _adapted_pass(self) -> AdaptedPass:
        """The kernels for cards and the compiled pass take adapters as they are; torch's is made anew, with products that read
        them beside the base."""
        base = base_of(self._model)
        if not isinstance(self._scheduler, Scheduler):
            return self._scheduler.adapters
        if isinstance(forward := self._scheduler._forward, CpuForward):
            return forward
        switching = MultiLoraForward(self._model.weights, base.feed_forward, self._cache)
        self._scheduler.compute_with(switching)
        return switching

    def _unload_adapter(self, name: str) -> None:
        if self._adapters is None:
            raise ModelError(f"no adapter called {name!r} is loaded; loaded: none")
        self._adapters.unload(name)
        self.info = replace(self.info, adapters=self._adapters.names)

    def _on_thread(self, work: Callable[[], T]) -> T:
        """Do it between two steps, on the thread that computes; whatever it raises is raised here."""
        done: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise EngineError("the engine is closed")
            self._work_to_do.put((work, done))
            self._changed.notify()
        return done.result()

    def _do_work(self) -> None:
        while not self._work_to_do.empty():
            work, done = self._work_to_do.get()
            try:
                done.set_result(work())
            except BaseException as problem:
                done.set_exception(problem)

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
            self._open(load, slots)
        except torch.OutOfMemoryError as problem:
            self._ready.set_exception(_does_not_fit(problem))
            return
        except BaseException as problem:
            self._ready.set_exception(problem)
            return
        self._ready.set_result(None)
        self._work()

    def _open(self, load: Callable[[], LoadedModel], slots: int | None) -> None:
        model = load()
        opened, beside = None, sum(adapter_bytes(folder) for _, folder in model.beside)
        if model.weights.device.type == "cuda":
            opened, spent = self._open_cuda(model.weights, slots, beside)
            if spent:
                del model  # what is left of it, before it is there twice
                gc.collect()
                torch.cuda.empty_cache()  # a plan is made by what the driver calls free
                model = load()
        if opened is None:
            opened = self._open_scheduler(model.weights, slots, beside)
        self.tokenizer: ModelTokenizer = model.tokenizer
        self._vocabulary = model.weights.shape.vocabulary
        self._scheduler, self._cache = opened
        self.info: ModelInfo = replace(model.info, computed_by=_pass_name(self._scheduler))
        self._model = model
        for name, folder in model.beside:
            self._load_adapter(name, folder)

    def _open_cuda(
        self, weights: LlamaWeights, slots: int | None, adapters: int
    ) -> tuple[tuple[CudaScheduler, KVCache] | None, bool]:
        """The kernels made for cards; None where this model or card is not for them, and the eager pass serves. And whether
        the weights cannot be used any more without them. `adapters`: bytes of those that are still to be read."""
        from qlora_chat.engines.cuda import WeightsConsumed, open_cuda
        from qlora_chat.engines.cuda.runtime.driver import KernelError
        from qlora_chat.engines.cuda.weights.packing import CannotPack

        try:
            return open_cuda(weights, slots, cache_folder(), self._kv_cache_dtype, adapters), False
        except (CannotPack, KernelError, WeightsConsumed) as problem:
            self._notify(f"answering without the fast kernels: {problem}")
            return None, isinstance(problem, WeightsConsumed)

    def _open_scheduler(self, weights: LlamaWeights, slots: int | None, adapters: int) -> tuple[Scheduler, KVCache]:
        """The compiled pass, or torch's: where there is no compiler, and for several adapters on a card."""
        if self._kv_cache_dtype == "int8":
            self._notify("--kv-cache-dtype int8 has no effect: only the fast kernels on a graphics card keep 8 bits")
        costs = PassCosts(EXPECTED_COSTS[weights.device.type])
        if compiled := open_cpu(weights, slots, self._notify):
            return Scheduler(compiled, compiled.cache, costs, compiled.choose), compiled.cache
        cache = KVCache(weights, slots or fitting_slots(weights, beside=adapters))
        return Scheduler(Forward(weights, cache), cache, costs), cache

    def _work(self) -> None:
        preparing = True
        while True:
            with self._changed:
                self._changed.wait_for(self._something_to_do, POLL if preparing else None)
                if self._closing:
                    break
            self._do_work()
            if self._scheduler.idle:
                preparing = self._prepare()
                continue
            preparing = True  # an adapter or a width of steps may have come
            try:
                self._scheduler.step()
            except Exception as problem:
                self._lost = self._lost or _lost_card(self._model.weights.device)
                self._scheduler.fail_all(EngineError(self._lost) if self._lost else problem)
        self._do_work()
        self._scheduler.cancel_all()

    def _prepare(self) -> bool:
        """Make something that answers would have to wait for; whether there may be more. What goes wrong with it is told to
        whoever needs it."""
        try:
            return self._scheduler.warm_up()
        except Exception:
            return False

    def _something_to_do(self) -> bool:
        return self._closing or not self._work_to_do.empty() or not self._scheduler.idle


def _does_not_fit(problem: torch.OutOfMemoryError) -> ModelError:
    found = ModelError(
        "the graphics card ran out of memory while the model was opened; close what else uses it, or try --slots 1, "
        "--precision nf4, --kv-cache-dtype int8 or --device cpu"
    )
    found.__cause__ = problem.with_traceback(None)
    return found


def _lost_card(device: torch.device) -> str | None:
    """What to say where a card computes nothing any more: after some errors CUDA refuses everything until the process ends."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as problem:
        said = str(problem).partition("\n")[0]
        return f"the graphics card has stopped ({said}); start qlora-chat again, and if it stays so, the computer"
    return None


def _pass_name(scheduler: Scheduler | CudaScheduler) -> str:
    """What rounds alike: the compiled pass on processors of one kind, torch's, the kernels for cards."""
    if not isinstance(scheduler, Scheduler):
        return "kernels"
    compiled = isinstance(scheduler._forward, CpuForward)
    return f"{COMPILED} for {torch.backends.cpu.get_cpu_capability()}" if compiled else "torch"
