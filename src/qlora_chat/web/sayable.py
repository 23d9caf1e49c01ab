"""Text from a browser as it can be kept and sent back."""

from __future__ import annotations

from typing import Any


def replace_surrogates(text: Any) -> str:
    """Text without lone surrogates, which no response could carry back; "" for what is no text."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""
