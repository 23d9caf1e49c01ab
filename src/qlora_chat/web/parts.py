"""The parts of the page that events read and set, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

LONGEST: Mapping[str, int] = {
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
"""The most characters that a browser may send of each part that holds text, by elem_id.

`edited` begins as an answer, `memory` holds the system text as JSON, in which a character takes up to six.
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
    """Which of several adapters answers; invisible where there is nothing to choose."""
    system: gr.Textbox
    logged: gr.Checkbox
    find: gr.Textbox
    """Past conversations: what to look for,"""
    found: gr.Radio
    """what there is,"""
    title: gr.Textbox
    """and the name of the chosen one."""
    rename: gr.Button
    delete: gr.Button
    past: gr.Accordion
    status: gr.HTML
    feedback: gr.Column
    """feedback.py's panel; it is about an answer that is shown, and closes when another conversation or answer is."""
    conversation: gr.Textbox
    """Invisible: the id of the conversation that is shown, for page.js to keep."""
    memory: gr.Textbox
    """Invisible: what page.js kept, for the server to read when the page opens."""
