"""A server's model is switched when no answer is being written, and answers go on afterwards."""

from __future__ import annotations

import threading
import time

import pytest

from qlora_chat.engines import EngineError
from qlora_chat.models import ModelError
from qlora_chat.prompt import Prompt
from qlora_chat.serving.admission import Gate
from qlora_chat.serving.metrics import Metrics
from qlora_chat.serving.model_changes import ModelChange, ModelChanges
from qlora_chat.serving.shared_engine import SharedEngine
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops
from tests.fakes import ScriptedEngine, ScriptedSwitch

OTHER = ModelSettings(model="smollm2")


@pytest.fixture
def switch() -> ScriptedSwitch:
    return ScriptedSwitch()


@pytest.fixture
def shared(switch: ScriptedSwitch) -> SharedEngine:
    return SharedEngine(switch, Gate(4, 8), Metrics())


def ended(change: ModelChange) -> ModelChange:
    until = time.monotonic() + 60
    while change.state == "running":
        assert time.monotonic() < until
        time.sleep(0.005)
    return change


def ask(shared: SharedEngine) -> list[str]:
    return [piece.text for piece in shared.stream(Prompt("?", (5,)), Sampling(), Stops())]


def test_running_answers_end_first_and_new_ones_are_refused_meanwhile(switch: ScriptedSwitch, shared: SharedEngine) -> None:
    switch.pauses_after = 2
    answer: list[str] = []
    thread = threading.Thread(target=lambda: answer.extend(ask(shared)))
    thread.start()
    while not switch.streams:
        time.sleep(0.005)
    changes = ModelChanges(shared)
    change = changes.start(OTHER)
    while not change.lines:
        time.sleep(0.005)
    assert switch.info.name == "scripted", "it waits"
    with pytest.raises(EngineError, match="being switched"):
        ask(shared)
    with pytest.raises(EngineError, match="already"):
        changes.start(OTHER)
    switch.go_on.set()
    thread.join(60)
    assert ended(change).state == "done"
    assert "".join(answer) == "This is a scripted answer.", "it was not cut"
    assert (switch.info.name, shared.info.name, shared.gate.slots) == ("smollm2", "smollm2", switch.slots)
    switch.pauses_after = None
    assert ask(shared)


def test_an_answer_without_an_end_prevents_the_switch_in_a_sentence(switch: ScriptedSwitch, shared: SharedEngine) -> None:
    switch.pauses_after = 2
    thread = threading.Thread(target=lambda: ask(shared))
    thread.start()
    while not switch.streams:
        time.sleep(0.005)
    change = ended(ModelChanges(shared, patience_s=0.1).start(OTHER))
    assert (change.state, switch.info.name) == ("failed", "scripted")
    assert "Answers are still being written (1): stop them" in change.problem
    switch.go_on.set()
    thread.join(60)
    assert ask(shared), "new answers are taken again"


def test_after_a_failed_switch_answers_go_on(switch: ScriptedSwitch, shared: SharedEngine) -> None:
    switch.switch_fails = ModelError("there is no such model")
    ends: list[str] = []
    change = ended(ModelChanges(shared, lambda: ends.append("end")).start(OTHER))
    assert (change.state, change.problem, ends) == ("failed", "there is no such model", ["end"])
    switch.switch_fails = RuntimeError("a bug")
    assert "RuntimeError: a bug" in ended(ModelChanges(shared).start(OTHER)).problem
    assert ask(shared)


def test_other_servers_models_are_not_switched_here() -> None:
    shared = SharedEngine(ScriptedEngine(), Gate(4, 8), Metrics())
    assert ModelChanges.switchable(shared) is None
    with pytest.raises(EngineError, match="switched there"):
        ModelChanges(shared).start(OTHER)
