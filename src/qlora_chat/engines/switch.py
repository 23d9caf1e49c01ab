"""One engine for all callers, whose model can be replaced while the program runs.

Scope: owns the engine of this process; opens and closes engines in an order that fits memory, and returns to the old model
where the new one cannot be opened. Knows no callers: whoever switches sees to it that no answer is being written.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qlora_chat.engines import EngineError, Stream
from qlora_chat.engines.local import LocalEngine
from qlora_chat.messages import AnswerSchema
from qlora_chat.models import ModelError, ModelInfo, Notify
from qlora_chat.prompt import ChatFormat, Prompt
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops


@dataclass(frozen=True)
class OpenedModel:
    """An engine, its model's prompt format, and the settings that name the model."""

    settings: ModelSettings
    engine: LocalEngine
    prompt_format: ChatFormat


Opener = Callable[[ModelSettings, Notify], OpenedModel]
FitsBeside = Callable[[ModelSettings, ModelInfo, Notify], bool]
"""True if a model gets the device and form beside a loaded one that it would get without it."""


class ModelSwitch:
    """The engine of whatever model is loaded; see the LocalModel and AdapterHost protocols.

    It is without a model only while one is loaded in the place of another, and where neither could be opened.
    """

    def __init__(self, settings: ModelSettings, opener: Opener, fits_beside: FitsBeside, notify: Notify) -> None:
        """Open the first model; raises whatever `opener` raises."""
        self._opener, self._fits_beside = opener, fits_beside
        self._switching = threading.Lock()
        opened = opener(settings, notify)
        self._engine: LocalEngine | None = opened.engine
        self._missing = ""
        """Reason why there is no engine."""
        self._keep(opened)
        self.prompt_format = cast(ChatFormat, SwitchedFormat(self))

    def switch(self, settings: ModelSettings, notify: Notify) -> None:
        """Load another model: beside the old one where memory allows, else in its place.

        ModelError or another UserError where it cannot be opened; the old model answers again then, or if that cannot be
        opened either, none does, and the message says so.
        """
        if not self._switching.acquire(blocking=False):
            raise ModelError("the model is being switched already; wait for the end of that")
        try:
            if self._engine is None or not self._fits_beside(settings, self.info, notify):
                notify("There is no room for two models: the old one is unloaded first.")
                self._switch_in_place(settings, notify)
            else:
                notify("There is room for both models: the old one goes when the new one is loaded.")
                old, opened = self._engine, self._opener(settings, notify)
                self._engine = opened.engine
                self._keep(opened)
                old.close()
                del old
            _free_memory()
        finally:
            self._switching.release()

    def _switch_in_place(self, settings: ModelSettings, notify: Notify) -> None:
        self._unload("The model is being switched.")
        try:
            opened = self._opener(settings, notify)
        except Exception as problem:
            self._return_to_old(problem, notify)
            raise
        self._engine = opened.engine
        self._keep(opened)

    def _return_to_old(self, problem: Exception, notify: Notify) -> None:
        notify("It could not be opened; the old model is loaded again.")
        try:
            self._engine = self._opener(self.settings, notify).engine
        except Exception as also:
            self._missing = f"No model is loaded: {problem}; and the old one could not be opened again: {also}"
            raise ModelError(self._missing) from problem

    def _unload(self, reason: str) -> None:
        engine, self._engine, self._missing = self._engine, None, reason
        if engine:
            engine.close()
        del engine
        _free_memory()

    def _keep(self, opened: OpenedModel) -> None:
        """Set what stays known of the model that is loaded, or was the last one."""
        self.settings, self.current_format = opened.settings, opened.prompt_format
        self._info, self.tokenizer = opened.engine.info, opened.engine.tokenizer

    def _loaded(self) -> LocalEngine:
        engine = self._engine
        if engine is None:
            raise EngineError(self._missing)
        return engine

    # --- the engine ------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """The model that is loaded, or was the last one."""
        engine = self._engine
        return engine.info if engine else self._info

    @property
    def slots(self) -> int:
        """Chats that can share a forward pass."""
        return self._engine.slots if self._engine else 1

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in the cache."""
        return self._engine.token_bytes if self._engine else 0

    def memory_in_use(self) -> int:
        """Bytes on the card, or of this process; see LocalModel."""
        return self._engine.memory_in_use() if self._engine else 0

    def stream(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None, schema: AnswerSchema | None = None,
        changes: Mapping[int, Sampling] | None = None,
    ) -> Stream:  # fmt: skip
        """Start an answer; see LocalModel. EngineError while no model is loaded."""
        return self._loaded().stream(prompt, sampling, stops, adapter, schema, changes)

    def check_schema(self, schema: AnswerSchema) -> None:
        """SchemaError if answers cannot be held to it. EngineError while no model is loaded."""
        self._loaded().check_schema(schema)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an unmerged adapter; see AdapterHost."""
        self._loaded().load_adapter(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Accept no more requests for an adapter; see AdapterHost."""
        self._loaded().unload_adapter(name)

    def close(self) -> None:
        """Cancel running answers, and end the engine's thread; waits for the end of a switch."""
        with self._switching:
            if self._engine:
                self._engine.close()


class SwitchedFormat:
    """The prompt format of the model that is loaded; see ChatFormat."""

    def __init__(self, switch: ModelSwitch) -> None:
        self._switch = switch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._switch.current_format, name)


def _free_memory() -> None:
    """Return what a closed engine held; engines are part of cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
