"""Markdown of models as HTML that is safe to insert, block by block, with formulas as MathML.

Scope: pure functions from text to HTML and CSS. Nothing in the HTML can run, and nothing in it loads anything: raw HTML is
shown as text and images are links. Knows no conversation and no page.
"""

from __future__ import annotations

from qlora_chat.web.markdown.blocks import StreamedMarkdown, render_blocks
from qlora_chat.web.markdown.stylesheet import stylesheet

__all__ = ["StreamedMarkdown", "render_blocks", "stylesheet"]
