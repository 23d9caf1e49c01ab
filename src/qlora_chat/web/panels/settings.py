"""The sampling settings that the page sends: the texts of the fields of settings_form.py.

Scope: JSON to settings. Knows no Gradio, no session and no engine.
"""

from __future__ import annotations

from typing import Any

from qlora_chat.chat import AnswerOptions
from qlora_chat.settings import SAMPLING_SETTINGS, Sampling, SettingsError, check_stop_texts
from qlora_chat.text import json_object
from qlora_chat.web.panels.settings_form import STOPS

LONGEST = 12_000
"""Characters of all settings as JSON: stop texts may be any characters, which JSON writes with up to six."""


def parse_settings(text: Any) -> AnswerOptions:
    """Sampling and stop texts as static/settings.js sends them; the defaults for a page that has sent none. SettingsError."""
    if not text:
        return AnswerOptions(Sampling())
    values = json_object(text)
    if values is None:
        raise SettingsError("the settings are no JSON object; reload the page")
    stops = values.pop(STOPS, "")
    if not isinstance(stops, str):
        raise SettingsError("stop_texts is no text; reload the page")
    sampling = Sampling().changed(**{name: number_of(name, value) for name, value in values.items()})
    texts = [each.replace("\\n", "\n") for each in stops.split("\n") if each]  # a backslash and an n stand for a line break
    return AnswerOptions(sampling, stop_texts=check_stop_texts(texts))


def number_of(name: str, value: Any) -> Any:
    """The number that a field's text stands for, None for an empty one; what is no number is left for Sampling to refuse.

    A seed must never be a float, which cannot hold every seed.
    """
    if not isinstance(value, str):
        return value
    if not value:
        return None
    if value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if name not in SAMPLING_SETTINGS or SAMPLING_SETTINGS[name].whole:
        return value
    try:
        return float(value)
    except ValueError:
        return value
