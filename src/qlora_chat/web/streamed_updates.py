"""Blocks whose streamed updates reach the browser whole, and once.

Scope: how Gradio encodes the updates of one running event. Knows nothing of the page.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

NO_CHANGE = {"__type__": "update"}
"""The encoding of gr.skip() for Gradio's browser code."""


class StreamedBlocks(gr.Blocks):
    """gr.Blocks with two changes to how the updates of a running event are sent.

    Gradio sends each update as its difference from the one before, and its browser code applies a difference to the object
    that it still has to draw: where a browser is slow, "enable this button" is gone before it is drawn. Here an update of
    properties replaces the one before. Values (texts, messages) still travel as differences.

    When the event ends, Gradio sends its last update again. If Clear was answered in between, the old conversation would
    come back. Here the end of an event changes nothing.
    """

    def handle_streaming_diffs(self, block_fn: Any, data: list[Any], *args: Any, **options: Any) -> list[Any]:
        """The data to send for one update of a running event, or for its end. Overrides Gradio's method."""
        updates = list(data)
        sent = super().handle_streaming_diffs(block_fn, data, *args, **options)
        if options.get("final"):
            return [NO_CHANGE for _ in sent]
        # only a difference is a list where the update itself is a dict
        return [
            [["replace", [], update]] if isinstance(update, dict) and isinstance(each, list) and each else each
            for update, each in zip(updates, sent, strict=True)
        ]
