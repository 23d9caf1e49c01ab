"""Answers begun together: what may answer, where they are kept, and whose names they bear."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_chat.chat import AnswerOptions, Chat, Turn
from qlora_chat.comparison import begin_answers, contenders, names, what_more_needs, with_one_seed
from qlora_chat.engines import AnsweredBy
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling
from tests.fakes import SCRIPTED_INFO, ScriptedEngine, scripted_chat

SEVERAL = replace(SCRIPTED_INFO, adapter=None, adapters=("guanaco", "pirate"))
COLUMNS = [AnswerOptions(Sampling(seed=1), "scripted"), AnswerOptions(Sampling(seed=1), "pirate")]


def chat_with_adapters(answer: str = "Yes.") -> Chat:
    engine = ScriptedEngine(answer, info=SEVERAL)
    engine.answered_by = lambda asked: AnsweredBy(None if asked == "scripted" else asked)
    return scripted_chat(engine)


def read(turns: list[Turn]) -> list[str]:
    return ["".join(piece.text for piece in turn) for turn in turns]


def test_only_what_this_engine_can_answer_with_is_offered() -> None:
    assert [each.label for each in contenders(SEVERAL)] == ["scripted (no adapter)", "guanaco", "pirate"]
    assert [each.name for each in contenders(SCRIPTED_INFO)] == ["scripted-adapter"], "merged: the base is not there alone"
    assert "was opened together with its adapter" in what_more_needs(SCRIPTED_INFO)
    assert "no adapter is loaded" in what_more_needs(replace(SCRIPTED_INFO, adapter=None)).lower()
    assert "Another precision needs a server of its own" in what_more_needs(SEVERAL)


def test_the_answers_are_a_branch_beside_the_conversation() -> None:
    chat = chat_with_adapters()
    list(first := chat.reply(Conversation(), "Hi", AnswerOptions(Sampling())))
    turns, shown = begin_answers(chat, first.conversation, "Is it?", COLUMNS)
    assert shown.messages == first.conversation.messages
    assert read(turns) == ["Yes.", "Yes."]
    stored = chat.history.read(shown.id)
    assert stored
    assert stored.conversation() == shown
    answers = [each for each in stored.turns if each.message.id in {turn.answer_id for turn in turns}]
    assert len({each.parent_id for each in answers}) == 1, "versions of each other"
    assert [each.details["model"]["adapter"] for each in answers] == [None, "pirate"]
    list(more := chat.reply(shown, "And now?", AnswerOptions(Sampling())))
    assert [each.content for each in more.conversation.messages] == ["Hi", "Yes.", "And now?", "Yes."]


def test_a_new_conversation_goes_on_with_the_newest_answer() -> None:
    chat = chat_with_adapters()
    turns, _ = begin_answers(chat, Conversation(), "Is it?", COLUMNS)
    read(turns)
    shown = chat.history.load(turns[0].conversation.id)
    assert shown
    assert [each.id for each in shown.messages][1:] == [turns[-1].answer_id]


def test_where_one_is_refused_none_is_left_running() -> None:
    chat = chat_with_adapters()
    engine = chat.engine
    assert isinstance(engine, ScriptedEngine)
    list(first := chat.reply(Conversation(), "Hi", AnswerOptions(Sampling())))
    engine.refuses = "pirate"
    with pytest.raises(ValueError, match="'pirate' is not loaded"):
        begin_answers(chat, first.conversation, "Is it?", COLUMNS)
    assert engine.streams[-1].cancelled
    assert chat.history.load(first.conversation.id) == first.conversation


def test_names_are_the_engines_with_the_settings_that_differ() -> None:
    engine = ScriptedEngine("Yes.", info=SEVERAL)
    engine.answered_by = lambda asked: AnsweredBy("guanaco")
    chat = scripted_chat(engine)
    samplings = [Sampling(temperature=0.2, top_k=5), Sampling(temperature=1.0, top_k=5)]
    turns, _ = begin_answers(chat, Conversation(), "Is it?", [AnswerOptions(each, "pirate") for each in samplings])
    read(turns)
    assert names([turn.model for turn in turns], samplings) == ["guanaco, Temperature 0.2", "guanaco, Temperature 1"]


def test_the_columns_share_their_random_numbers() -> None:
    columns = [AnswerOptions(Sampling()), AnswerOptions(Sampling(seed=3))]
    assert [each.sampling.seed for each in with_one_seed(columns, 7)] == [7, 3]
