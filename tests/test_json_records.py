"""Records of JSON files, however broken: those that are whole are found, and each other one is named by its line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from qlora_chat.json_records import json_lines, list_elements, parse

VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(),
    lambda each: some.lists(each) | some.dictionaries(some.text(), each),
)


def found_in(data: bytes) -> tuple[list[Any], list[str]]:
    """(values, problems with their lines) of a list's elements."""
    records = [*list_elements(data)]
    return [each.value for each in records if each.problem is None], [
        f"{each.line}: {each.problem}" for each in records if each.problem
    ]


@settings(max_examples=30)  # a list has dozens of values
@given(some.lists(VALUES), some.sampled_from([None, 0, 2]), some.booleans())
def test_the_elements_of_a_list_are_those_that_the_library_finds(values: list[Any], indent: int | None, ascii: bool) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii).encode("utf-8", "replace")
    assert found_in(data) == (json.loads(data), [])


def test_each_record_has_the_line_on_which_it_begins() -> None:
    data = b'\n[\n {"a": 1},\n\n {"b":\n  2}, 3\n]\n'
    assert [(each.line, each.value) for each in list_elements(data)] == [(3, {"a": 1}), (5, {"b": 2}), (6, 3)]
    assert [(each.line, each.value) for each in json_lines(b'{"a": 1}\n \n2\n')] == [(1, {"a": 1}), (3, 2)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_read_whatever_their_texts_hold(end: str) -> None:
    values = [{"text": f"one{mark}two"} for mark in "\u2028\u2029\x85\v\f\x1c\x1d\x1e"]
    lines = end.join(json.dumps(each, ensure_ascii=False) for each in values)
    assert [each.value for each in json_lines(lines.encode())] == values


def test_a_broken_element_hides_none_of_the_others() -> None:
    data = b'[1,\n{"a": tru},\n{"a": "b"c""},\n{"a": "open,\n"b": 1},\n"\xff",, "]}",\n2,\n]'
    values, problems = found_in(data)
    assert values == [1, "]}", 2]
    assert [each.split(" (")[0] for each in problems] == [
        "2: is not JSON", "3: is not JSON", "4: is not JSON", "6: is not UTF-8", "6: is not JSON", "8: is not JSON",
    ]  # fmt: skip


def test_what_follows_a_list_and_a_list_without_an_end_are_problems() -> None:
    assert found_in(b"[1]\n\n2") == ([1], ["3: is not JSON (Extra data after the list)"])
    assert found_in(b"[1,\n2") == ([1, 2], ["2: is cut off, as is the rest of the file"])
    assert found_in(b'[1, {"a": [') == ([1], ["1: is cut off, as is the rest of the file"])


def test_a_broken_element_is_named_by_its_column_on_the_line_even_where_it_hides_the_rest() -> None:
    missing = '["é",\n1, {"b": tru}]'.encode()
    assert found_in(missing) == (["é", 1], ["2: is not JSON (Expecting value, column 10)"])
    over_two_lines = b'[1,\n{"a": "one\ntwo"},\n{"b": 1},\n{"c": 1}\n]\n'
    problem = "2: is not JSON (Invalid control character at, column 11), nor is what follows in this list"
    assert found_in(over_two_lines) == ([1], [problem])


def test_what_json_could_not_hold_again_is_null_and_what_cannot_be_read_is_a_problem() -> None:
    assert parse(b"[NaN, 1e999, 1.5]").value == [None, None, 1.5]
    assert parse(b"[" * 100_000 + b"]" * 100_000).problem == "is nested too deeply"
    assert parse(b"9" * 5000).problem == "holds a number of too many digits"
    assert parse(b'"x"' * 20, most_bytes=10).problem == "is longer than 0 MiB"
    assert parse(b"\xef\xbb\xbf1").value == 1
