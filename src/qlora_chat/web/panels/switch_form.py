"""The form that names another model, and what it means.

Scope: components, from their values to ModelSettings, and words for what doctor and a switch report. Knows no session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Any, get_args

import gradio as gr

from qlora_chat.models import ModelInfo
from qlora_chat.models.locate import parts_of
from qlora_chat.serving.model_changes import ModelChange
from qlora_chat.settings import ModelSettings, Precision, SettingsError
from qlora_chat.web import render

OWN, NONE, EXACT = "The one that belongs to it", "None", "exact"
NAMED = ("smollm2", "demo", "guanaco-7b")
"""Models that come with an adapter of their own."""
SIGNS = {"blocker": "✗", "warning": "!", "fine": "✓"}
FORBIDDEN = "Whoever runs this page can switch the model."
LONGEST = 500


class SwitchForm:
    """Components by name, laid out in whatever column is open."""

    def __init__(self, settings: ModelSettings) -> None:
        base, adapter, precision = values_of(settings)
        self.base = _choice("Base", "switch-base", (*NAMED, base), base, "smollm2, demo, a folder, a .gguf file or a Hub id")
        self.adapter = _choice("Adapter", "switch-adapter", (OWN, NONE, adapter), adapter, "a folder or a Hub id of a LoRA")
        precisions = (*get_args(Precision), EXACT)
        self.precision = _choice("Precision", "switch-precision", precisions, precision, "exact: NF4, the adapter unmerged")
        with gr.Row():
            self.check = gr.Button("Check", elem_id="switch-check", size="sm")
            self.switch = gr.Button("Switch", elem_id="switch-start", size="sm", variant="primary")
        self.report = gr.HTML(elem_id="switch-report", padding=False)

    @property
    def inputs(self) -> list[Any]:
        """Components whose values name a model."""
        return [self.base, self.adapter, self.precision]


def values_of(settings: ModelSettings) -> tuple[str, str, str]:
    """The form's values for a model."""
    base = settings.base or settings.model
    named = ", ".join(name for name, _ in settings.adapters)
    adapter = settings.adapter or named or (NONE if settings.base else OWN)
    return base, adapter, EXACT if settings.adapter_mode == "exact" else settings.precision


def settings_of(current: ModelSettings, base: Any, adapter: Any, precision: Any) -> ModelSettings:
    """Settings of the model that the form's values name; what it does not ask (device, slots) stays. SettingsError."""
    base, adapter = str(base or "").strip(), str(adapter or "").strip()
    if not base:
        raise SettingsError("Base is empty; choose one, or write a folder or a Hub id.")
    exact = precision == EXACT
    common = replace(
        current, model="auto", base=None, adapter=None, adapters=(), adapter_mode="exact" if exact else "auto",
        precision="auto" if exact else precision or "auto", base_form="auto", prompt_format=None,
    )  # fmt: skip
    if (base, adapter, precision) == values_of(current):
        return current
    if adapter in ("", OWN):
        if base not in (*NAMED, "auto"):
            raise SettingsError(f"{base} has no adapter of its own here; choose an adapter, or {NONE}.")
        return replace(common, model=base)
    named = "huggyllama/llama-7b" if base == "guanaco-7b" else base
    return replace(common, base=named, adapter=None if adapter == NONE else adapter)


def base_and_adapter(settings: ModelSettings) -> tuple[str, str | None]:
    """Base and adapter of a model, as a folder, file or Hub id each; None without an adapter."""
    named = settings.base or settings.model
    own_base, own_adapter = parts_of(named) or (named, None)
    return own_base, settings.adapter or (None if settings.base else own_adapter)


def settings_apart(settings: ModelSettings, info: ModelInfo) -> ModelSettings | None:
    """Settings of the same base with the same adapter beside it; None where there is no adapter, or it is apart already."""
    if info.adapter is None or info.adapters:
        return None
    base, adapter = settings.base, settings.adapter
    if base is None:
        named = next((each for each in NAMED if each in info.name), None)
        base, adapter = (named and parts_of(named)) or (None, None)
    if base is None or adapter is None:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", info.adapter).strip("-._")[:64] or "adapter"
    return replace(settings, base=base, adapter=None, adapters=((name, adapter),), adapter_mode="auto", precision="auto")


def findings(found: Iterable[Any]) -> str:
    """HTML of what doctor found: sign, finding, and what to do."""
    return f'<ul class="findings">{"".join(_finding(each) for each in found)}</ul>'


def progress(change: ModelChange) -> str:
    """HTML of a switch: what has happened, and how it ended."""
    shown = render.steps(change.lines)
    if change.state == "running":
        return f'<p role="status" class="working">The model is being switched.</p>{shown}'
    if change.state == "failed":
        return f'{shown}<p role="alert" class="form-problem">{escape(change.problem)}</p>'
    return f'{shown}<p role="status">Done in {change.seconds or 0:.1f} s. The conversation goes on with this model.</p>'


def _finding(finding: Any) -> str:
    advice = f"<span>{escape(finding.why)}; {escape(finding.mend)}</span>" if finding.level != "fine" else ""
    return f'<li data-level="{finding.level}"><b>{SIGNS[finding.level]}</b> {escape(finding.what)}{advice}</li>'


def _choice(label: str, elem_id: str, choices: Sequence[str], value: str, info: str) -> gr.Dropdown:
    known = list(dict.fromkeys(choices))
    return gr.Dropdown(known, value=value, label=label, elem_id=elem_id, info=info, allow_custom_value=True)
