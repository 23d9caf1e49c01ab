"""What becomes of conversations on this page, for the page to say and to act on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageFeatures:
    """Fixed when the page is built."""

    logged: bool = False
    """Finished turns are sent to a receiver."""
    kept: bool = False
    """Conversations outlive the program."""
    shared: bool = False
    """People on other machines can reach the page: then each browser lists only what was said in it."""


NOTHING = PageFeatures()
