"""What a first visitor learns of the model."""

from dataclasses import replace

import pytest

from qlora_chat.web.panels.model import MADE, Measured
from qlora_chat.web.panels.welcome import describe_model, example_questions
from tests.fakes import SCRIPTED_INFO


def test_the_model_s_parts_and_its_making_are_named() -> None:
    info = replace(SCRIPTED_INFO, precision="nf4", notices=("Quantizing again costs 0.01 nats a token.",))
    described = describe_model(info, Measured())
    assert dict(described["facts"])["Adapter"] == "scripted-adapter"
    assert described["made"] == [MADE["nf4"], "Quantizing again costs 0.01 nats a token."]
    assert "Speed" in dict(described["facts"])


@pytest.mark.parametrize("name", ["Llama-Lumi-45M (demo)", "HuggingFaceTB/SmolLM2-135M-Instruct", "guanaco-7b", "anything"])
def test_there_are_four_questions_that_suit_a_model(name: str) -> None:
    questions = example_questions(replace(SCRIPTED_INFO, name=name, base="b", adapter=None))
    assert len({*questions}) == 4
    generic = example_questions(replace(SCRIPTED_INFO, name="x", base="x", adapter=None))
    assert (questions == generic) == (name == "anything")
