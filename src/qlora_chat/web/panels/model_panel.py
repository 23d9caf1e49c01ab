"""The Model panel: everything on the page that says which model answers, and the events that check and switch it.

Scope: from the engine's model to the parts that describe it, and from the form to a change of the model. Who may do that is
decided when the page is built. Knows no conversation: it goes on with the new model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.errors import UserError
from qlora_chat.messages import Conversation, Message
from qlora_chat.models import ModelInfo
from qlora_chat.serving.model_changes import ModelChanges
from qlora_chat.serving.shared_engine import SharedEngine
from qlora_chat.settings import ModelSettings, hub_cache_folder, hub_is_offline
from qlora_chat.web import render
from qlora_chat.web.adapter_chooser import AdapterChooser
from qlora_chat.web.panels.model import Measured, model_card
from qlora_chat.web.panels.switch_form import SwitchForm, base_and_adapter, findings, progress, settings_of, values_of
from qlora_chat.web.panels.welcome import welcome_card
from qlora_chat.web.parts import Parts

QUESTION = Conversation(messages=(Message("user", "What is the capital of France?"),))
POLL_S = 0.1


class ModelPanel:
    """The model's description on the page, and its switch."""

    def __init__(self, chat: Chat, parts: Parts) -> None:
        self._chat, self._parts, self._chooser = chat, parts, AdapterChooser(chat)
        engine = chat.engine
        self.changes = ModelChanges(engine, self._measure_speed) if isinstance(engine, SharedEngine) else None
        self._measure_speed()

    def connect(self, options: dict[str, Any], queued: dict[str, Any]) -> None:
        """Attach the events; `options` are those of every event that is not queued."""
        parts, form = self._parts, self._parts.switch_form
        parts.open_model.click(self.card, None, [parts.model], **options)
        if form:
            form.check.click(self.check, form.inputs, [form.report], **queued)
            form.switch.click(self.switch, form.inputs, [*self.changed, form.report], **queued)

    @property
    def outputs(self) -> list[Any]:
        """Parts that describe the model."""
        parts = self._parts
        return [
            parts.open_model,
            parts.banner,
            parts.welcome,
            parts.model,
            *(parts.switch_form.inputs if parts.switch_form else ()),
        ]

    @property
    def changed(self) -> list[Any]:
        """Parts that a switch changes, besides the report of it."""
        return [*self.outputs, self._parts.adapter, self._parts.status]

    @property
    def settings(self) -> ModelSettings:
        """Settings of the model that is loaded."""
        switchable = ModelChanges.switchable(self._chat.engine)
        return switchable.settings if switchable else ModelSettings()

    def described(self) -> dict[Any, Any]:
        """The parts of a page that opens, or whose model has changed."""
        info, measured, parts = self._chat.engine.info, Measured.of(self._chat.engine), self._parts
        form = parts.switch_form
        return {
            parts.open_model: gr.update(value=info.name),
            parts.banner: render.banner(info, self._chat.prompt_format.notices),
            parts.welcome: welcome_card(info, measured),
            parts.model: model_card(info, measured),
            **(dict(zip(form.inputs, values_of(self.settings), strict=True)) if form else {}),
        }

    def card(self) -> dict[Any, Any]:
        """The panel, with what was measured since."""
        return {self._parts.model: model_card(self._chat.engine.info, Measured.of(self._chat.engine))}

    async def check(self, base: Any, adapter: Any, precision: Any) -> dict[Any, Any]:
        """Examine base and adapter before anything is loaded, as `qlora-chat doctor` does."""
        report = self._form.report
        try:
            settings = settings_of(self.settings, base, adapter, precision)
            found = await asyncio.to_thread(_examined, settings, self._chat.engine.info)
        except (UserError, OSError) as problem:
            return {report: render.problem(str(problem))}
        return {report: findings(found)}

    async def switch(self, base: Any, adapter: Any, precision: Any) -> AsyncIterator[dict[Any, Any]]:
        """Switch to the model that the form names."""
        try:
            settings = settings_of(self.settings, base, adapter, precision)
        except UserError as problem:
            yield {self._form.report: render.problem(str(problem))}
            return
        async for each in self.follow(settings, self._form.report):
            yield each

    async def follow(self, settings: ModelSettings, report: gr.HTML) -> AsyncIterator[dict[Any, Any]]:
        """Switch the model, and show in `report` how that goes, then how fast the new one is."""
        async for each in self.switched(settings, lambda html: {report: html}):
            yield each
        while self.changes and self.changes.is_measuring:
            await asyncio.sleep(POLL_S)
        measured = Measured.of(self._chat.engine)
        status = render.status(self._chat.engine.info, measured.tokens_per_s, measured.ttft_ms)
        yield {**self.card(), self._parts.status: status}

    async def switched(self, settings: ModelSettings, show: Callable[[str], dict[Any, Any]]) -> AsyncIterator[dict[Any, Any]]:
        """Switch the model; `show` makes an update of the HTML that says how that goes. It goes on where the page is closed
        meanwhile."""
        assert self.changes
        try:
            change = self.changes.start(settings)
        except UserError as problem:
            yield show(render.problem(str(problem)))
            return
        shown = ""
        while change.state == "running":
            if (now := progress(change)) != shown:
                shown = now
                yield show(now)
            await asyncio.sleep(POLL_S)
        status, chooser = render.status(self._chat.engine.info), self._chooser.update()
        yield {**self.described(), **show(progress(change)), self._parts.adapter: chooser, self._parts.status: status}

    @property
    def _form(self) -> SwitchForm:
        form = self._parts.switch_form
        assert form
        return form

    def _measure_speed(self) -> None:
        """Time a short answer in the background, so that a first visitor sees a figure."""
        engine = self._chat.engine
        if isinstance(engine, SharedEngine):
            with suppress(ValueError):  # a window that is too small for a question
                engine.speed.measure(engine.inner, self._chat.prompt_for(QUESTION, max_new_tokens=1))


def _examined(settings: ModelSettings, loaded: ModelInfo) -> tuple[Any, ...]:
    """Findings about a model, on this machine as it is without the one that is loaded."""
    from qlora_chat.doctor.examine import examine
    from qlora_chat.models.hub import Hub
    from qlora_chat.models.placement import detect_devices, without

    devices = without(loaded, detect_devices(settings.device))
    return examine(*base_and_adapter(settings), Hub(hub_cache_folder(), hub_is_offline()), devices).findings
