"""What the form of a comparison sends becomes options of answers, or a sentence on what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qlora_chat.chat import AnswerOptions
from qlora_chat.settings import Sampling, SettingsError
from qlora_chat.web.compare.columns import parse_columns
from tests.fakes import SCRIPTED_INFO

SEVERAL = replace(SCRIPTED_INFO, adapter=None, adapters=("guanaco", "pirate"))
PAGE = AnswerOptions(Sampling(temperature=0.5, seed=3), logged=False)


def parsed(*columns: dict[str, Any]) -> list[AnswerOptions]:
    return parse_columns(json.dumps(columns), PAGE, SEVERAL)


def test_a_column_has_the_pages_settings_then_its_presets_then_its_own() -> None:
    first, second = parsed(
        {"model": "scripted", "preset": "", "temperature": ""},
        {"model": "pirate", "preset": "precise", "top_k": "7", "temperature": "1.5"},
    )
    assert first == replace(PAGE, adapter="scripted")
    assert (second.adapter, second.sampling.top_p, second.sampling.top_k, second.sampling.temperature) == (
        "pirate",
        0.9,
        7,
        1.5,
    )
    assert (second.sampling.seed, second.logged) == (3, False)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([{"model": "guanaco"}], "1 columns, but 2 to 4"),
        ([{"model": "guanaco"}] * 5, "5 columns"),
        ([{"model": "guanaco"}, {"model": "gone"}], "not loaded any more"),
        ([{"model": "guanaco"}, {"model": "guanaco", "temperature": "0.5"}], "A and B are the same"),
        ([{"model": "guanaco"}, {"model": "pirate", "top_k": "many"}], "top_k is 'many', but must be a whole number"),
        ([{"model": "guanaco"}, {"model": "pirate", "temperature": "NaN"}], "temperature"),
        ([{"model": ["guanaco"]}, {"model": "pirate"}], "not loaded any more"),
        (["guanaco", "pirate"], "no list of objects"),
    ],
)
def test_what_is_wrong_is_said(columns: list[Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_columns(json.dumps(columns), PAGE, SEVERAL)
