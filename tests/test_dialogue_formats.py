"""Records of five dialogue formats, the errors of bad ones, and what chat exports may hold beyond training data."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_chat.dialogue_formats import BadRecord, parse_dialogue

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def texts(record: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in parse_dialogue(record)[1].messages]


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("messages", {"messages": TURNS}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello."}),
        ("guanaco", {"text": "### Human: Hi### Assistant: Hello."}),
    ],
)
def test_each_format_is_recognised(name: str, record: Any) -> None:
    assert parse_dialogue(record)[0] == name
    assert texts(record) == [("user", "Hi"), ("assistant", "Hello.")]


def test_a_system_text_is_read_from_each_format() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert parse_dialogue({"messages": [system, *TURNS]})[1].system == "Be brief."
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert parse_dialogue({"system": "S", "conversations": turns})[1].system == "S"
    assert parse_dialogue({"text": "S\n### Human: a### Assistant: b"})[1].system == "S"


def test_an_instruction_and_its_input_are_one_question() -> None:
    assert texts({"instruction": "Sum up:", "input": "A text.", "output": "T."})[0] == ("user", "Sum up:\n\nA text.")


def test_guanaco_text_with_several_turns_and_an_open_marker() -> None:
    record = {"text": "### Human: a### Assistant: b ### sub ### Human: c### Assistant: d### Human:"}
    assert texts(record) == [("user", "a"), ("assistant", "b ### sub"), ("user", "c"), ("assistant", "d")]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (3, "is a number, but must be an object"),
        ({"prompt": "x"}, "has 'prompt', but must have 'messages'"),
        ({"messages": []}, "holds no turn of a user"),
        ({"messages": "x"}, "'messages' is a text, but must be a list of turns"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: 'content' is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'role' is 'robot'"),
        ({"messages": [TURNS[1]]}, "a dialogue begins with the user"),
        ({"messages": [TURNS[0], TURNS[0]]}, r"messages\[1\] is the user's, but must be the assistant's: turns alternate"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "  "}]}, "the assistant's text is empty"),
        ({"messages": [*TURNS, {"role": "system", "content": "x"}]}, "can only come first"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no turn of a user"),
        ({"instruction": "x", "output": None}, "'output' is null"),
        ({"text": "Once upon a time"}, "holds no '### Human:'"),
    ],
)
def test_the_error_says_what_is_wrong_with_a_record(record: Any, problem: str) -> None:
    with pytest.raises(BadRecord, match=problem):
        parse_dialogue(record)


def test_a_chat_export_keeps_its_spaces_and_loses_its_greeting() -> None:
    turns = [("gpt", "How can I help?"), ("human", " Hi "), ("human", "again"), ("gpt", ""), ("human", "Well?")]
    record = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    with pytest.raises(BadRecord, match="begins with the user"):
        parse_dialogue(record)
    _, conversation = parse_dialogue(record, as_written=True)
    assert conversation.pairs() == [[" Hi \n\nagain", ""], ["Well?", ""]]
    assert parse_dialogue({"items": []}, as_written=True)[1].messages == ()
