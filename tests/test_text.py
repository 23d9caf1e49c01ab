"""Lines and control characters of text from outside."""

from __future__ import annotations

from qlora_chat.text import plain, split_lines

OTHER_ENDS = "\u2028\u2029\x85\v\f\x1c\x1d\x1e"
"""Characters at which str.splitlines ends a line, and JSON does not."""


def test_only_a_line_feed_ends_a_line() -> None:
    assert split_lines(f"a{OTHER_ENDS}b\nc\r\n\nd\n") == [f"a{OTHER_ENDS}b", "c\r", "", "d"]
    assert split_lines("") == [""]


def test_what_steers_a_terminal_is_replaced_and_all_writing_stays() -> None:
    steering = "\x1b\x07\x00\x7f\x9b\r\u202e\u2066\u2028\ud800"
    assert plain(steering) == "\ufffd" * len(steering)
    assert plain("a\tb\nc\r", allowed="\n\t", instead=" ") == "a\tb\nc "
    emoji, persian, japanese = "\U0001f469\u200d\U0001f467", "\u0646\u0645\u06cc\u200c\u062e", "\u65e5\u3000\u672c"
    for writing in (emoji, persian, japanese, "1\u00a0000", "\u05d0\u200f!"):
        assert plain(writing) == writing
