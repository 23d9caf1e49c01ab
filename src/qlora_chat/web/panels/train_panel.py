"""The Train panel: a file is checked, trained on in a process of its own, watched, and its adapter answers at last.

Scope: from the form's events to the `train` command and its runs, and to a switch of the model. Who has the panel is decided
when the page is built.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from qlora_chat.errors import UserError
from qlora_chat.settings import ModelSettings, SettingsError
from qlora_chat.web import render
from qlora_chat.web.panels.model_panel import ModelPanel
from qlora_chat.web.panels.switch_form import base_and_adapter
from qlora_chat.web.panels.train_form import TrainForm, arguments_of
from qlora_chat.web.panels.train_view import check_view, record_view, run_view
from qlora_chat.web.panels.training_runs import RunView, TrainingRuns
from qlora_chat.web.panels.upload import UploadedFiles

BEFORE = "before"
"""Name of the adapter that answered before, beside the new one."""
CHECKING = '<p role="status" class="working">The records are being read.</p>'
CHECK_S = 600.0
OPEN_COMPARE = '() => document.querySelector("#train-problem [role=alert]") || document.getElementById("open-compare").click()'
"""Opens the compare view, unless the adapter could not be loaded."""


class TrainPanel:
    """Handlers of the panel's events, one each."""

    def __init__(self, form: TrainForm, model: ModelPanel, runs: TrainingRuns, files: UploadedFiles) -> None:
        self._form, self._model, self._runs, self._files = form, model, runs, files
        self._records: Sequence[Mapping[str, Any]] = ()
        """Of the newest check."""

    def connect(self, page: gr.Blocks, options: dict[str, Any], queued: dict[str, Any]) -> None:
        """Attach the events; `options` are those of every event that is not queued."""
        form = self._form
        watched = [form.view, form.timer]
        form.check.click(self.check, form.inputs, [form.checked, form.number, form.record], **queued)
        form.number.input(self.show_record, [form.number], [form.record], **{**options, "trigger_mode": "always_last"})
        form.start.click(self.start, [*form.inputs, form.sample, form.name], [form.problem, form.run, *watched], **options)
        form.stop.click(self.stop, None, [form.problem], **options)
        form.resume.click(self.resume, [form.run], [form.problem, *watched], **options)
        form.run.change(self.watch, [form.run], watched, **options)
        form.timer.tick(self.watch, [form.run], watched, **options)
        loaded = [form.problem, *self._model.changed]
        form.load.click(self.load, [form.run], loaded, **queued)
        form.compare.click(self.load, [form.run], loaded, **queued).success(None, js=OPEN_COMPARE)
        page.load(self.opened, None, [form.run, *watched], **options)

    def opened(self) -> dict[Any, Any]:
        """A page was opened: it shows the run that is running, else the newest."""
        names = self._runs.names()
        shown = self._runs.running or (names[0] if names else None)
        return {self._form.run: gr.update(choices=names, value=shown), **self.watch(shown)}

    async def check(self, *values: Any) -> AsyncIterator[dict[Any, Any]]:
        """Run `train --check` over the form's data, and show its records one by one."""
        form = self._form
        yield {form.checked: CHECKING, form.number: gr.update(visible=False), form.record: ""}
        try:
            arguments = [*arguments_of(*values), "--data", str(values[1]).strip(), "--check", "--json"]
            found = await _command(arguments)
            self._records = found["records"]
        except (UserError, OSError) as problem:
            yield {form.checked: render.problem(str(problem))}
            return
        count = len(self._records)
        slider = gr.update(visible=count > 1, maximum=max(2, count), value=1)
        yield {form.checked: check_view(found), form.number: slider, form.record: record_view(self._records, 1)}

    def show_record(self, number: Any) -> dict[Any, Any]:
        """Show another record of the newest check."""
        return {self._form.record: record_view(self._records, int(number or 1))}

    def start(self, *values: Any) -> dict[Any, Any]:
        """Begin a run."""
        *chosen, sample, name = values
        form, name, data = self._form, str(name or "").strip(), chosen[1]
        try:
            arguments = arguments_of(*chosen)
            if question := str(sample or "").strip():
                arguments.append(f"--sample={question}")
            uploaded = self._files.find(str(data).strip())
            if uploaded is None:
                arguments += ["--data", str(data).strip()]
            self._runs.start(name, arguments, uploaded)
        except UserError as problem:
            return {form.problem: render.problem(str(problem))}
        return {form.problem: "", form.run: gr.update(choices=self._runs.names(), value=name), **self.watch(name)}

    def stop(self) -> dict[Any, Any]:
        """End the running run, saved."""
        if self._runs.running is None:
            return {self._form.problem: render.notice("No run is running.")}
        self._runs.stop()
        return {self._form.problem: render.notice("It ends after this step, saved.")}

    def resume(self, name: Any) -> dict[Any, Any]:
        """Continue a run."""
        try:
            self._runs.resume(str(name or ""))
        except UserError as problem:
            return {self._form.problem: render.problem(str(problem))}
        return {self._form.problem: "", **self.watch(name)}

    def watch(self, name: Any) -> dict[Any, Any]:
        """The run as it is now; the timer goes on while it runs."""
        view = self._runs.view(str(name or ""))
        is_running = view is not None and view.state == "running"
        return {self._form.view: run_view(view) if view else "", self._form.timer: gr.Timer(active=is_running)}

    async def load(self, name: Any) -> AsyncIterator[dict[Any, Any]]:
        """Switch to the run's base with its adapter, unmerged, beside the one that answered before."""
        form = self._form
        view = self._runs.view(str(name or ""))
        if view is None or view.state != "finished":
            yield {form.problem: render.problem("Only a finished run can answer.")}
            return
        if (view.name, str(view.adapter)) in self._model.settings.adapters:
            yield {form.problem: render.notice(f"{view.name} is loaded.")}
            return
        try:
            settings = with_both(self._model.settings, view)
        except SettingsError as problem:
            yield {form.problem: render.problem(str(problem))}
            return
        async for each in self._model.follow(settings, form.problem):
            yield each


def with_both(current: ModelSettings, run: RunView) -> ModelSettings:
    """Settings of a run's base with the run's adapter and, if the base is the same, the one that answered before.

    The run's comes first: it answers unless another is chosen, and its record says on which form of the base.
    """
    adapters = [(run.name, str(run.adapter))]
    named = [each for each in current.adapters if each[0] != run.name]
    if run.base == (current.base or current.model):
        _, own_adapter = base_and_adapter(current)
        adapters += [(BEFORE, own_adapter)] if own_adapter and not named else named
    return replace(
        current, model="auto", base=run.base, adapter=None, adapters=tuple(adapters), adapter_mode="auto", precision="auto",
        base_form="auto", prompt_format=None,
    )  # fmt: skip


async def _command(arguments: Sequence[str]) -> Any:
    """The JSON that `qlora-chat train ARGUMENTS` prints. SettingsError with its last words where it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "qlora_chat", "train", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(CHECK_S):
            output, problems = await process.communicate()
    except TimeoutError:
        raise SettingsError(f"The check took more than {CHECK_S:.0f} s, and was ended.") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        lines = problems.decode("utf-8", "replace").strip().split("\n")
        raise SettingsError("\n".join(lines[-6:]).removeprefix("qlora-chat: "))
    return json.loads(output)
