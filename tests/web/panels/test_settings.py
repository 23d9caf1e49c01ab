"""The page's settings: what the panel begins with and offers can be used, and nothing else can."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from qlora_chat.chat import AnswerOptions
from qlora_chat.settings import PRESETS, SAMPLING_SETTINGS, Preset, Sampling, SettingsError
from qlora_chat.web.panels.settings import LONGEST, parse_settings
from qlora_chat.web.panels.settings_form import STOP_LINES, as_text, settings_form

HOSTILE = [float("nan"), float("inf"), -float("inf"), -1, 1e309, 2**63, True, "1e999", "x", None, [], {}, 3.5]
"""What no sampling setting can be."""


class Form(HTMLParser):
    """Fields of the panel by their id, and its buttons."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.fields: dict[str, dict[str, str]] = {}
        self.buttons: list[dict[str, str]] = []
        self.feed(settings_form(window))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "button":
            self.buttons.append(values)
        elif "data-pattern" in values:
            self.fields[values["id"]] = values

    def takes(self, name: str, text: str) -> bool:
        """Whether a text has the form that the field asks for."""
        return bool(re.fullmatch(self.fields[name]["data-pattern"], text))


def test_the_panel_has_every_setting_that_has_a_name_and_begins_with_values_that_can_be_used() -> None:
    form = Form(window=512)
    named = {name for name, each in SAMPLING_SETTINGS.items() if each.label}
    assert form.fields.keys() == named | {"stop_texts"}
    initial = {name: each.get("value", "") for name, each in form.fields.items()}
    assert initial["max_new_tokens"] == form.fields["max_new_tokens"]["data-maximum"] == "512", "no answer outgrows the window"
    assert all(form.takes(name, value) for name, value in initial.items())
    assert parse_settings(json.dumps(initial)) == AnswerOptions(Sampling(max_new_tokens=512))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda each: each.name)
def test_a_preset_can_be_used_as_it_is(preset: Preset) -> None:
    button = next(each for each in Form(512).buttons if each["data-purpose"] == preset.purpose)
    assert parse_settings(button["data-values"]).sampling == Sampling().changed(**preset.values)


def test_the_original_s_preset_is_the_original_s() -> None:
    original = next(each for each in PRESETS if each.name == "original")
    assert dict(original.values) == {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("temperature", ["0.7", "0,25", " 1 ", ".5", "2."], ["", "much", "1e999", "-1", "1.2.3", "0x1"]),
     ("top_k", ["0", "40"], ["", "1.5", "-1"]),
     ("seed", ["", "9223372036854775807"], ["x", "1" * 20, "1e5", "-1"])],
)  # fmt: skip
def test_a_field_says_which_texts_stand_for_a_number(name: str, good: list[str], bad: list[str]) -> None:
    form = Form(512)
    assert [each for each in good if not form.takes(name, each)] == []
    assert [each for each in bad if form.takes(name, each)] == []


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"])
def test_a_hostile_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match="but must be"):
        parse_settings(json.dumps({name: value}))


@pytest.mark.parametrize("text", ["", "END\n\\n\\n", "x\n" * 16, "\n" + "x" * 256 + "\n\n", "\\n" * 256])
def test_stop_texts_that_the_panel_takes_can_be_used(text: str) -> None:
    assert re.fullmatch(STOP_LINES, text)
    parse_settings(json.dumps({"stop_texts": text}))


@pytest.mark.parametrize("text", ["x\n" * 17, "x" * 257, "\\n" * 257])
def test_stop_texts_that_the_panel_refuses_cannot_be_used(text: str) -> None:
    assert not re.fullmatch(STOP_LINES, text)
    with pytest.raises(SettingsError):
        parse_settings(json.dumps({"stop_texts": text}))


def test_values_are_written_as_a_browser_writes_them() -> None:
    assert [as_text(each) for each in (1.0, 0.05, 131_072)] == ["1", "0.05", "131072"]


def test_seeds_beyond_a_browser_s_numbers_come_as_text() -> None:
    assert parse_settings('{"seed": "9223372036854775807"}').sampling.seed == 2**63 - 1
    assert parse_settings('{"seed": ""}').sampling.seed is None


def test_stop_texts_come_along() -> None:
    assert parse_settings('{"stop_texts": "END\\n\\n\\\\n\\\\n"}').stop_texts == ("END", "\n\n")
    assert parse_settings("").stop_texts == ()


@pytest.mark.parametrize(
    "sent",
    ["no JSON", "[]", "[" * 100_000, '{"temperature": 9}', '{"temperature": null}', '{"warmth": 1}', '{"seed": "x"}',
     '{"stop_texts": ["END"]}', '{"stop_texts": 1}', '{"temperature": ""}', '{"temperature": "hot"}', '{"temperature": "nan"}',
     '{"temperature": "9"}', '{"seed": "9223372036854775808"}', '{"seed": "1e5"}', '{"seed": "1.0"}', '{"top_k": 1.5}',
     '{"top_k": "1.5"}', '{"temperature": NaN}', 5],
)  # fmt: skip
def test_what_no_page_sends_is_refused(sent: object) -> None:
    with pytest.raises(SettingsError):
        parse_settings(sent)


def test_the_longest_settings_can_be_sent() -> None:
    assert len(json.dumps({"stop_texts": "\n".join(["x" * 256] * 16)})) < LONGEST
