"""The page: its layout, and the events that call the handlers.

Scope: Gradio Blocks. Knows no engine and no HTTP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from qlora_chat.chat import Chat
from qlora_chat.settings import SAMPLING_SETTINGS, SLIDERS
from qlora_chat.web import render
from qlora_chat.web.event_filter import Event, Field
from qlora_chat.web.features import PageFeatures
from qlora_chat.web.feedback import THUMBS, FeedbackHandlers, Panel, lay_out_panel
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.parts import MAX_CHARACTERS, Parts
from qlora_chat.web.sessions import Sessions
from qlora_chat.web.streamed_updates import StreamedBlocks

CSS = Path(__file__).with_name("page.css")
JS = Path(__file__).with_name("page.js")
MAX_CONCURRENT_ANSWERS = 256
"""Answers that Gradio streams at once; the engine decides how many of them share a step."""
QUEUE_TICK_SECONDS = 0.005

# Values come as they were sent: Sampling refuses bad ones by name, where Gradio's sliders raise a bare TypeError.
QUEUED: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
IMMEDIATE: dict[str, Any] = {**QUEUED, "queue": False}

DISCLAIMER = "A language model wrote these answers. They can be wrong, biased or offensive: check what matters."


def theme() -> themes.Base:
    """Calm, and in the fonts that the reader's system has: a web font would be a request to a third party."""
    fonts = [themes.Font(each) for each in ("ui-sans-serif", "system-ui", "sans-serif")]
    mono = [themes.Font(each) for each in ("ui-monospace", "Consolas", "monospace")]
    soft = themes.Soft(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono)
    return soft.set(
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_padding="0",
        block_title_text_weight="500",
    )


def build_page(chat: Chat, sessions: Sessions, features: PageFeatures) -> gr.Blocks:
    """The whole page as Blocks, ready to be mounted."""
    with StreamedBlocks(title="QLoRA Chat", analytics_enabled=False, fill_height=True) as page:
        parts, panel = _lay_out(chat, features)
        handlers = Handlers(chat, sessions, parts, features)
        _connect(page, parts, handlers)
        FeedbackHandlers(handlers, parts, panel).connect(parts.chatbot, IMMEDIATE)
    page.max_threads = MAX_CONCURRENT_ANSWERS
    page.queue(default_concurrency_limit=None, api_open=False)
    # Gradio looks for work every millisecond, which takes the model 2 % of a core more than this; there is no public setting.
    page._queue.sleep_when_free = QUEUE_TICK_SECONDS
    page._queue.progress_update_sleep_when_free = 1.0  # the page shows no progress bars
    return page


def events_of(page: gr.Blocks) -> dict[int, Event]:
    """The events that a browser may send, by Gradio's number, without those that run in the browser alone."""
    events: dict[int, Event] = {}
    for index, event in page.fns.items():
        triggers = {name for _, name in event.targets}
        if event.fn is not None and "unload" not in triggers:
            events[index] = Event(tuple(_field(each) for each in event.inputs), is_thumb="like" in triggers)
    return events


def _field(part: Any) -> Field:
    """The values of one part. KeyError where MAX_CHARACTERS has no limit for a part that holds text."""
    label = str(part.label or part.elem_id)
    if isinstance(part, gr.Slider):
        return Field(label, "number")
    if isinstance(part, gr.Checkbox):
        return Field(label, "switch")
    return Field(label, "text", MAX_CHARACTERS[part.elem_id])


def _lay_out(chat: Chat, features: PageFeatures) -> tuple[Parts, Panel]:
    info = chat.engine.info
    gr.HTML(f"<h1>QLoRA Chat</h1>{render.banner(info)}", elem_id="head", padding=False)
    chatbot = gr.Chatbot(
        elem_id="chat", label="Conversation", show_label=False, height="100%", layout="bubble", buttons=["copy"],
        latex_delimiters=[], allow_tags=False, feedback_options=THUMBS, scale=1, placeholder="Say something to begin.",
    )  # fmt: skip
    notice = gr.HTML(elem_id="notice", padding=False)
    adapter = gr.Dropdown(
        list(info.adapters), label="Answers", elem_id="adapter", filterable=False, visible=bool(info.adapters), scale=0,
    )  # fmt: skip
    panel = lay_out_panel()
    with gr.Row(elem_id="ask", equal_height=True):
        box = gr.Textbox(
            elem_id="box", label="Your message", show_label=False, placeholder="Message (Enter sends)",
            lines=1, max_lines=8, autofocus=True, scale=1, container=False,
        )  # fmt: skip
        send = gr.Button("Send", variant="primary", elem_id="send", scale=0, min_width=88)
        stop = gr.Button("Stop", variant="stop", elem_id="stop", scale=0, min_width=88, interactive=False)
    with gr.Row(elem_id="actions"):
        retry = gr.Button("Retry", size="sm", elem_id="retry", scale=0, min_width=72, interactive=False)
        undo = gr.Button("Undo", size="sm", elem_id="undo", scale=0, min_width=72, interactive=False)
        clear = gr.Button("Clear", size="sm", elem_id="clear", scale=0, min_width=72)
        status = gr.HTML(render.status(info, used=0), elem_id="status", padding=False)
    logged = _logging(features)
    past = _past(features.persistent)
    with gr.Accordion("Advanced options", open=False, elem_id="options"):
        with gr.Row():
            sliders = tuple(_slider(name, info.window) for name in SLIDERS)
        system = gr.Textbox(
            label="System text", elem_id="system", lines=2, max_lines=6,
            info="leads the conversation, from the next message on",
            placeholder=chat.prompt_format.default_system or "none: the model was tuned without one",
        )  # fmt: skip
    gr.HTML(f'<p class="disclaimer">{DISCLAIMER}</p>', elem_id="foot", padding=False)
    conversation = gr.Textbox(elem_id="conversation", visible=False)
    memory = gr.Textbox(elem_id="memory", visible=False)
    parts = Parts(
        chatbot, notice, box, send, stop, retry, undo, clear, sliders, adapter, system, logged, *past, status, panel.box,
        conversation, memory,
    )  # fmt: skip
    return parts, panel


