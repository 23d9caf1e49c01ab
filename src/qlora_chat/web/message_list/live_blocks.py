"""A growing answer as small updates, of which a browser may skip some.

Scope: from the text so far to the blocks that changed. An update repeats the changes of the RESENT updates before it, for a
browser that is slow sees only the last of several; one that has skipped more notices by the number and fetches the answer.
"""

from __future__ import annotations

import os.path
from collections import deque
from typing import Any

from qlora_chat.web.markdown import StreamedMarkdown

RESENT = 2


class LiveBlocks:
    """The blocks of one answer. Updated by one thread; `whole` may be called from any."""

    def __init__(self) -> None:
        self._markdown, self._blocks, self._number = StreamedMarkdown(), (), 0
        self._before: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=RESENT + 1)
        """(first block that the next update changed, all blocks) of this update and those before it."""

    def update(self, text: str) -> dict[str, Any]:
        """Number of the update, index of its first block, the beginning of that block that stays, and the blocks from there on.

        The first of `blocks` lacks its first `keep` characters. A browser that lacks updates after `since` cannot draw it.
        """
        first, changed = self._markdown.update(text)
        blocks = (*self._blocks[:first], *changed)
        self._before.append((first, self._blocks))
        begin = min(each for each, _ in self._before)
        versions = [each[begin] if begin < len(each) else "" for _, each in self._before]
        versions.append(blocks[begin] if begin < len(blocks) else "")
        keep = len(os.path.commonprefix(versions))  # noqa: RUF071 - of texts, which no function of another module compares
        self._blocks, self._number = blocks, self._number + 1
        sent = list(blocks[begin:])
        if sent:
            sent[0] = sent[0][keep:]
        since = max(0, self._number - RESENT - 1) if begin or keep else 0
        return {"number": self._number, "since": since, "from": begin, "keep": keep, "blocks": sent}

    def whole(self) -> dict[str, Any]:
        """All blocks, and the number of the update that they come from."""
        return {"number": self._number, "blocks": self._blocks}
