"""The page: its parts, connected to the handlers of their events.

Scope: Gradio Blocks. Knows no engine and no HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from qlora_chat.chat import Chat
from qlora_chat.web.answering import Answering
from qlora_chat.web.chats.events import ChatEvents
from qlora_chat.web.compare.handlers import CompareHandlers
from qlora_chat.web.event_filter import Event, Field
from qlora_chat.web.gradio_overrides import StreamedBlocks
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.message_list.actions import MessageActions
from qlora_chat.web.message_list.feedback import FeedbackHandlers
from qlora_chat.web.panels.context import ContextHandlers
from qlora_chat.web.panels.model_panel import ModelPanel
from qlora_chat.web.panels.tokens import TokenHandlers
from qlora_chat.web.panels.train_panel import TrainPanel
from qlora_chat.web.panels.upload import TrainingWork
from qlora_chat.web.parts import EVENT_DATA, MAX_CHARACTERS, Parts, js_call
from qlora_chat.web.sessions import PageFeatures, Sessions

CSS = Path(__file__).with_name("static") / "page.css"
MAX_CONCURRENT_ANSWERS = 256
"""Answers that Gradio streams at once; the engine decides how many of them share a step."""
QUEUE_TICK_SECONDS = 0.005

# Values come as they were sent: Sampling refuses bad ones by name, where Gradio's sliders raise a bare TypeError.
QUEUED: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
IMMEDIATE: dict[str, Any] = {**QUEUED, "queue": False}


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


def build_page(chat: Chat, sessions: Sessions, features: PageFeatures, work: TrainingWork | None = None) -> gr.Blocks:
    """The whole page as Blocks, ready to be mounted; with `work`, it has a Train panel."""
    with StreamedBlocks(title="QLoRA Chat", analytics_enabled=False, fill_height=True) as page:
        parts = Parts(chat, features, work)
        answering = Answering(chat, parts)
        model = ModelPanel(chat, parts)
        handlers = Handlers(chat, sessions, parts, features, answering, model)
        tokens = TokenHandlers(chat, handlers, answering, parts)
        _connect(page, parts, handlers, MessageActions(handlers, answering, parts), tokens, model)
        FeedbackHandlers(handlers, parts).connect(IMMEDIATE)
        ChatEvents(chat, handlers, parts).connect(IMMEDIATE)
        ContextHandlers(chat, handlers, parts).connect(IMMEDIATE)
        queued = {**QUEUED, "concurrency_limit": None}
        model.connect(IMMEDIATE, queued)
        CompareHandlers(chat, handlers, parts, model).connect(IMMEDIATE, queued)
        if work and parts.train_form:
            TrainPanel(parts.train_form, model, work.runs, work.uploads).connect(page, IMMEDIATE, queued)
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
        triggers = [(str(getattr(page.blocks.get(part or 0), "elem_id", None)), str(name)) for part, name in event.targets]
        if event.fn is not None and "unload" not in {name for _, name in event.targets}:
            data = next((EVENT_DATA[each] for each in triggers if each in EVENT_DATA), None)
            events[index] = Event(tuple(_field(each) for each in event.inputs), data)
    return events


def _field(part: Any) -> Field:
    """The values of one part. KeyError where MAX_CHARACTERS has no limit for a part that holds text."""
    label = str(part.label or part.elem_id)
    if isinstance(part, gr.Checkbox):
        return Field(label, "switch")
    if isinstance(part, gr.Number | gr.Slider):
        return Field(label, "number")
    return Field(label, "text", MAX_CHARACTERS[part.elem_id])


def _connect(
    page: gr.Blocks, parts: Parts, handlers: Handlers, actions: MessageActions, tokens: TokenHandlers, model: ModelPanel
) -> None:
    queued, immediate = {**QUEUED, "concurrency_limit": None}, IMMEDIATE
    answered = [parts.messages, parts.box, parts.notice, parts.status, parts.conversation]
    outputs = [*answered, parts.adapter, parts.system, parts.logged]
    options = [parts.adapter, parts.system, parts.logged, parts.sampling]
    in_order, settle = [parts.conversation, *options], js_call("settle", module="messages")

    page.load(handlers.load, [parts.memory], [*outputs, *model.outputs], js=js_call("recall"), **immediate)
    sent = gr.on(
        [parts.send.click, parts.box.submit],
        handlers.send,
        [parts.box, *in_order],
        answered,
        js=js_call("ask", module="messages"),
        trigger_mode="multiple",  # Gradio would drop an Enter that comes before the end of the last answer's event
        **queued,
    )
    edited = parts.messages.edit(actions.edit, in_order, answered, **queued)
    retried = parts.messages.retry(actions.retry, in_order, answered, **queued)
    continued = parts.messages.play(actions.go_on, in_order, answered, **queued)
    branched = parts.tokens.select(tokens.branch, in_order, answered, **queued)
    for each in (sent, edited, retried, continued, branched):
        each.then(handlers.end_answer, [parts.box, parts.conversation], answered, js=settle, **immediate)
    parts.messages.select(actions.select, [parts.conversation], answered, **immediate)
    parts.tokens.input(tokens.examine, [parts.conversation], [parts.tokens], **queued)
    parts.stop.click(handlers.stop, **immediate)
    # In the queue, so that it reaches the page in order, after the last piece of the answer that it ends.
    left = parts.new.click(handlers.clear, None, answered, js=js_call("leave", module="messages"), **queued)
    left.then(None, [parts.conversation], js=js_call("arrived", module="messages"))
    parts.sampling.input(handlers.sample, [parts.sampling], [parts.notice], trigger_mode="always_last", **immediate)
    parts.conversation.change(None, [parts.conversation], js=js_call("rememberConversation"))
    remembered = [parts.adapter, parts.system, parts.logged]
    gr.on([each.change for each in remembered], None, remembered, js=js_call("rememberTab"))
    page.unload(handlers.leave)
