"""The parts of the page, laid out from top to bottom; events read and set them by name.

Scope: Gradio components and their order. Knows no events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.serving.model_changes import ModelChanges
from qlora_chat.settings import ModelSettings
from qlora_chat.text import shown_path
from qlora_chat.web import render
from qlora_chat.web.chats.saving import offer
from qlora_chat.web.compare.columns import LONGEST as LONGEST_COLUMNS
from qlora_chat.web.event_filter import Field
from qlora_chat.web.panels.model import Measured, model_card
from qlora_chat.web.panels.settings import LONGEST
from qlora_chat.web.panels.settings_form import settings_form
from qlora_chat.web.panels.switch_form import FORBIDDEN, SwitchForm
from qlora_chat.web.panels.switch_form import LONGEST as LONGEST_NAME
from qlora_chat.web.panels.train_form import TrainForm
from qlora_chat.web.panels.upload import TrainingWork
from qlora_chat.web.panels.welcome import welcome_card
from qlora_chat.web.sessions import PageFeatures

MAX_CHARACTERS: Mapping[str, int] = {
    "box": 200_000,
    "system": 20_000,
    "adapter": 200,
    "conversation": 200,
    "memory": 130_000,
    "sampling": LONGEST,
    **dict.fromkeys(("switch-base", "switch-adapter", "switch-precision"), LONGEST_NAME),
    **dict.fromkeys(("train-base", "train-data", "train-sample", "train-name", "train-run"), LONGEST_NAME),
}
"""Limit of the text that a browser may send, for each part with text, by elem_id.

`memory` contains the system text as JSON, in which a character takes up to six.
"""
_TURN = Field("Message", "text", 100)
EVENT_DATA: Mapping[tuple[str, str], Mapping[str, Field]] = {
    ("chat-list", "select"): {"id": Field("Conversation", "text", 100)},
    ("messages", "edit"): {"id": _TURN, "text": Field("Your message", "text", 200_000)},
    ("messages", "retry"): {"id": _TURN},
    ("messages", "play"): {"id": _TURN},
    ("messages", "select"): {"id": _TURN},
    ("messages", "like"): {"id": _TURN, "rating": Field("Rating", "number")},
    ("messages", "submit"): {
        "id": _TURN,
        "rating": Field("Rating", "number"),
        "comment": Field("Comment", "text", 10_000),
        "edited": Field("The answer as it should have been", "text", 200_000),
    },
    ("tokens", "input"): {"id": _TURN},
    ("tokens", "select"): {"id": _TURN, "at": Field("Place", "number"), "token": Field("Token", "number")},
    ("sampling", "input"): {},
    ("compare", "input"): {"id": Field("Comparison", "text", 100)},
    ("compare", "submit"): {
        "question": Field("Question", "text", 200_000),
        "columns": Field("Columns", "text", LONGEST_COLUMNS),
        "blind": Field("Blind", "switch"),
    },
    ("compare", "stop"): {},
    ("compare", "clear"): {},
    ("compare", "like"): {"choice": Field("Vote", "text", 10)},
    ("compare", "select"): {"choice": Field("Answer", "text", 10)},
    ("context", "input"): {},
    ("context", "select"): {"id": _TURN, "pinned": Field("Pinned", "switch")},
}
"""The values that a component of our own may send with an event: by elem_id and event, then by key."""

DISCLAIMER = "A language model wrote these answers. They can be wrong, biased or offensive: check what matters."
LOGGED = "Conversations on this page are logged by whoever runs it."
LOGGED_AND_SAVED = "Conversations on this page are saved and logged by whoever runs it."
LOG_OUT = '<form method="post" action="logout"><button>Log out</button></form>'


def component(module: str, elem_id: str, value: Any = None, *, translates: bool = True, **described: Any) -> gr.HTML:
    """A component of our own: an empty element that `mount` of static/MODULE.js fills, with what `described` says of it. Text
    never goes into its template. The module `translates` what it shows; static/language.js translates the rest of the page."""
    mount = f"import(new URL('page/static/{module}.js', document.baseURI)).then(m => m.mount(element, trigger, props, watch))"
    return gr.HTML(
        value,
        html_template="<div></div>",
        js_on_load=mount,
        elem_id=elem_id,
        elem_classes="own" if translates else None,
        apply_default_css=False,
        **described,
    )


def js_call(name: str, module: str = "memory") -> str:
    """A call of a function of static/MODULE.js, for Gradio to run in the browser with the event's values."""
    return f'async (...values) => (await import(new URL("page/static/{module}.js", document.baseURI))).{name}(...values)'


