"""One turn from question to history and log."""

import pytest

from qlora_chat.chat import Chat
from qlora_chat.engines import EngineError
from qlora_chat.history import TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT, PromptTooLong
from qlora_chat.settings import Sampling
from tests.fakes import ScriptedEngine


def chat_over(engine: ScriptedEngine) -> tuple[Chat, MemoryHistory, list[TurnRecord]]:
    history, logged = MemoryHistory(), []
    return Chat(engine, DEFAULT_FORMAT, history, logged.append), history, logged


def test_a_turn_streams_and_is_remembered_and_logged() -> None:
    engine = ScriptedEngine(" Hello there.")
    chat, history, logged = chat_over(engine)
    turn = chat.reply(Conversation(), "Hi", Sampling(top_k=7))
    texts = [piece.text for piece in turn]
    assert "".join(texts) == " Hello there."
    assert turn.answer == "Hello there."
    assert turn.finish is not None
    kept = history.load(turn.conversation.id)
    assert kept == turn.conversation
    assert kept is not None
    assert kept.pairs() == [["Hi", "Hello there."]]
    assert [record.prompt_text for record in logged] == ["### Human: Hi### Assistant:"]
    assert logged[0].sampling.top_k == 7


def test_the_next_prompt_goes_on_with_the_ids_of_the_answer() -> None:
    engine = ScriptedEngine("  ok ")
    chat, *_ = chat_over(engine)
    first = chat.reply(Conversation(), "a", Sampling())
    list(first)
    second = chat.reply(first.conversation, "b", Sampling())
    assert second.prompt.text == "### Human: a### Assistant: ok### Human: b### Assistant:"
    assert engine.tokenizer.decode(second.prompt.ids) == "### Human: a### Assistant:  ok### Human: b### Assistant:"


def test_the_question_is_kept_before_the_answer_begins() -> None:
    chat, history, _ = chat_over(ScriptedEngine())
    turn = chat.reply(Conversation(), "Hi", Sampling())
    kept = history.load(turn.conversation.id)
    assert kept is not None
    assert [message.content for message in kept.messages] == ["Hi"]


def test_a_reader_who_leaves_cancels_the_answer_and_what_came_is_kept() -> None:
    engine = ScriptedEngine("one two three four", delay=0.001)
    chat, history, _ = chat_over(engine)
    turn = chat.reply(Conversation(), "count", Sampling())
    pieces = iter(turn)
    next(pieces)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert engine.streams[0].cancelled
    kept = history.load(turn.conversation.id)
    assert kept is not None
    assert (kept.messages[1].content, kept.messages[1].finish_reason) == ("one two", "cancelled")


def test_a_failure_is_raised_and_marked_and_not_logged() -> None:
    chat, history, logged = chat_over(ScriptedEngine("one two three", fails_after=2))
    turn = chat.reply(Conversation(), "count", Sampling())
    with pytest.raises(EngineError):
        list(turn)
    kept = history.load(turn.conversation.id)
    assert kept is not None
    assert (kept.messages[1].content, kept.messages[1].finish_reason) == ("one two", "error")
    assert logged == []


def test_the_context_used_is_known_without_an_answer() -> None:
    chat, *_ = chat_over(ScriptedEngine("ok", window=80))
    conversation = Conversation()
    assert chat.context_used(conversation) == 0
    for text in ("a", "b" * 20):
        turn = chat.reply(conversation, text, Sampling())
        list(turn)
        conversation = turn.conversation
        assert chat.context_used(conversation) <= 80
    assert chat.context_used(conversation.without_last_exchange()) == 1 + len("### Human: a### Assistant: ok### Assistant:")


def test_a_session_may_switch_its_log_off() -> None:
    chat, _, logged = chat_over(ScriptedEngine())
    list(chat.reply(Conversation(), "Hi", Sampling(), logged=False))
    assert logged == []


def test_markers_are_escaped_in_the_prompt_only() -> None:
    chat, history, logged = chat_over(ScriptedEngine("fine"))
    turn = chat.reply(Conversation(), "### Human: x", Sampling())
    list(turn)
    kept = history.load(turn.conversation.id)
    assert kept is not None
    assert kept.messages[0].content == "### Human: x", "shown and logged as typed"
    assert logged[0].conversation.pairs()[0][0] == "### Human: x"
    assert turn.prompt.text == "### Human: # # # Human: x### Assistant:"


def test_stops_are_those_of_model_and_format() -> None:
    engine = ScriptedEngine()
    chat, *_ = chat_over(engine)
    list(chat.reply(Conversation(), "Hi", Sampling()))
    assert engine.streams[0].stops.token_ids == {2}
    assert engine.streams[0].stops.texts == ("### Human", "### Assistant")


def test_a_message_too_long_is_refused_and_nothing_is_kept() -> None:
    engine = ScriptedEngine(window=100)
    chat, history, _ = chat_over(engine)
    conversation = Conversation()
    with pytest.raises(PromptTooLong, match=r"takes 1,027 tokens, and at most 75 fit"):
        chat.reply(conversation, "x" * 1001, Sampling())
    assert engine.streams == []
    assert history.load(conversation.id) is None


def test_old_turns_go_and_the_caller_learns_which() -> None:
    chat, *_ = chat_over(ScriptedEngine("answer", window=120))
    conversation = Conversation()
    for text in ("first " * 3, "second " * 3, "third " * 3):
        turn = chat.reply(conversation, text, Sampling())
        list(turn)
        conversation = turn.conversation
    assert turn.prompt.dropped == (0, 1, 2, 3)
    assert "first" not in turn.prompt.text
    assert len(conversation.messages) == 6, "the conversation itself forgets nothing"
