"""The settings panel as HTML: presets, a control for each setting with a sentence on when to move it, a seed, and stop texts.

Scope: declared settings to HTML. Each field names the texts that can be used, and what to say of others; static/settings.js
checks what is typed, and settings.py reads what it sends.
"""

from __future__ import annotations

import json
from html import escape

from qlora_chat.settings import (
    MAX_STOP_LENGTH,
    MAX_STOP_TEXTS,
    PRESETS,
    SAMPLING_SETTINGS,
    SLIDERS,
    Preset,
    SamplingSetting,
)

STOPS = "stop_texts"
DECIMAL = r"\s*(\d+[.,]?\d*|[.,]\d+)\s*"
WHOLE, WHOLE_OR_NONE = r"\s*\d{1,19}\s*", r"\s*\d{0,19}\s*"
STOP_LINE = rf"(\\n|(?!\\n)[^\n]){{1,{MAX_STOP_LENGTH}}}"
"""A stop text, in which a backslash and an n are one character."""
STOP_LINES = rf"(\n*{STOP_LINE}(\n|$)){{0,{MAX_STOP_TEXTS}}}\n*"


def settings_form(window: int) -> str:
    """The panel, for a model with this window."""
    presets = "".join(map(_preset, PRESETS))
    sliders = "".join(_slider(name, SAMPLING_SETTINGS[name], window) for name in SLIDERS)
    return (
        f'<div class="sampling"><div class="presets" role="group" aria-label="Presets">{presets}</div>'
        f'<p class="advice purpose"></p>{sliders}{_seed()}{_stops()}</div>'
    )


def as_text(value: float) -> str:
    """A setting's value as the browser writes it: 1.0 is "1"."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _preset(preset: Preset) -> str:
    values = json.dumps({name: as_text(value) for name, value in preset.values.items()})
    return (
        f'<button type="button" class="preset" data-values="{escape(values)}" data-purpose="{escape(preset.purpose)}">'
        f"{escape(preset.label)}</button>"
    )


def _slider(name: str, setting: SamplingSetting, window: int) -> str:
    most = min(setting.maximum, window) if name == "max_new_tokens" else setting.maximum
    limits, value = (as_text(setting.minimum), as_text(most)), as_text(min(setting.default or 0, most))
    least, greatest = (f"{int(each):,}" if each == int(each) else f"{each:g}" for each in (setting.minimum, most))
    whole, decimal = f"Enter a whole number from {least} to {greatest}.", f"Enter a number from {least} to {greatest}."
    described = _described(
        name, WHOLE if setting.whole else DECIMAL, whole if setting.whole else decimal, "{value} stays in use.", limits
    )
    label, title = escape(setting.label), escape(setting.help)
    field = (
        f'<input type="text" inputmode="{"numeric" if setting.whole else "decimal"}" autocomplete="off" title="{title}" '
        f'value="{value}" {described}>'
    )
    slider = (
        f'<input type="range" min="{limits[0]}" max="{limits[1]}" step="{setting.step:g}" value="{value}" title="{title}" '
        f'aria-label="{label}, slider">'
    )
    return _setting(name, label, "number", field, setting.advice, slider)


def _seed() -> str:
    setting = SAMPLING_SETTINGS["seed"]
    least, most = str(int(setting.minimum)), str(int(setting.maximum))
    expected, empty = f"Enter a whole number from {least} to {most}, or nothing.", "A seed is drawn for each answer."
    described = _described("seed", WHOLE_OR_NONE, expected, "{value} stays in use.", (least, most), empty)
    field = f'<input type="text" inputmode="numeric" autocomplete="off" placeholder="drawn for each answer" {described}>'
    return _setting("seed", escape(setting.label), "text", field, setting.advice)


def _stops() -> str:
    expected = f"Enter at most {MAX_STOP_TEXTS} texts of at most {MAX_STOP_LENGTH} characters, one on each line."
    described = _described(STOPS, STOP_LINES, expected, "The texts before stay in use.", empty="None stays in use.")
    advice = "One on each line: the answer ends before any of them; \\n stands for a line break."
    field = f'<textarea rows="2" spellcheck="false" placeholder="none" {described}></textarea>'
    return _setting(STOPS, "Stop texts", "text", field, advice)


def _described(
    name: str, pattern: str, expected: str, stays: str, limits: tuple[str, str] | None = None, empty: str = ""
) -> str:
    """Attributes of a field: which texts can be used, within which limits, and what to say when another one is typed."""
    described = " ".join(f"{name}-{each}" for each in ("advice", "problem"))
    attributes = {
        "id": name, "aria-describedby": described, "data-pattern": pattern, "data-expected": expected, "data-stays": stays,
        "data-empty-stays": empty,
    }  # fmt: skip
    if limits:
        attributes |= {"data-minimum": limits[0], "data-maximum": limits[1]}
    return " ".join(f'{key}="{escape(value)}"' for key, value in attributes.items() if value)


def _setting(name: str, label: str, kind: str, field: str, advice: str, below: str = "") -> str:
    return (
        f'<div class="setting"><div class="{kind}"><label for="{name}">{label}</label>{field}</div>{below}'
        f'<p class="advice" id="{name}-advice">{escape(advice)}</p>'
        f'<p class="form-problem own" role="alert" id="{name}-problem"></p></div>'
    )
