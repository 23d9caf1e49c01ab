"""The in-process engine: one model, one thread, any number of chats.

Scope: owns the thread, the hand-over between it and the callers, and the choice of the backend. A step is the scheduler's
work, the arithmetic that of the backend (cuda, cpu, eager).
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import psutil
import torch

from qlora_chat.engines import AnsweredBy, EngineError, Stream, check_prompt
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.grammar import GrammarCompiler
from qlora_chat.engines.core.kv_cache import KVCache, fitting_slots, slot_bytes
from qlora_chat.engines.core.lora_registry import LoraRegistry
from qlora_chat.engines.core.prompt_lookup import EXPECTED_COSTS, PassCosts
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import Scheduler, SpanScheduler
from qlora_chat.engines.cpu import open_cpu
from qlora_chat.engines.eager.multi_lora import MultiLoraForward
from qlora_chat.messages import AnswerSchema
from qlora_chat.models import LoadedModel, ModelError, ModelInfo, Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.llama import LlamaWeights
from qlora_chat.prompt import Prompt
from qlora_chat.settings import KVCacheDtype, Sampling, cache_folder
from qlora_chat.stopping import Stops

T = TypeVar("T")
Backend = tuple[Scheduler, KVCache]
WARM_UP_INTERVAL_S = 0.02
"""Seconds between two warm-up calls: a request waits for at most one of them."""


class LocalEngine:
    """Generates for all callers in one batch; see the LocalModel and AdapterHost protocols.

    Loading happens on the engine's thread as well. Every thread that computes gets its own OpenMP team, and with more
    team members than cores libgomp stops spinning between operations: a token then takes 1.4 times as long.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        slots: int | None = None,
        notify: Notify = lambda line: None,
        kv_cache_dtype: KVCacheDtype = "auto",
    ) -> None:
        """Load the model and wait for it; raises whatever `load` raises. `slots`: None for as many as fit."""
        self._changed = threading.Condition()
        self._closing = False
        self._card_error: str | None = None
        """Message once the card computes nothing any more."""
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        """For the engine's thread to run between two steps."""
        opened: Future[None] = Future()
        opening = partial(self._open, load, slots, notify, kv_cache_dtype)
        self._thread = threading.Thread(target=self._run, args=(opening, opened), name="qlora-chat-engine", daemon=True)
        self._thread.start()
        opened.result()

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
        """Bytes of one token's keys and values in the cache."""
        return slot_bytes(self._model.weights, self._cache.dtype) // self.info.window

    def memory_in_use(self) -> int:
        """Bytes on the card, or of this process; see LocalModel."""
        if self._model.weights.device.type == "cuda":
            return torch.cuda.memory_reserved(self._model.weights.device)
        return int(psutil.Process().memory_info().rss)

    def forward(self, spans: Sequence[Span]) -> torch.Tensor:
        """Logits of one pass, computed on the engine's thread, for checks; only while nothing is generated."""
        return self._on_thread(lambda: self._scheduler.compute_logits(spans))

    def stream(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None, schema: AnswerSchema | None = None,
        changes: Mapping[int, Sampling] | None = None,
    ) -> Stream:  # fmt: skip
        """Start an answer; it joins the batch at the next step. See LocalModel; errors as Engine.stream."""
        lora, answered_by = self._lora(adapter)
        check_prompt(prompt.ids, self.info.window, self._vocabulary)
        grammar = self._grammars.begin(schema, stops.token_ids) if schema else None
        request = Request(
            prompt.ids, sampling, stops, self.info.window, self.tokenizer, changes, lora, answered_by, grammar
        )  # fmt: skip
        with self._changed:
            if self._closing:
                raise EngineError("the engine is closed")
            if self._card_error:
                raise EngineError(self._card_error)
            self._scheduler.submit(request)
            self._changed.notify()
        return request

    def check_schema(self, schema: AnswerSchema) -> None:
        """SchemaError if answers cannot be held to it. Prepares it for the answers that follow."""
        self._grammars.check(schema)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an unmerged adapter; see AdapterHost. Running answers pause while it is read."""
        self._on_thread(lambda: self._change_adapters(self._adapters.load, name, AdapterFolder.read(folder)))

    def unload_adapter(self, name: str) -> None:
        """Accept no more requests for an adapter; see AdapterHost."""
        self._on_thread(lambda: self._change_adapters(self._adapters.unload, name))

    def close(self) -> None:
        """Cancel running answers and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _lora(self, name: str | None) -> tuple[object, AnsweredBy]:
        """(adapter as slots name it, its name); None and its own adapter's name for the model as it was opened."""
        if name in (None, self.info.adapter):
            return None, AnsweredBy(self.info.adapter)
        lora = self._adapters.get(str(name))
        if lora is None:
            loaded = ", ".join(self.info.adapters) or self.info.adapter or "none"
            raise ValueError(f"adapter {name!r} is not loaded; loaded: {loaded}")
        return lora, AnsweredBy(str(name))

    def _change_adapters(self, change: Callable[..., None], *arguments: Any) -> None:
        change(*arguments)
        self.info = replace(self.info, adapters=self._adapters.names)

    def _on_thread(self, call: Callable[[], T]) -> T:
        """Run a call between two steps on the engine's thread; raises whatever it raises."""
        done: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise EngineError("the engine is closed")
            self._calls.put((call, done))
            self._changed.notify()
        return done.result()

    # --- on the engine's thread ------------------------------------------------------------------------------------------

    def _run(self, opening: Callable[[], None], opened: Future[None]) -> None:
        try:
            opening()
        except BaseException as problem:
            opened.set_exception(_does_not_fit(problem) if isinstance(problem, torch.OutOfMemoryError) else problem)
            return
        opened.set_result(None)
        self._serve()

    def _open(self, load: Callable[[], LoadedModel], slots: int | None, notify: Notify, kv_cache_dtype: KVCacheDtype) -> None:
        model = load()
        backend, reserve = None, sum(folder.bytes for _, folder in model.unmerged_adapters)
        if model.weights.device.type == "cuda":
            backend, consumed = _open_cuda(model.weights, slots, notify, kv_cache_dtype, reserve)
            if consumed:
                del model  # frees the rest of it, so that it is not in memory twice
                gc.collect()
                torch.cuda.empty_cache()  # placement counts the memory that the driver calls free
                model = load()
        if backend is None:
            if kv_cache_dtype == "int8":
                notify("--kv-cache-dtype int8 has no effect: only the fast kernels on a graphics card store 8 bits")
            backend = _open_span_scheduler(model.weights, slots, notify, reserve)
        self.tokenizer: ModelTokenizer = model.tokenizer
        self._grammars = GrammarCompiler(self.tokenizer, model.weights.shape.vocabulary)
        self._vocabulary = model.weights.shape.vocabulary
        self._scheduler, self._cache = backend
        self.info: ModelInfo = replace(model.info, computed_by=self._scheduler.adapters.backend_name)
        self._model = model
        self._adapters = LoraRegistry(model, self._cache, self._scheduler.adapters)
        for name, folder in model.unmerged_adapters:
            self._change_adapters(self._adapters.load, name, folder)

    def _serve(self) -> None:
        warming_up = True
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, WARM_UP_INTERVAL_S if warming_up else None)
                if self._closing:
                    break
            self._run_calls()
            if self._scheduler.idle:
                warming_up = self._warm_up()
                continue
            warming_up = True  # there may be a new adapter or a new width of steps
            try:
                self._scheduler.step()
            except Exception as problem:
                self._card_error = self._card_error or _card_error(self._model.weights.device)
                self._scheduler.fail_all(EngineError(self._card_error) if self._card_error else problem)
        self._run_calls()
        self._scheduler.cancel_all()

    def _has_work(self) -> bool:
        return self._closing or not self._calls.empty() or not self._scheduler.idle

    def _run_calls(self) -> None:
        while not self._calls.empty():
            call, done = self._calls.get()
            try:
                done.set_result(call())
            except BaseException as problem:
                done.set_exception(problem)

    def _warm_up(self) -> bool:
        """Returns whether there may be more to prepare. Errors are left to the step that needs what could not be prepared."""
        try:
            return self._scheduler.warm_up()
        except Exception:
            return False


