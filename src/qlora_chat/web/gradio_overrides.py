"""Everything in which Gradio behaves otherwise than by itself: files are left alone, and updates reach the browser whole.

Scope: what Gradio has no switch for. It opens, or fetches, and copies whatever a value describes as a file, before a handler
sees the value and whether or not the handler wants it preprocessed; it creates a folder when an app is built; and it sends
updates as differences. Knows nothing of the page.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.data_classes import GradioModel, GradioRootModel

from qlora_chat.errors import UserError
from qlora_chat.settings import gradio_folder

_MOVER = "async_move_files_to_cache"
"""The function of processing_utils by which Gradio's Blocks handle the files in an event's inputs and outputs."""
_building = threading.Lock()
NO_CHANGE = {"__type__": "update"}
"""The encoding of gr.skip() for Gradio's browser code."""


class FolderError(UserError, RuntimeError):
    """Gradio's folder cannot be created."""


def leave_files_alone() -> None:
    """Make Gradio pass values on as they are, in this process. RuntimeError where a new Gradio moves files in another way."""
    if not hasattr(processing_utils, _MOVER):
        raise RuntimeError(f"this Gradio has no {_MOVER}; find out how it moves files before the page is served with it")
    setattr(processing_utils, _MOVER, _unmoved)


async def _unmoved(data: Any, *_: Any, **__: Any) -> Any:
    """The unchanged value, as plain JSON."""
    return data.model_dump() if isinstance(data, (GradioModel, GradioRootModel)) else data


@contextlib.contextmanager
def private_folder() -> Iterator[None]:
    """Gradio's folder, mode 0700, for as long as the block runs. FolderError where it cannot be created.

    Gradio creates a subfolder when an app is built and needs neither afterwards: a server that is killed leaves nothing behind.
    """
    folder = gradio_folder()
    with _building:
        try:
            folder.mkdir(mode=0o700)
        except OSError as problem:
            raise FolderError(
                f"the page needs a temporary folder to start, but {folder} cannot be created ({problem.strerror or problem}); "
                "set TMPDIR to a folder that you may write to"
            ) from problem
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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
