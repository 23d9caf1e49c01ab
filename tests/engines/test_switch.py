"""Switching the model of a running engine, with small models: what answers afterwards, and what a failure leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_chat.engines import AdapterHost, EngineError, LocalModel
from qlora_chat.engines.local import LocalEngine
from qlora_chat.engines.switch import ModelSwitch, OpenedModel
from qlora_chat.models import LoadedModel, ModelError, ModelInfo, Notify
from qlora_chat.models.load import fits_beside
from qlora_chat.models.placement import DeviceMemory
from qlora_chat.prompt import DEFAULT_FORMAT, FORMATS, Prompt
from qlora_chat.serving.model_changes import SwitchableEngine
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops
from tests.engines.conftest import small_model

DEMO, BASE = ModelSettings(model="demo"), ModelSettings(base="demo")
SHORT = Sampling(temperature=0.0, max_new_tokens=8)


class ToyModels:
    """Opens one small model for DEMO and another for BASE, as often as it is told to."""

    def __init__(self, small: LoadedModel) -> None:
        self._models = {DEMO: small, BASE: small_model(2)}
        self.refusals: list[Exception] = []
        """Raised one by one instead of opening a model."""
        self.opened: list[LocalEngine] = []
        self.open_at_once = 0
        """Most engines that were open at the same time."""

    def __call__(self, settings: ModelSettings, notify: Notify) -> OpenedModel:
        if self.refusals:
            raise self.refusals.pop(0)
        engine = LocalEngine(lambda: self._models[settings], slots=2)
        self.opened.append(engine)
        self.open_at_once = max(self.open_at_once, sum(each._thread.is_alive() for each in self.opened))
        return OpenedModel(settings, engine, DEFAULT_FORMAT if settings == DEMO else FORMATS["guanaco-card"])


@pytest.fixture
def toys(small_fp32: LoadedModel) -> ToyModels:
    return ToyModels(small_fp32)


@pytest.fixture
def notices() -> list[str]:
    """Lines for the user."""
    return []


def switch_of(toys: ToyModels, *, has_room: bool) -> ModelSwitch:
    return ModelSwitch(DEMO, toys, lambda settings, loaded, notify: has_room, lambda line: None)


def text_of(engine: ModelSwitch, prompt: Prompt) -> str:
    return "".join(piece.text for piece in engine.stream(prompt, SHORT, Stops()))


@pytest.mark.parametrize("has_room", [True, False], ids=["beside the old one", "in its place"])
def test_another_model_answers_and_the_old_one_is_gone(
    has_room: bool, toys: ToyModels, prompt_for: Callable[..., Prompt], notices: list[str]
) -> None:
    switch = switch_of(toys, has_room=has_room)
    prompt = prompt_for("What is the capital of France?")
    before, prompt_format = text_of(switch, prompt), switch.prompt_format
    switch.switch(BASE, notices.append)
    assert text_of(switch, prompt) != before
    assert (switch.info.name, switch.settings) == ("small 2", BASE)
    assert (prompt_format.name, prompt_format.stop_texts) == ("guanaco-card", FORMATS["guanaco-card"].stop_texts)
    assert [each._thread.is_alive() for each in toys.opened] == [False, True]
    assert toys.open_at_once == (2 if has_room else 1)
    assert ("room for both" in notices[0]) == has_room
    switch.switch(DEMO, notices.append)
    assert text_of(switch, prompt) == before
    switch.close()
    with pytest.raises(EngineError, match="closed"):
        text_of(switch, prompt)


@pytest.mark.parametrize("has_room", [True, False], ids=["beside the old one", "in its place"])
def test_the_old_model_answers_where_the_new_one_cannot_be_opened(
    has_room: bool, toys: ToyModels, prompt_for: Callable[..., Prompt], notices: list[str]
) -> None:
    switch = switch_of(toys, has_room=has_room)
    before = text_of(switch, prompt_for("Hello"))
    toys.refusals = [ModelError("it is damaged")]
    with pytest.raises(ModelError, match="it is damaged"):
        switch.switch(BASE, notices.append)
    assert (text_of(switch, prompt_for("Hello")), switch.settings) == (before, DEMO)
    switch.close()


def test_without_any_model_questions_are_refused_with_the_reason_and_the_next_switch_helps(
    toys: ToyModels, prompt_for: Callable[..., Prompt], notices: list[str]
) -> None:
    switch = switch_of(toys, has_room=False)
    toys.refusals = [ModelError("it is damaged"), ModelError("the disk is gone")]
    with pytest.raises(ModelError, match=r"it is damaged; and the old one .* the disk is gone"):
        switch.switch(BASE, notices.append)
    with pytest.raises(EngineError, match="No model is loaded: it is damaged"):
        text_of(switch, prompt_for("Hello"))
    assert switch.info.name == "small 1", "the page still has something to show"
    switch.switch(DEMO, notices.append)
    assert text_of(switch, prompt_for("Hello"))
    switch.close()


def test_it_has_every_protocol_of_the_engine_inside(toys: ToyModels) -> None:
    switch = switch_of(toys, has_room=True)
    for protocol in (AdapterHost, LocalModel, SwitchableEngine):
        assert isinstance(switch, protocol)
    assert switch.slots == 2
    switch.close()


def test_there_is_room_beside_a_model_if_the_other_gets_the_same_place_as_without_it(
    demo_fp32: LoadedModel, monkeypatch: pytest.MonkeyPatch, demo_cache: Path
) -> None:
    loaded: ModelInfo = replace(demo_fp32.info, predicted_bytes=2**40)
    assert fits_beside(DEMO, loaded, lambda line: None)
    monkeypatch.setattr("qlora_chat.models.load.detect_devices", lambda device: (DeviceMemory("cpu", 2**20),))
    assert not fits_beside(DEMO, loaded, lambda line: None)
    with pytest.raises(ModelError, match="does not fit"):
        fits_beside(DEMO, replace(loaded, predicted_bytes=0), lambda line: None)
