"""Records of every form that other tools write: the dialogue of each, what is changed for it, and the errors of bad ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qlora_chat.dialogue_formats import BadRecord
from qlora_chat.dialogue_formats.dialogue import (
    SURROGATES,
    UNANSWERED,
    WHITE_SPACE,
    WITHOUT_LOSS,
    Dialogue,
    parse_dialogue,
)
from qlora_chat.dialogue_formats.formats import TEXT, TOOLS
from qlora_chat.dialogue_formats.turns import JOINED_PARTS, REASONING

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
TURNS = [USER, ANSWER]
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}


def texts(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in dialogue.conversation.messages]


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("messages", {"messages": TURNS}),
        ("messages", {"messages": [{"role": "User", "content": "Hi"}, {"role": "ASSISTANT", "content": "Hello."}]}),
        ("messages", {"messages": [HUMAN, GPT]}),
        ("messages", {"messages": [{**USER, "content": [{"type": "text", "text": "Hi"}]}, ANSWER]}),
        ("sharegpt", {"conversations": [HUMAN, GPT]}),
        ("sharegpt", {"conversations": [{"from": "Human", "value": "Hi"}, {"from": "GPT", "value": "Hello."}]}),
        ("sharegpt", {"conversations": TURNS}),
        ("sharegpt", {"messages": None, "conversations": [HUMAN, GPT]}),
        ("sharegpt", {"conversations": [HUMAN, GPT], "messages": []}),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello."}),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "Hello.", "text": "Below is an instruction ..."}),
        ("alpaca", {"instruction": "Hi", "context": "", "response": "Hello."}),
        ("prompt-completion", {"prompt": "Hi", "completion": "Hello."}),
        ("prompt-completion", {"prompt": [USER], "completion": [ANSWER]}),
        ("question-answer", {"question": "Hi", "answer": "Hello."}),
        ("question-answer", {"query": "Hi", "response": "Hello."}),
        ("preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [GPT]}),
        ("preference", {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}),
        ("preference", {"prompt": "Hi", "chosen": TURNS, "rejected": TURNS}),
        ("preference", {"prompt": [USER], "chosen": TURNS, "rejected": TURNS}),
        ("preference", {"chosen": TURNS, "rejected": TURNS}),
        ("guanaco", {"text": "### Human: Hi### Assistant: Hello."}),
    ],
)
def test_each_form_is_recognised(name: str, record: Any) -> None:
    dialogue = parse_dialogue(record)
    assert dialogue.format == name
    assert texts(dialogue) == [("user", "Hi"), ("assistant", "Hello.")]
    assert dialogue.changes == ()
    assert dialogue.learned


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [SYSTEM, *TURNS]},
        {"messages": [{**SYSTEM, "role": "developer"}, *TURNS]},
        {"messages": TURNS, "system": "Be brief."},
        {"messages": [SYSTEM, *TURNS], "system": "Be brief."},
        {"conversations": [HUMAN, GPT], "system": "Be brief."},
        {"instruction": "Hi", "output": "Hello.", "system": "Be brief."},
        {"question": "Hi", "response": "Hello.", "system_prompt": "Be brief."},
        {"text": "Be brief.\n### Human: Hi### Assistant: Hello."},
    ],
)
def test_a_system_text_counts_wherever_it_stands(record: Any) -> None:
    dialogue = parse_dialogue(record)
    assert dialogue.conversation.system == "Be brief."
    assert texts(dialogue) == [("user", "Hi"), ("assistant", "Hello.")]


def test_an_instruction_and_its_input_are_one_question() -> None:
    for name in ("input", "context"):
        dialogue = parse_dialogue({"instruction": "Sum up:", name: "A text.", "output": "T."})
        assert texts(dialogue)[0] == ("user", "Sum up:\n\nA text.")


@pytest.mark.parametrize(
    "history",
    [[["What is 7 plus 5?", "12."]], [{"role": "user", "content": "What is 7 plus 5?"}, {**ANSWER, "content": "12."}]],
)
def test_alpacas_history_becomes_turns(history: Any) -> None:
    dialogue = parse_dialogue({"instruction": "And 3?", "input": "", "output": "15.", "history": history})
    assert [text for _, text in texts(dialogue)] == ["What is 7 plus 5?", "12.", "And 3?", "15."]
    assert dialogue.without_loss == frozenset()


def test_guanaco_text_with_several_turns_and_an_open_marker() -> None:
    dialogue = parse_dialogue({"text": "### Human: a### Assistant: b ### sub ### Human: c### Assistant: d### Human:"})
    assert texts(dialogue) == [("user", "a"), ("assistant", "b ### sub"), ("user", "c"), ("assistant", "d")]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_an_answer_of_weight_0_is_not_learned(mark: Any) -> None:
    record = {"messages": [USER, {**ANSWER, **mark}, USER, {**ANSWER, "weight": 1, "train": True}]}
    dialogue = parse_dialogue(record)
    assert dialogue.without_loss == {1}
    assert dialogue.changes == (WITHOUT_LOSS,)
    assert not parse_dialogue({"messages": [USER, {**ANSWER, **mark}]}).learned


def test_answers_in_a_prompt_are_context() -> None:
    earlier = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1."}]
    for record in (
        {"prompt": [*earlier, USER], "completion": [ANSWER]},
        {"prompt": [*earlier, USER], "chosen": [ANSWER]},
        {"chosen": [*earlier, *TURNS]},
    ):
        dialogue = parse_dialogue(record)
        assert len(dialogue.conversation.messages) == 4
        assert dialogue.without_loss == {1}


@pytest.mark.parametrize(
    ("record", "change"),
    [
        ({"messages": [USER, {**ANSWER, "content": "\nHello. "}]}, WHITE_SPACE),
        ({"messages": [*TURNS, USER]}, UNANSWERED),
        ({"messages": TURNS, "tools": [{"name": "search"}]}, TOOLS),
        ({"messages": [USER, {**ANSWER, "reasoning_content": "Hm."}]}, REASONING),
    ],
)
def test_every_change_is_named(record: Any, change: str) -> None:
    dialogue = parse_dialogue(record)
    assert texts(dialogue) == [("user", "Hi"), ("assistant", "Hello.")]
    assert dialogue.changes == (change,)


def test_parts_are_joined_and_half_characters_replaced() -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "two \ud83d"}]
    dialogue = parse_dialogue({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert texts(dialogue)[0] == ("user", "One\n\ntwo ?")
    assert set(dialogue.changes) == {JOINED_PARTS, SURROGATES}
    whole = json.loads('"\\ud83d\\ude42"')
    assert parse_dialogue({"question": "Hi", "answer": whole}).changes == ()


def test_a_text_without_guanacos_markers_waits_for_the_models_template() -> None:
    dialogue = parse_dialogue({"text": "<|im_start|>user\nHi<|im_end|>"})
    assert (dialogue.format, dialogue.text) == (TEXT, "<|im_start|>user\nHi<|im_end|>")
    with pytest.raises(BadRecord, match="holds no '### Human:'"):
        parse_dialogue({"text": "Once upon a time"}, as_written=True)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (3, "is a number, but must be an object"),
        ({"prompt": "x"}, "has 'prompt', but must have 'messages'"),
        ({"data": [{"messages": TURNS}]}, "if 'data' is the list of records, let the file hold that list alone"),
        ({"messages": []}, "holds no turn of a user"),
        ({"messages": "x"}, "'messages' is a text, but must be a list of turns"),
        ({"messages": ["x"]}, r"messages\[0\] is a text, but must be an object with 'role' and 'content'"),
        ({"conversations": ["x"]}, r"conversations\[0\] is a text, but must be an object with 'from' and 'value'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: 'content' is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'role' is 'robot'"),
        ({"messages": [TURNS[1]]}, "a dialogue begins with the user"),
        ({"messages": [TURNS[0], TURNS[0]]}, r"messages\[1\] is the user's, but must be the assistant's: turns alternate"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "  "}]}, "the assistant's text is empty"),
        ({"messages": [*TURNS, {"role": "system", "content": "x"}]}, "can only come first"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no turn of a user"),
        ({"messages": [SYSTEM, *TURNS], "system": "Be long."}, "a 'system' text and a system turn that differ"),
        ({"messages": TURNS, "conversations": [HUMAN, GPT]}, "has both 'messages' and 'conversations'"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, r"messages\[1\] calls a tool"),
        ({"messages": [USER, {"role": "tool", "content": "4"}]}, r"messages\[1\] is a tool's turn"),
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}, ANSWER]}, "a part of type 'image_url', and only text"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, r"'weight' is '0.5', but must be 0 \(not learned\) or 1"),
        ({"image": "a.png", "conversations": [HUMAN, GPT]}, "has 'image', and only text is learned"),
        ({"instruction": "x", "output": None}, "'output' is null"),
        (
            {"instruction": "x", "output": "y", "history": "x"},
            r"'history' is a text, but must be a list of \[question, answer\]",
        ),
        ({"question": "x", "answer": 42}, "'answer' is a number, but must be a text"),
        ({"chosen": "x"}, "has 'chosen', but no 'prompt'"),
        ({"prompt": "Else?", "chosen": TURNS}, "a 'prompt' that is no message of 'chosen'"),
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
    conversation = parse_dialogue(record, as_written=True).conversation
    assert conversation.pairs() == [[" Hi \n\nagain", ""], ["Well?", ""]]
    assert parse_dialogue({"items": []}, as_written=True).conversation.messages == ()


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Say hi", "output": "Hi.", "weight": 0},
        {"messages": TURNS, "train": False},
        {"text": "### Human: Hi### Assistant: Hello.", "weight": 0.0},
        {"prompt": "Hi", "completion": "Go away.", "label": False},
    ],
)
def test_a_record_that_is_marked_as_a_whole_is_not_learned(record: dict[str, Any]) -> None:
    assert not parse_dialogue(record).learned
    assert parse_dialogue({**record, "weight": 1, "train": True, "label": True}).learned


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Q", "output": "A", "system": "One.", "system_prompt": "Two."},
        {"instruction": "Q", "output": "A", "input": "one", "context": "two"},
    ],
)
def test_two_texts_for_one_place_are_not_chosen_from(record: dict[str, Any]) -> None:
    with pytest.raises(BadRecord, match="has both .* leave one of them"):
        parse_dialogue(record)
