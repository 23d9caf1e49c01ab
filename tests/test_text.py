"""Lines and JSON records of text from outside."""

from __future__ import annotations

import json

import pytest

from qlora_chat.text import json_records, split_lines

OTHER_ENDS = "\u2028\u2029\x85\v\f\x1c\x1d\x1e"
"""Characters at which str.splitlines ends a line, and JSON does not."""


def test_only_a_line_feed_ends_a_line() -> None:
    assert split_lines(f"a{OTHER_ENDS}b\nc\r\n\nd\n") == [f"a{OTHER_ENDS}b", "c\r", "", "d"]
    assert split_lines("") == [""]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_records_are_read_whatever_their_texts_hold(end: str) -> None:
    values = [{"text": f"one{mark}two"} for mark in OTHER_ENDS]
    lines = end.join(json.dumps(each, ensure_ascii=False) for each in values)
    assert [value for _, value in json_records(lines)] == values