def _past(on: bool) -> tuple[gr.Textbox, gr.Radio, gr.Textbox, gr.Button, gr.Button, gr.Accordion]:
    with gr.Accordion("Past conversations", open=False, elem_id="past", visible=on) as past:
        find = gr.Textbox(
            elem_id="find", label="Search past conversations", show_label=False, placeholder="Search titles and words",
            container=False, lines=1, max_lines=1, max_length=MAX_CHARACTERS["find"],
        )  # fmt: skip
        found = gr.Radio([], label="Past conversations", show_label=False, elem_id="found", container=False)
        with gr.Row(elem_id="past-actions"):
            title = gr.Textbox(
                elem_id="title", label="Title", show_label=False, placeholder="Title of the selected conversation",
                container=False, lines=1, max_lines=1, max_length=MAX_CHARACTERS["title"], scale=1,
            )  # fmt: skip
            rename = gr.Button("Rename", size="sm", elem_id="rename", scale=0, min_width=72)
            delete = gr.Button("Delete", size="sm", variant="stop", elem_id="delete", scale=0, min_width=72)
    return find, found, title, rename, delete, past


def _logging(features: PageFeatures) -> gr.Checkbox:
    what = "saved and logged" if features.persistent else "logged"
    with gr.Row(elem_id="logging", visible=features.logged):
        gr.HTML(f'<p class="notice">Conversations on this page are {what} by whoever runs it.</p>', padding=False)
        return gr.Checkbox(True, label="Log mine, from the next message on", elem_id="logged", container=False)


def _slider(name: str, window: int) -> gr.Slider:
    setting = SAMPLING_SETTINGS[name]
    maximum = min(setting.maximum, window) if name == "max_new_tokens" else setting.maximum
    default = min(setting.default or 0, maximum)
    return gr.Slider(
        setting.minimum, maximum, default, step=setting.step, label=setting.label, info=setting.help, elem_id=name,
        min_width=220,
    )  # fmt: skip


def _connect(page: gr.Blocks, parts: Parts, handlers: Handlers) -> None:
    queued, immediate = QUEUED, IMMEDIATE
    outputs = [
        parts.chatbot, parts.notice, parts.box, parts.send, parts.stop, parts.retry, parts.undo, *parts.sliders,
        parts.adapter, parts.system, parts.logged, parts.status, parts.feedback, parts.conversation,
    ]  # fmt: skip
    options = [parts.conversation, parts.adapter, parts.system, parts.logged, *parts.sliders]

    page.load(handlers.load, [parts.memory], outputs, js=_js("recall"), **immediate)
    sent = gr.on(
        [parts.send.click, parts.box.submit], handlers.send, [parts.box, *options], outputs, concurrency_limit=None, **queued
    )
    retried = parts.retry.click(handlers.retry, options, outputs, concurrency_limit=None, **queued)
    for answered in (sent, retried):
        answered.then(handlers.end_answer, [parts.box, parts.conversation], outputs, **immediate)
    parts.stop.click(handlers.stop, **immediate)
    parts.undo.click(handlers.undo, [parts.box, parts.conversation], outputs, **immediate)
    # In the queue, so that it reaches the page in order, after the last piece of the answer that it ends.
    parts.clear.click(handlers.clear, None, outputs, concurrency_limit=None, **queued)
    gr.on(
        [slider.change for slider in parts.sliders], handlers.sample, [*parts.sliders], [parts.notice],
        js=_js("rememberSampling", SLIDERS), trigger_mode="always_last", **immediate,
    )  # fmt: skip
    _connect_past(parts, handlers, outputs, immediate)
    parts.conversation.change(None, [parts.conversation], js=_js("rememberConversation"))
    remembered = [parts.adapter, parts.system, parts.logged]
    gr.on([each.change for each in remembered], None, remembered, js=_js("rememberTab"))
    page.unload(handlers.leave)


def _connect_past(parts: Parts, handlers: Handlers, outputs: list[Any], immediate: dict[str, Any]) -> None:
    gr.on([parts.past.expand, parts.find.change], handlers.find, [parts.find, parts.found], [parts.found], **immediate)
    parts.found.input(handlers.open_past, [parts.found], [*outputs, parts.title], **immediate)
    renamed = [parts.rename.click, parts.title.submit]
    gr.on(renamed, handlers.rename_past, [parts.found, parts.title, parts.find], [parts.found, parts.notice], **immediate)
    changed = [*outputs, parts.found, parts.title]
    parts.delete.click(handlers.delete_past, [parts.found, parts.find], changed, js=_js("confirmDelete"), **immediate)


def _js(name: str, *arguments: Any) -> str:
    """A call of one of page.js's functions, for Gradio to run in the browser; the event's values follow `arguments`."""
    leading = "".join(f"{json.dumps(each)}, " for each in arguments)
    return f'async (...values) => (await import(new URL("page.js", document.baseURI))).{name}({leading}...values)'
