"""Characters whose two UTF-16 halves a server sends in different chunks.

Scope: text of one answer, chunk by chunk. JSON can express half a character (`\\ud83d`), which nothing here can store or show.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


class SurrogateJoiner:
    """Holds back the first half of a character until the next chunk, which should begin with the second."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, text: str, *, last: bool = False) -> str:
        """The text that is complete with this chunk. A half without its other half becomes U+FFFD."""
        if not self._half and not _SURROGATE.search(text):
            return text
        text, self._half = self._half + text, ""
        if not last and "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