def _open_cuda(
    weights: LlamaWeights, slots: int | None, notify: Notify, kv_cache_dtype: KVCacheDtype, adapter_bytes: int
) -> tuple[Backend | None, bool]:
    """The CUDA kernels, or None where they do not support this model or card; and whether the weights were consumed by the
    attempt. `adapter_bytes`: of the adapters that are still to be loaded."""
    from qlora_chat.engines.cuda import WeightsConsumed, open_cuda
    from qlora_chat.engines.cuda.runtime.driver import KernelError
    from qlora_chat.engines.cuda.weights.packing import CannotPack

    try:
        return open_cuda(weights, slots, cache_folder(), kv_cache_dtype, adapter_bytes), False
    except (CannotPack, KernelError, WeightsConsumed) as problem:
        notify(f"answering without the fast kernels: {problem}")
        return None, isinstance(problem, WeightsConsumed)


def _open_span_scheduler(weights: LlamaWeights, slots: int | None, notify: Notify, reserve: int) -> Backend:
    """The compiled CPU pass, or the eager one on a card and where there is no compiler."""
    costs = PassCosts(EXPECTED_COSTS[weights.device.type])
    if compiled := open_cpu(weights, slots, notify):
        return SpanScheduler(compiled, compiled.cache, costs, compiled.sample), compiled.cache
    cache = KVCache(weights, slots or fitting_slots(weights, reserve=reserve))
    return SpanScheduler(MultiLoraForward(weights, cache), cache, costs), cache


def _does_not_fit(problem: torch.OutOfMemoryError) -> ModelError:
    error = ModelError(
        "the graphics card ran out of memory while the model was opened; close what else uses it, or try --slots 1, "
        "--precision nf4, --kv-cache-dtype int8 or --device cpu"
    )
    error.__cause__ = problem.with_traceback(None)
    return error


def _card_error(device: torch.device) -> str | None:
    """Message where a card computes nothing any more: after some errors CUDA refuses all work until the process ends."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as problem:
        reason = str(problem).partition("\n")[0]
        return f"the graphics card has stopped ({reason}); start qlora-chat again, and if that does not help, the computer"
    return None
