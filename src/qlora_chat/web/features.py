"""Features of the page that depend on how the server was started.

Scope: apart from parts.py, for the server needs it before Gradio is imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageFeatures:
    """Fixed when the page is built."""

    logged: bool = False
    """Finished turns are sent to a receiver."""
    persistent: bool = False
    """Conversations outlive the program."""
    shared: bool = False
    """People on other machines can reach the page: then each browser lists only its own conversations."""
