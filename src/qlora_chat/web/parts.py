"""The parts of the page, laid out from top to bottom; events read and set them by name.

Scope: Gradio components and their order. Knows no events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.settings import SAMPLING_SETTINGS, SLIDERS
from qlora_chat.web import render
from qlora_chat.web.sessions import PageFeatures

MAX_CHARACTERS: Mapping[str, int] = {
    "box": 200_000,
    "system": 20_000,
    "adapter": 200,
    "find": 200,
    "found": 100,
    "title": 200,
    "comment": 10_000,
    "edited": 200_000,
    "conversation": 200,
    "memory": 130_000,
    "turn": 100,
    "rating": 10,
}
"""Limit of the text that a browser may send, for each part with text, by elem_id.

`edited` begins as an answer; `memory` contains the system text as JSON, in which a character takes up to six.
"""

THUMBS = ("Like", "Dislike")
"""The names by which Gradio draws its thumbs."""
DISCLAIMER = "A language model wrote these answers. They can be wrong, biased or offensive: check what matters."
LOG_OUT = '<form method="post" action="logout"><button>Log out</button></form>'


class FeedbackPanel:
    """Hidden until a thumb is pressed; it closes when another conversation or answer is shown."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="feedback") as self.box:
            self.about = gr.HTML(elem_id="feedback-about", padding=False)
            self.comment = gr.Textbox(
                elem_id="comment", label="Comment", placeholder="What was good about it, or wrong?", lines=1, max_lines=4
            )
            self.edited = gr.Textbox(elem_id="edited", label="The answer as it should have been", lines=3, max_lines=12)
            with gr.Row():
                self.save = _button("Save", "feedback-save", width=88, variant="primary")
                self.close = _button("Close", "feedback-close", width=88)
        self.turn = gr.Textbox(elem_id="turn", visible=False)
        """The id of the answer that it is about."""
        self.rating = gr.Textbox(elem_id="rating", visible=False)
        """up or down."""


class PastPanel:
    """The list of past conversations, and what can be done with the selected one."""

    def __init__(self, *, visible: bool) -> None:
        with gr.Accordion("Past conversations", open=False, elem_id="past", visible=visible) as self.box:
            self.find = gr.Textbox(
                elem_id="find", label="Search past conversations", show_label=False, placeholder="Search titles and words",
                container=False, lines=1, max_lines=1, max_length=MAX_CHARACTERS["find"],
            )  # fmt: skip
            self.found = gr.Radio([], label="Past conversations", show_label=False, elem_id="found", container=False)
            with gr.Row(elem_id="past-actions"):
                self.title = gr.Textbox(
                    elem_id="title", label="Title", show_label=False, placeholder="Title of the selected conversation",
                    container=False, lines=1, max_lines=1, max_length=MAX_CHARACTERS["title"], scale=1,
                )  # fmt: skip
                self.rename = _button("Rename", "rename")
                self.delete = _button("Delete", "delete", variant="stop")


class Parts:
    """Every component that an event reads or sets."""

    def __init__(self, chat: Chat, features: PageFeatures) -> None:
        """Lay out the page, in whatever Blocks are open."""
        info = chat.engine.info
        gr.HTML(f"<h1>QLoRA Chat</h1>{render.banner(info, chat.prompt_format.notices)}", elem_id="head", padding=False)
        self.chatbot = gr.Chatbot(
            elem_id="chat", label="Conversation", show_label=False, height="100%", layout="bubble", buttons=["copy"],
            latex_delimiters=[], allow_tags=False, feedback_options=THUMBS, scale=1, placeholder="Say something to begin.",
        )  # fmt: skip
        self.notice = gr.HTML(elem_id="notice", padding=False)
        """Problems, and turns that no longer fit."""
        self.adapter = gr.Dropdown(
            list(info.adapters), label="Answers", elem_id="adapter", filterable=False, visible=bool(info.adapters), scale=0,
        )  # fmt: skip
        """The adapter that answers; invisible where there is nothing to choose."""
        self.feedback = FeedbackPanel()
        with gr.Row(elem_id="ask", equal_height=True):
            self.box = gr.Textbox(
                elem_id="box", label="Your message", show_label=False, placeholder="Message (Enter sends)",
                lines=1, max_lines=8, autofocus=True, scale=1, container=False,
            )  # fmt: skip
            self.send = _button("Send", "send", width=88, size="lg", variant="primary")
            self.stop = _button("Stop", "stop", width=88, size="lg", variant="stop", interactive=False)
        with gr.Row(elem_id="actions"):
            self.retry = _button("Retry", "retry", interactive=False)
            self.undo = _button("Undo", "undo", interactive=False)
            self.clear = _button("Clear", "clear")
            self.status = gr.HTML(render.status(info, used=0), elem_id="status", padding=False)
        self.logged = _logging_switch(features)
        self.past = PastPanel(visible=features.persistent)
        with gr.Accordion("Advanced options", open=False, elem_id="options"):
            with gr.Row():
                self.sliders = tuple(_slider(name, info.window) for name in SLIDERS)
            self.system = gr.Textbox(
                label="System text", elem_id="system", lines=2, max_lines=6,
                info="leads the conversation, from the next message on",
                placeholder=chat.prompt_format.default_system or "none: the model was tuned without one",
            )  # fmt: skip
        log_out = LOG_OUT if features.has_password else ""
        gr.HTML(f'<p class="disclaimer">{DISCLAIMER}</p>{log_out}', elem_id="foot", padding=False)
        self.conversation = gr.Textbox(elem_id="conversation", visible=False)
        """ConversationRef of the conversation shown, for page.js to remember."""
        self.memory = gr.Textbox(elem_id="memory", visible=False)
        """page.js's memory of the tab, which the server reads when the page opens."""


def _button(text: str, elem_id: str, width: int = 72, size: Any = "sm", **options: Any) -> gr.Button:
    return gr.Button(text, size=size, elem_id=elem_id, scale=0, min_width=width, **options)


def _logging_switch(features: PageFeatures) -> gr.Checkbox:
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
