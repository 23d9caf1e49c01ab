"""What a first visitor learns of the model."""

from dataclasses import replace

import pytest

from qlora_chat.web.panels.model import MADE, Measured
from qlora_chat.web.panels.welcome import example_questions, welcome_card
from tests.fakes import SCRIPTED_INFO


def test_the_model_s_parts_and_its_making_are_named() -> None:
    info = replace(SCRIPTED_INFO, name="<b>", precision="nf4", notices=("Quantizing again costs 0.01 nats a token.",))
    html = welcome_card(info, Measured())
    assert '<h2 class="own" dir="auto">&lt;b&gt;</h2>' in html
    assert '<dt>Adapter</dt><dd dir="auto">scripted-adapter</dd>' in html
    assert f"<p>{MADE['nf4']}</p><p>Quantizing again costs 0.01 nats a token.</p>" in html
    assert "<dt>Speed</dt>" in html
    assert html.count("<button>") == 4


@pytest.mark.parametrize("name", ["Llama-Lumi-45M (demo)", "HuggingFaceTB/SmolLM2-135M-Instruct", "guanaco-7b", "anything"])
def test_there_are_four_questions_that_suit_a_model(name: str) -> None:
    questions = example_questions(replace(SCRIPTED_INFO, name=name, base="b", adapter=None))
    assert len({*questions}) == 4
    generic = example_questions(replace(SCRIPTED_INFO, name="x", base="x", adapter=None))
    assert (questions == generic) == (name == "anything")
