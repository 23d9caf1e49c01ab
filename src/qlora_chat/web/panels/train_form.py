"""The Train panel's components, and the arguments of `qlora-chat train` that their values mean.

Scope: components and arguments. Knows no process and no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from qlora_chat.settings import ModelSettings, SettingsError

RECIPES = ("demo", "smollm2", "guanaco-7b")
"""Bases for which there is a recipe of the same name."""
TEXT, SAMPLE = 500, 300
"""Characters of names and paths, and of a question."""
DEFAULT_SAMPLE = "What is the capital of France?"


class TrainForm:
    """Components by name, laid out in whatever column is open."""

    def __init__(self, settings: ModelSettings, upload: gr.HTML, runs: Sequence[str], folder: str) -> None:
        """`upload` is where a file is dropped; `folder` is where runs are written."""
        base = settings.base or (settings.model if settings.model in RECIPES else "smollm2")
        bases = list(dict.fromkeys((base, "smollm2", "demo")))
        self.base = gr.Dropdown(bases, value=base, label="Base", elem_id="train-base", allow_custom_value=True)
        self.upload = upload
        self.data = gr.Textbox(
            label="Dialogues", elem_id="train-data", info="a file or folder of this machine, or a Hub id", max_lines=1
        )
        with gr.Row():
            self.epochs = gr.Number(1, label="Epochs", elem_id="train-epochs", minimum=0.001)
            self.batch = gr.Number(8, label="Dialogues a step", elem_id="train-batch", minimum=1, precision=0)
            self.longest = gr.Number(512, label="Tokens a dialogue", elem_id="train-longest", minimum=8, precision=0)
        self.sample = gr.Textbox(DEFAULT_SAMPLE, label="Question to watch", elem_id="train-sample", max_lines=2)
        self.skip_bad = gr.Checkbox(False, label="Leave out records that cannot be used", elem_id="train-skip-bad")
        self.check = gr.Button("Check the data", elem_id="train-check", size="sm")
        self.checked = gr.HTML(elem_id="train-checked", padding=False)
        self.number = gr.Slider(1, 2, value=1, step=1, label="Record", elem_id="train-number", visible=False)
        self.record = gr.HTML(elem_id="train-record", padding=False)
        self.name = gr.Textbox(
            "my-adapter", label="Name", elem_id="train-name", max_lines=1, info=f"the run is written to {folder}"
        )
        with gr.Row():
            self.start = gr.Button("Start", elem_id="train-start", size="sm", variant="primary")
            self.stop = gr.Button("Stop", elem_id="train-stop", size="sm", variant="stop")
        self.problem = gr.HTML(elem_id="train-problem", padding=False)
        self.run = gr.Dropdown(
            list(runs), value=runs[0] if runs else None, label="Run", elem_id="train-run", allow_custom_value=True
        )
        self.view = gr.HTML(elem_id="train-view", padding=False)
        with gr.Row():
            self.resume = gr.Button("Resume", elem_id="train-resume", size="sm")
            self.load = gr.Button("Answer with it", elem_id="train-load", size="sm")
            self.compare = gr.Button("Compare it", elem_id="train-compare", size="sm")
        self.timer = gr.Timer(1.0, active=False)

    @property
    def inputs(self) -> list[Any]:
        """Components whose values say what to train."""
        return [self.base, self.data, self.epochs, self.batch, self.longest, self.skip_bad]


def arguments_of(base: Any, data: Any, epochs: Any, batch: Any, longest: Any, skip_bad: Any) -> list[str]:
    """Arguments of `train` for the form's values, without --out and --data. SettingsError for one that is empty."""
    base, data = str(base or "").strip(), str(data or "").strip()
    if not base:
        raise SettingsError("Base is empty; choose one, or write a folder or a Hub id.")
    if not data:
        raise SettingsError("There are no dialogues yet; drop a file, or write the path of one.")
    if base.startswith("-") or data.startswith("-"):
        raise SettingsError("A path cannot begin with a dash here; write ./ before it.")
    recipe = ["--recipe", base] if base in RECIPES else []
    numbers = ["--epochs", f"{_number('Epochs', epochs):g}", "--batch", str(int(_number("Dialogues a step", batch)))]
    numbers += ["--max-length", str(int(_number("Tokens a dialogue", longest)))]
    bad = ["--skip-bad"] if skip_bad is True else []
    return [*recipe, "--base", "huggyllama/llama-7b" if base == "guanaco-7b" else base, *numbers, *bad]


def _number(label: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise SettingsError(f"{label} must be a number above 0.")
    return float(value)
