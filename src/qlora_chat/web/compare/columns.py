"""The columns of a comparison as the form sends them: a model and settings for each.

Scope: JSON to options of answers. Knows no Gradio and no session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_chat.chat import AnswerOptions
from qlora_chat.comparison import FEWEST, MOST, contenders
from qlora_chat.models import ModelInfo
from qlora_chat.settings import PRESETS, SLIDERS, Sampling, SettingsError
from qlora_chat.web.panels.settings import number_of

LONGEST = 4_000
"""Characters of all columns as JSON."""
MODEL, PRESET = "model", "preset"
"""Names of the form's lists; its number fields have the names of their settings."""


def parse_columns(text: Any, common: AnswerOptions, info: ModelInfo) -> list[AnswerOptions]:
    """Options of each column, which begin with the page's own. SettingsError says what is wrong with which column."""
    try:
        columns = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise SettingsError("the columns are no JSON; reload the page") from None
    if not isinstance(columns, list) or not all(isinstance(each, dict) for each in columns):
        raise SettingsError("the columns are no list of objects; reload the page")
    if not FEWEST <= len(columns) <= MOST:
        raise SettingsError(f"There are {len(columns)} columns, but {FEWEST} to {MOST} can be compared.")
    options = [_options(each, common, info) for each in columns]
    for index, each in enumerate(options):
        if each in options[:index]:
            first, second = letter(options.index(each)), letter(index)
            raise SettingsError(f"{first} and {second} are the same: give one of them another model or other settings.")
    return options


def letter(index: int) -> str:
    """Name of a column: A, B, C or D."""
    return "ABCD"[index]


def _options(column: Mapping[str, Any], common: AnswerOptions, info: ModelInfo) -> AnswerOptions:
    known = [each.name for each in contenders(info)]
    model = column.get(MODEL)
    if model not in known:
        raise SettingsError("That model is not loaded any more: open Compare again to see what is.")
    sampling = _sampling(column, common.sampling)
    return replace(common, adapter=model if len(known) > 1 else None, sampling=sampling)


def _sampling(column: Mapping[str, Any], sampling: Sampling) -> Sampling:
    preset = next((each for each in PRESETS if each.name == column.get(PRESET)), None)
    own = {name: number_of(name, column[name]) for name in SLIDERS if column.get(name)}
    return sampling.changed(**{**(preset.values if preset else {}), **own})
