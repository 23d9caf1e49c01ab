"""A growing answer as updates: whoever skips up to RESENT of them has the same blocks as who sees them all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qlora_chat.web.markdown import render_blocks
from qlora_chat.web.message_list.live_blocks import RESENT, LiveBlocks

PIECES = ["word ", "**bold** ", "\n\n", "- item\n", "```\n", "| a | b |\n", "`", "*", "# ", "1. one\n", "$x^2$ ", "> "]


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.data())
def test_skipped_updates_lose_nothing(pieces: list[str], data: st.DataObject) -> None:
    live, shown, skipped, text = LiveBlocks(), [], 0, ""
    for piece in pieces:
        text += piece
        update = live.update(text)
        if skipped < RESENT and data.draw(st.booleans()):
            skipped += 1
            continue
        skipped, begin, blocks = 0, update["from"], list(update["blocks"])
        assert len(shown) >= begin, "nothing is missing before it"
        if blocks and update["keep"]:
            blocks[0] = shown[begin][: update["keep"]] + blocks[0]
        shown[begin:] = blocks
        assert shown == render_blocks(text)


def test_an_update_of_a_long_block_is_short() -> None:
    live, text = LiveBlocks(), "word " * 2000
    updates = [live.update(text + "more " * count) for count in range(RESENT + 2)]
    assert sum(map(len, updates[-1]["blocks"])) < 60
    assert updates[-1]["number"] == RESENT + 2
