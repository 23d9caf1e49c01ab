"""The sampling settings on the page: a description for static/settings.js, and what it sends back.

Scope: settings to JSON and back. Knows no Gradio, no session and no engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qlora_chat.settings import (
    MAX_STOP_LENGTH,
    MAX_STOP_TEXTS,
    PRESETS,
    SAMPLING_SETTINGS,
    SLIDERS,
    Sampling,
    SamplingSetting,
    SettingsError,
    check_stop_texts,
)

STOPS = "stop_texts"
LONGEST = 12_000
"""Characters of all settings as JSON: stop texts may be any characters, which JSON writes with up to six."""


@dataclass(frozen=True)
class ChosenSettings:
    """Settings of the next answer, as a person has chosen them."""

    sampling: Sampling
    stop_texts: tuple[str, ...] = ()


def describe_settings(window: int) -> dict[str, Any]:
    """Controls, presets and limits for static/settings.js."""
    controls = [_control(name, SAMPLING_SETTINGS[name], window) for name in (*SLIDERS, "seed")]
    stops = {
        "name": STOPS, "label": "Stop texts", "most": MAX_STOP_TEXTS, "longest": MAX_STOP_LENGTH,
        "advice": "One on each line: the answer ends before any of them; \\n stands for a line break.",
    }  # fmt: skip
    presets = [{"label": each.label, "purpose": each.purpose, "values": dict(each.values)} for each in PRESETS]
    return {"controls": controls, "presets": presets, "stops": stops}


def parse_settings(text: Any) -> ChosenSettings:
    """Settings as static/settings.js sends them; the defaults for a page that has sent none. SettingsError."""
    if not text:
        return ChosenSettings(Sampling())
    try:
        values = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        raise SettingsError("the settings are no JSON; reload the page") from None
    if not isinstance(values, dict):
        raise SettingsError("the settings are no JSON object; reload the page")
    stops = values.pop(STOPS, None) or []
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise SettingsError("stop_texts is no list of texts; reload the page")
    return ChosenSettings(Sampling().changed(**{**values, "seed": _seed(values.get("seed"))}), check_stop_texts(stops))


def _seed(value: Any) -> Any:
    """A seed as a number: browsers send it as text, since their numbers cannot hold every seed."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20 else value


def _control(name: str, setting: SamplingSetting, window: int) -> dict[str, Any]:
    maximum = min(setting.maximum, window) if name == "max_new_tokens" else setting.maximum
    initial = setting.default if setting.default is None else min(setting.default, maximum)
    return {
        "name": name, "label": setting.label, "help": setting.help, "advice": setting.advice, "minimum": setting.minimum,
        "maximum": maximum if setting.step else str(int(maximum)), "step": setting.step, "whole": setting.whole,
        "initial": initial,
    }  # fmt: skip
