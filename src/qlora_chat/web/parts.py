"""The parts of the page that events read and set, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

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


@dataclass(frozen=True)
class Parts:
    """Gradio components; page.py lays them out."""

    chatbot: gr.Chatbot
    notice: gr.HTML
    """Problems, and turns that no longer fit."""
    box: gr.Textbox
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    undo: gr.Button
    clear: gr.Button
    sliders: tuple[gr.Slider, ...]
    """In the order of settings.SLIDERS."""
    adapter: gr.Dropdown
    """The adapter that answers; invisible where there is nothing to choose."""
    system: gr.Textbox
    logged: gr.Checkbox
    find: gr.Textbox
    """Search text of the past conversations."""
    found: gr.Radio
    """Past conversations."""
    title: gr.Textbox
    """Title of the selected one."""
    rename: gr.Button
    delete: gr.Button
    past: gr.Accordion
    status: gr.HTML
    feedback: gr.Column
    """feedback.py's panel; it closes when another conversation or answer is shown."""
    conversation: gr.Textbox
    """Invisible: ConversationRef of the conversation shown, for page.js to remember."""
    memory: gr.Textbox
    """Invisible: page.js's memory of the tab, which the server reads when the page opens."""
