"""One turn from question to history and log."""

import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.context import PromptTooLong
from qlora_chat.engines import AnsweredBy, EngineError
from qlora_chat.history import ContinuedAnswer, StaleConversation, TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import Sampling
from tests.fakes import FullHistory, ScriptedEngine, ScriptedRecorder


def chat_over(engine: ScriptedEngine) -> tuple[Chat, MemoryHistory, list[TurnRecord]]:
    history, recorder = MemoryHistory(), ScriptedRecorder()
    return Chat(engine, DEFAULT_FORMAT, history, recorder), history, recorder.turns


def test_a_turn_streams_and_is_remembered_and_logged() -> None:
    engine = ScriptedEngine(" Hello there.")
    chat, history, logged = chat_over(engine)
    turn = chat.reply(Conversation(), "Hi", AnswerOptions(Sampling(top_k=7)))
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
    first = chat.reply(Conversation(), "a", AnswerOptions(Sampling()))
    list(first)
    second = chat.reply(first.conversation, "b", AnswerOptions(Sampling()))
    assert second.prompt.text == "### Human: a### Assistant: ok### Human: b### Assistant:"
    assert engine.tokenizer.decode(second.prompt.ids) == "### Human: a### Assistant:  ok### Human: b### Assistant:"


def test_the_question_is_kept_before_the_answer_begins() -> None:
    chat, history, _ = chat_over(ScriptedEngine())
    turn = chat.reply(Conversation(), "Hi", AnswerOptions(Sampling()))
    kept = history.load(turn.conversation.id)
    assert kept is not None
    assert [(message.content, message.finish_reason) for message in kept.messages] == [("Hi", None), ("", "partial")]


def test_a_reader_who_leaves_cancels_the_answer_and_what_came_is_kept() -> None:
    engine = ScriptedEngine("one two three four", delay=0.001)
    chat, history, _ = chat_over(engine)
    turn = chat.reply(Conversation(), "count", AnswerOptions(Sampling()))
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
    turn = chat.reply(Conversation(), "count", AnswerOptions(Sampling()))
    with pytest.raises(EngineError):
        list(turn)
    kept = history.load(turn.conversation.id)
    assert kept is not None
    assert (kept.messages[1].content, kept.messages[1].finish_reason) == ("one two", "error")
    assert logged == []


def test_a_session_may_switch_its_log_off() -> None:
    chat, _, logged = chat_over(ScriptedEngine())
    list(chat.reply(Conversation(), "Hi", AnswerOptions(Sampling(), logged=False)))
    assert logged == []


def test_markers_are_escaped_in_the_prompt_only() -> None:
    chat, history, logged = chat_over(ScriptedEngine("fine"))
    turn = chat.reply(Conversation(), "### Human: x", AnswerOptions(Sampling()))
    list(turn)
    kept = history.load(turn.conversation.id)
    assert kept is not None
    assert kept.messages[0].content == "### Human: x", "shown and logged as typed"
    assert logged[0].conversation.pairs()[0][0] == "### Human: x"
    assert turn.prompt.text == "### Human: # # # Human: x### Assistant:"


def test_stops_are_those_of_model_and_format() -> None:
    engine = ScriptedEngine()
    chat, *_ = chat_over(engine)
    list(chat.reply(Conversation(), "Hi", AnswerOptions(Sampling())))
    assert engine.streams[0].stops.token_ids == {2}
    assert engine.streams[0].stops.texts == ("### Human", "### Assistant")


def test_a_message_too_long_is_refused_and_nothing_is_kept() -> None:
    engine = ScriptedEngine(window=100)
    chat, history, _ = chat_over(engine)
    conversation = Conversation()
    with pytest.raises(PromptTooLong, match=r"takes 1,027 tokens, and at most 75 fit"):
        chat.reply(conversation, "x" * 1001, AnswerOptions(Sampling()))
    assert engine.streams == []
    assert history.load(conversation.id) is None


def test_old_turns_go_and_the_caller_learns_which() -> None:
    chat, *_ = chat_over(ScriptedEngine("answer", window=120))
    conversation = Conversation()
    for text in ("first " * 3, "second " * 3, "third " * 3):
        turn = chat.reply(conversation, text, AnswerOptions(Sampling()))
        list(turn)
        conversation = turn.conversation
    assert turn.prompt.dropped == (0, 1, 2, 3)
    assert "first" not in turn.prompt.text
    assert len(conversation.messages) == 6, "the conversation itself forgets nothing"