class Parts:
    """Every component that an event reads or sets, in columns: conversations, the chat, settings, the model."""

    def __init__(self, chat: Chat, features: PageFeatures, work: TrainingWork | None = None) -> None:
        """Lay out the page, in whatever Blocks are open."""
        info = chat.engine.info
        with gr.Row(elem_id="shell"):
            with gr.Column(elem_id="chats", elem_classes="drawer"):
                self._lay_out_conversations(chat, features)
            with gr.Column(elem_id="main"):
                self._lay_out_chat(chat, features)
            with gr.Column(elem_id="settings", elem_classes="drawer"):
                self._lay_out_settings(chat)
            with gr.Column(elem_id="model", elem_classes="drawer"):
                gr.HTML('<h2 id="model-title">Model</h2>', padding=False)
                with gr.Tabs() if work else gr.Column():
                    with gr.Tab("Model") if work else gr.Column():
                        self.model = gr.HTML(model_card(info, Measured()), elem_id="model-card", padding=False)
                        self.switch_form = _lay_out_switch(chat, features)
                    self.train_form = _lay_out_train(chat, work) if work else None
        self.conversation = gr.Textbox(elem_id="conversation", visible=False)
        """ConversationRef of the conversation shown, for memory.js to remember."""
        self.memory = gr.Textbox(elem_id="memory", visible=False)
        """memory.js's memory of the tab, which the server reads when the page opens."""

    def _lay_out_conversations(self, chat: Chat, features: PageFeatures) -> None:
        gr.HTML('<h2 id="chats-title">Conversations</h2>', padding=False)
        self.chats = component("chats", "chat-list", {})
        if not features.persistent:
            gr.HTML(offer(chat, features).notice(), elem_id="not-saved", padding=False)

    def _lay_out_chat(self, chat: Chat, features: PageFeatures) -> None:
        info = chat.engine.info
        with gr.Row(elem_id="head"):
            component("layout", "layout")
            with gr.Column(elem_id="about"):
                gr.HTML("<h1>QLoRA Chat</h1>", padding=False)
                self.open_model = _button(info.name, "open-model")
                self.banner = gr.HTML(render.banner(info, chat.prompt_format.notices), padding=False)
            self.adapter = gr.Dropdown(
                list(info.adapters), label="Answers", elem_id="adapter", filterable=False, visible=bool(info.adapters),
                scale=0, show_label=False, container=False,
            )  # fmt: skip
            """The adapter that answers; invisible where there is nothing to choose."""
            self.open_compare = _button("Compare", "open-compare")
            self.new = _button("New chat", "new")
        self.welcome = gr.HTML(welcome_card(info, Measured()), elem_id="welcome", padding=False, apply_default_css=False)
        self.messages = component("messages", "messages", {})
        self.tokens = component("tokens", "tokens")
        self.compare = component("compare", "compare", translates=False)
        self.notice = gr.HTML(elem_id="notice", padding=False)
        """Problems, and turns that no longer fit."""
        with gr.Row(elem_id="ask"):
            self.box = gr.Textbox(
                elem_id="box", label="Your message", show_label=False, placeholder="Message (Enter sends)",
                lines=1, max_lines=8, autofocus=True, scale=1, container=False,
            )  # fmt: skip
            self.send = _button("Send", "send", size="lg", variant="primary")
            self.stop = _button("Stop", "stop", size="lg", variant="stop")
        with gr.Row(elem_id="foot"):
            self.context = component("context", "context")
            self.status = gr.HTML(render.status(info), elem_id="status", padding=False)
            self.logged = _logging_switch(features)
            log_out = LOG_OUT if features.has_password else ""
            gr.HTML(f'<p class="disclaimer">{DISCLAIMER}</p>{log_out}', elem_id="disclaimer", padding=False)

    def _lay_out_settings(self, chat: Chat) -> None:
        gr.HTML('<h2 id="settings-title">Settings</h2>', padding=False)
        component("appearance", "appearance")
        form = settings_form(chat.engine.info.window)
        self.sampling = component("settings", "sampling", "", translates=False, form=form)
        """JSON of the settings, as panels/settings.py reads it."""
        self.system = gr.Textbox(
            label="System text", elem_id="system", lines=2, max_lines=6,
            info="leads the conversation, from the next message on",
            placeholder=chat.prompt_format.default_system or "none: the model was tuned without one",
        )  # fmt: skip
        component("systems", "systems")


def _lay_out_switch(chat: Chat, features: PageFeatures) -> SwitchForm | None:
    """The form that switches the model; None to visitors, and where other servers have the model."""
    switchable = ModelChanges.switchable(chat.engine)
    if switchable is None:
        return None
    gr.HTML("<h3>Switch the model</h3>", padding=False)
    if not features.operated:
        gr.HTML(f'<p class="note">{FORBIDDEN}</p>', padding=False)
        return None
    return SwitchForm(switchable.settings)


def _lay_out_train(chat: Chat, work: TrainingWork) -> TrainForm:
    switchable = ModelChanges.switchable(chat.engine)
    with gr.Tab("Train"):
        upload = component("upload", "train-upload")
        return TrainForm(
            switchable.settings if switchable else ModelSettings(), upload, work.runs.names(), shown_path(work.runs.folder)
        )


def _button(text: str, elem_id: str, size: Any = "sm", **options: Any) -> gr.Button:
    return gr.Button(text, size=size, elem_id=elem_id, scale=0, min_width=72, **options)


def _logging_switch(features: PageFeatures) -> gr.Checkbox:
    notice = LOGGED_AND_SAVED if features.persistent else LOGGED
    with gr.Row(elem_id="logging", visible=features.logged):
        gr.HTML(f'<p class="notice">{notice}</p>', padding=False)
        return gr.Checkbox(True, label="Log mine, from the next message on", elem_id="logged", container=False)
