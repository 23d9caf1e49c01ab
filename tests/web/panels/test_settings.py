"""The page's settings: what is described to the browser can be sent back, and nothing else can."""

import json

import pytest

from qlora_chat.settings import PRESETS, SAMPLING_SETTINGS, Preset, Sampling, SettingsError
from qlora_chat.web.panels.settings import LONGEST, ChosenSettings, describe_settings, parse_settings


def test_every_control_says_when_to_move_it_and_begins_with_a_value_that_can_be_used() -> None:
    described = describe_settings(window=512)
    names = [each["name"] for each in described["controls"]]
    assert set(names) == {name for name, each in SAMPLING_SETTINGS.items() if each.label}, (
        "each setting that has a name for people"
    )
    assert all(each["advice"].endswith(".") for each in described["controls"])
    initial = {each["name"]: each["initial"] for each in described["controls"]}
    assert initial["max_new_tokens"] == 512, "no answer is longer than the window"
    assert parse_settings(json.dumps(initial)) == ChosenSettings(Sampling(max_new_tokens=512))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda each: each.name)
def test_a_preset_can_be_used_as_it_is(preset: Preset) -> None:
    assert parse_settings(json.dumps(dict(preset.values))).sampling == Sampling().changed(**preset.values)


def test_the_original_s_preset_is_the_original_s() -> None:
    original = next(each for each in PRESETS if each.name == "original")
    assert dict(original.values) == {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def test_seeds_beyond_a_browser_s_numbers_come_as_text() -> None:
    assert parse_settings('{"seed": "9223372036854775807"}').sampling.seed == 2**63 - 1
    assert parse_settings('{"seed": null}').sampling.seed is None


def test_stop_texts_come_along() -> None:
    assert parse_settings('{"stop_texts": ["END", "\\n\\n"]}').stop_texts == ("END", "\n\n")
    assert parse_settings("").stop_texts == ()


@pytest.mark.parametrize(
    "sent",
    ["no JSON", "[]", "[" * 100_000, '{"temperature": 9}', '{"temperature": null}', '{"warmth": 1}', '{"seed": "x"}',
     '{"stop_texts": "END"}', '{"stop_texts": [1]}', '{"stop_texts": [""]}', json.dumps({"stop_texts": ["x"] * 17}),
     json.dumps({"stop_texts": ["x" * 257]}), '{"seed": "1e5"}', '{"top_k": 1.5}', '{"temperature": NaN}', 5],
)  # fmt: skip
def test_what_no_page_sends_is_refused(sent: object) -> None:
    with pytest.raises(SettingsError):
        parse_settings(sent)


def test_the_longest_settings_can_be_sent() -> None:
    assert len(json.dumps({"stop_texts": ["x" * 256] * 16})) < LONGEST