def test_an_engine_that_refuses_leaves_the_conversation_able_to_go_on() -> None:
    engine = ScriptedEngine("fine")
    chat, history, _ = chat_over(engine)
    first = chat.reply(Conversation(), "a", AnswerOptions(Sampling()))
    list(first)
    engine.refusal = ValueError("no room")
    for instead_of in (None, first.conversation):  # a question, and a retry
        start = first.conversation.without_last_exchange() if instead_of else first.conversation
        with pytest.raises(ValueError, match="no room"):
            chat.reply(start, "b", AnswerOptions(Sampling()), instead_of=instead_of)
        assert history.load(first.conversation.id) == first.conversation, "what was shown is shown again"
    engine.refusal = None
    list(again := chat.reply(first.conversation, "b", AnswerOptions(Sampling())))
    assert again.conversation.pairs() == [["a", "fine"], ["b", "fine"]]


def test_a_stale_page_overwrites_nothing() -> None:
    chat, history, _ = chat_over(ScriptedEngine("fine"))
    first = chat.reply(Conversation(), "a", AnswerOptions(Sampling()))
    list(first)
    list(second := chat.reply(first.conversation, "b", AnswerOptions(Sampling())))
    with pytest.raises(StaleConversation, match="gone on in another window"):
        chat.reply(first.conversation, "from a page that saw nothing of b", AnswerOptions(Sampling()))
    assert history.load(first.conversation.id) == second.conversation


def test_a_full_disk_does_not_end_the_chat() -> None:
    chat = Chat(ScriptedEngine("fine"), DEFAULT_FORMAT, FullHistory())
    first = chat.reply(Conversation(), "a", AnswerOptions(Sampling()))
    assert first.save_error == "the disk is full"
    list(first)
    list(second := chat.reply(first.conversation, "b", AnswerOptions(Sampling())))
    assert second.conversation.pairs() == [["a", "fine"], ["b", "fine"]]


def test_what_is_recorded_makes_the_same_answer_again() -> None:
    chat, _, logged = chat_over(ScriptedEngine("a b c"))
    turn = chat.reply(Conversation(), "Hi", AnswerOptions(Sampling(temperature=0.5)))
    for index, _ in enumerate(turn):
        if index == 0:
            turn.update(Sampling(temperature=1.0))
    record = logged[0]
    assert record.sampling.temperature == 0.5, "as it began"
    assert record.sampling.seed is not None, "drawn where none was given"
    assert [(change.sampling.temperature, change.sampling.seed) for change in record.changes] == [(1.0, record.sampling.seed)]
    assert record.prompt_ids == turn.prompt.ids
    assert record.parent_id is None
    assert record.model is not None
    assert record.model.adapter == "scripted-adapter"
    list(follow := chat.reply(turn.conversation, "more", AnswerOptions(Sampling(seed=7))))
    assert logged[1].parent_id == record.answer.id
    assert logged[1].sampling.seed == 7
    assert follow.conversation.messages[2].id == logged[1].question.id


def test_the_record_names_what_the_engine_says_has_answered() -> None:
    engine = ScriptedEngine("a b c")
    engine.answered_by = lambda asked: AnsweredBy("another")
    chat, _, logged = chat_over(engine)
    list(turn := chat.reply(Conversation(), "Hi", AnswerOptions(Sampling(), "scripted")))
    assert turn.model.adapter == "another", "whatever was asked for"
    assert logged[0].model == turn.model


def test_the_progress_of_a_long_prompt_is_known() -> None:
    engine = ScriptedEngine("ok then")
    engine.prefilled = (5, 20)
    chat, *_ = chat_over(engine)
    turn = chat.reply(Conversation(), "Hi", AnswerOptions(Sampling()))
    assert (turn.prefilled, turn.prompt_tokens) == (0, len(turn.prompt.ids))
    assert [turn.prefilled for _ in turn][:3] == [5, 20, turn.prompt_tokens]
    assert turn.answer == "ok then"


def test_a_cut_answer_goes_on_as_a_new_version_of_it() -> None:
    engine = ScriptedEngine(" One two", delay=0.0)
    chat, history, logged = chat_over(engine)
    list(first := chat.reply(Conversation(), "Count.", AnswerOptions(Sampling())))
    old = first.conversation.messages[-1]
    engine.answer = " three four "
    second = chat.continue_answer(first.conversation, AnswerOptions(Sampling(seed=5)))
    opened = history.load(first.conversation.id)
    assert opened is not None
    assert (opened.messages[-1].content, opened.messages[-1].finish_reason) == ("One two", "partial"), (
        "nothing is lost in a crash"
    )
    list(second)
    assert second.prompt.text == "### Human: Count.### Assistant: One two"
    assert second.conversation.pairs() == [["Count.", "One two three four"]]
    stored = history.read(first.conversation.id)
    assert stored is not None
    assert stored.conversation() == second.conversation
    versions = [turn.message for turn in stored.turns if turn.parent_id == first.conversation.messages[0].id]
    assert [each.content for each in versions] == ["One two", "One two three four"], "the old version stays beside it"
    record = logged[-1]
    assert record.continues == ContinuedAnswer(old.id, second.prompt.continued, len("One two"))
    assert record.sampling.seed == 5 + second.prompt.continued, "other random numbers than the beginning's"
    details = next(turn.details for turn in stored.turns if turn.message.id == record.answer.id)
    assert details["continues"] == {"turn_id": old.id, "tokens": second.prompt.continued, "characters": 7}


def test_an_answer_that_cannot_go_on_is_shown_as_it_was() -> None:
    engine = ScriptedEngine(" One two")
    chat, history, _ = chat_over(engine)
    list(first := chat.reply(Conversation(), "Count.", AnswerOptions(Sampling())))
    engine.refusal = ValueError("no room")
    with pytest.raises(ValueError, match="no room"):
        chat.continue_answer(first.conversation, AnswerOptions(Sampling()))
    assert history.load(first.conversation.id) == first.conversation
    with pytest.raises(ValueError, match="the assistant's"):
        chat.continue_answer(Conversation(), AnswerOptions(Sampling()))


def test_a_slider_s_place_in_the_answer_is_recorded() -> None:
    engine = ScriptedEngine("  One two three")
    chat, history, _ = chat_over(engine)
    turn = chat.reply(Conversation(), "Count.", AnswerOptions(Sampling(temperature=0.5)))
    for index, _ in enumerate(turn):
        if index == 3:
            turn.update(Sampling(temperature=1.5))
            assert [(each.at_token, each.at_character) for each in turn.changes] == [(3, len("One two"))], "at once"
    stored = history.read(turn.conversation.id)
    assert stored is not None
    (change,) = stored.turns[-1].details["settings_changes"]
    assert (change["at_token"], change["at_character"], change["generate_kwargs"]["temperature"]) == (3, 7, 1.5)


def test_the_use_of_the_window_is_known_before_anything_is_sent() -> None:
    chat, *_ = chat_over(ScriptedEngine("answer", window=400))
    list(turn := chat.reply(Conversation(), "question", AnswerOptions(Sampling())))
    use = chat.context_use(turn.conversation, "and", 60)
    list(sent := chat.reply(turn.conversation, "and", AnswerOptions(Sampling(max_new_tokens=60))))
    assert (use.history + use.draft, use.draft, use.answer, use.window) == (sent.prompt_tokens, 3, 60, 400)
    asked = turn.conversation.without_last_exchange().adding(turn.conversation.messages[0])
    assert 0 < use.history - chat.context_use(asked, "and", 60).history <= len("answer"), "its question counts, too"


def test_a_pinned_turn_is_always_seen_and_stays_pinned() -> None:
    chat, history, _ = chat_over(ScriptedEngine("answer", window=200))
    conversation = Conversation()
    list(turn := chat.reply(conversation, "question 0", AnswerOptions(Sampling(max_new_tokens=10))))
    conversation = chat.pin(turn.conversation, turn.conversation.messages[1].id, pinned=True)
    for number in range(1, 6):
        list(turn := chat.reply(conversation, f"question {number}", AnswerOptions(Sampling(max_new_tokens=10))))
        conversation = turn.conversation
    assert "question 0" in turn.prompt.text
    assert turn.prompt.dropped[:2] == (2, 3)
    stored = history.load(conversation.id)
    assert stored is not None
    list(again := chat.reply(stored, "question 6", AnswerOptions(Sampling(max_new_tokens=10))))
    assert "question 0" in again.prompt.text, "as read from the history, too"
    unpinned = chat.pin(again.conversation, conversation.messages[1].id, pinned=False)
    list(last := chat.reply(unpinned, "question 7", AnswerOptions(Sampling(max_new_tokens=10))))
    assert "question 0" not in last.prompt.text


def test_a_caller_s_stop_texts_end_the_answer_and_are_recorded() -> None:
    engine = ScriptedEngine("one STOP two")
    chat, history, _ = chat_over(engine)
    list(turn := chat.reply(Conversation(), "Count.", AnswerOptions(Sampling(), stop_texts=("STOP",))))
    assert engine.streams[-1].stops.texts == (*chat.stops.texts, "STOP")
    stored = history.read(turn.conversation.id)
    assert stored is not None
    assert stored.turns[-1].details["stop_texts"] == ["STOP"], "a replay needs them"
