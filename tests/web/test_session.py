"""One tab: one answer at a time, and nothing of what was cleared."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from qlora_chat.chat import AnswerOptions, Chat, Turn
from qlora_chat.comparison import begin_answers
from qlora_chat.context import PromptTooLong
from qlora_chat.history import Feedback, OutboxRecord, StaleConversation, StoredConversation, TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import Sampling
from qlora_chat.web.message_list.branches import Branches
from qlora_chat.web.message_list.view import MessageView
from qlora_chat.web.running_answer import RunningAnswer
from qlora_chat.web.session import Busy, ConversationRef, Session
from qlora_chat.web.sessions import Sessions
from qlora_chat.web.tab_names import TabNames
from tests.fakes import ScriptedEngine, ScriptedRecorder, scripted_chat

OPTIONS = AnswerOptions(Sampling())
LONG = "word " * 500


def answered(session: Session, text: str) -> RunningAnswer:
    answering = session.send(text, OPTIONS)
    assert answering.wait(60)
    return answering


def said(session: Session) -> list[str]:
    return [message.content for message in session.conversation.messages]


def begin_long_answer(pauses_after: int | None = None) -> tuple[ScriptedEngine, Session, RunningAnswer]:
    engine = ScriptedEngine(LONG, delay=0.005)
    engine.pauses_after = pauses_after
    session = Session(scripted_chat(engine))
    answering = session.send("go on", OPTIONS)
    wait_for(lambda: answering.tokens >= 3)
    return engine, session, answering


def wait_for(condition: object, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.002)


def test_an_answer_joins_the_conversation() -> None:
    session = Session(scripted_chat(ScriptedEngine("I am well.")))
    answered(session, "How are you?")
    assert said(session) == ["How are you?", "I am well."]


def test_a_second_answer_does_not_start_while_one_is_written() -> None:
    engine, session, answering = begin_long_answer()
    with pytest.raises(Busy):
        session.send("again", OPTIONS)
    with pytest.raises(Busy):
        session.retry("any", OPTIONS)
    session.stop()
    assert answering.wait(60)
    assert len(engine.streams) == 1


def test_stop_keeps_the_partial_answer_and_says_so() -> None:
    engine, session, answering = begin_long_answer(pauses_after=3)
    session.stop()
    assert answering.wait(60)
    assert len(engine.streams[0].seen) == 3
    answer = session.conversation.messages[-1]
    assert answer.finish_reason == "cancelled"
    assert LONG.startswith(answer.content)
    assert answer.content


def test_a_slider_acts_on_the_next_token_of_the_running_answer() -> None:
    engine, session, _ = begin_long_answer(pauses_after=3)
    session.update(Sampling(temperature=0.0))
    engine.go_on.set()
    wait_for(lambda: len(engine.streams[0].seen) >= 6)
    session.stop()
    assert [sampling.temperature for sampling in engine.streams[0].seen[:6]] == [0.7] * 3 + [0.0] * 3


def test_clear_stops_and_begins_another_conversation() -> None:
    engine, session, answering = begin_long_answer()
    old = session.conversation.id
    answering.unwatched.set()
    session.clear()
    assert answering.wait(60)
    assert engine.streams[0].reason == "cancelled"
    assert session.conversation.id != old
    assert said(session) == []
    assert not session.shows(answering)


def test_clear_waits_until_the_page_has_let_go_of_the_old_answer() -> None:
    _, session, answering = begin_long_answer()
    threading.Timer(0.1, answering.unwatched.set).start()
    session.clear(seconds=60)
    assert answering.unwatched.is_set()


def test_after_clear_a_new_answer_starts_at_once() -> None:
    engine, session, answering = begin_long_answer()
    answering.unwatched.set()
    session.clear()
    engine.answer, engine.delay = "Fresh.", 0.0
    answered(session, "hello")
    assert said(session) == ["hello", "Fresh."]


def versions(session: Session, turn_id: str) -> list[str]:
    stored = session._chat.history.read(session.conversation.id)
    assert stored
    return [stored_text(stored, each) for each in Branches(stored).versions(turn_id)]


def stored_text(stored: StoredConversation, turn_id: str) -> str:
    return next(turn.message.content for turn in stored.turns if turn.message.id == turn_id)


def test_any_answer_can_be_retried_and_its_versions_be_switched() -> None:
    engine = ScriptedEngine("First.")
    session = Session(scripted_chat(engine))
    answered(session, "hi")
    first = session.conversation.messages[-1].id
    answered(session, "more")
    engine.answer = "Second."
    answering = session.retry(first, OPTIONS)
    assert answering
    assert answering.wait(60)
    assert said(session) == ["hi", "Second."]
    assert versions(session, first) == ["First.", "Second."]
    assert session.select(first)
    assert said(session) == ["hi", "First.", "more", "First."]
    assert session.select(answering.turn.answer_id)
    answered(session, "and on")
    assert said(session) == ["hi", "Second.", "and on", "Second."]


def test_any_question_and_any_answer_can_be_edited_and_nothing_is_lost() -> None:
    session = Session(scripted_chat(ScriptedEngine(lambda prompt: f"{len(prompt.ids)} letters.")))
    answered(session, "What is 2 + 2?")
    answered(session, "Sure?")
    before = said(session)
    question = session.conversation.messages[0].id
    answering = session.edit(question, "What is 3 + 30?", OPTIONS)
    assert answering
    assert answering.wait(60)
    assert said(session)[0] == "What is 3 + 30?"
    assert len(said(session)) == 2
    answer = session.conversation.messages[-1].id
    assert session.rewrite(answer, "33.")
    assert said(session) == ["What is 3 + 30?", "33."]
    assert versions(session, answer)[-1] == "33."
    assert session.select(question)
    assert said(session) == before


def test_a_stopped_answer_goes_on_as_another_version() -> None:
    engine, session, answering = begin_long_answer(pauses_after=3)
    session.stop()
    assert answering.wait(60)
    cut = session.conversation.messages[-1]
    engine.pauses_after, engine.answer, engine.delay = None, "and so on.", 0.0
    continued = session.go_on(cut.id, OPTIONS)
    assert continued
    assert continued.wait(60)
    assert said(session)[1].startswith(cut.content)
    assert said(session)[1].endswith("and so on.")
    assert versions(session, cut.id) == [cut.content, said(session)[1]]


def test_messages_that_are_not_shown_cannot_be_retried_edited_or_selected() -> None:
    session = Session(scripted_chat())
    assert session.retry("made up", OPTIONS) is None
    assert session.edit("made up", "text", OPTIONS) is None
    assert session.go_on("made up", OPTIONS) is None
    assert not session.rewrite("made up", "text")
    assert not session.select("made up")


def test_an_edit_that_fails_shows_the_branch_before_it() -> None:
    engine = ScriptedEngine("First.")
    session = Session(scripted_chat(engine))
    answered(session, "hi")
    engine.fails_after = 0
    failed = session.edit(session.conversation.messages[0].id, "hello", OPTIONS)
    assert failed
    assert failed.wait(60)
    assert said(session) == ["hi", "First."]
    assert session.take_failed_question() == "hello"
    assert versions(session, session.conversation.messages[0].id) == ["hi"]


def test_a_message_too_long_changes_nothing() -> None:
    engine = ScriptedEngine(window=200)
    session = Session(scripted_chat(engine))
    with pytest.raises(PromptTooLong, match="too long"):
        session.send("x" * 400, OPTIONS)
    assert said(session) == []
    assert engine.streams == []


def test_a_failure_before_the_first_word_returns_the_question() -> None:
    session = Session(scripted_chat(ScriptedEngine(fails_after=0)))
    answering = answered(session, "my long question")
    assert answering.problem == "the script says that generation fails"
    assert session.take_failed_question() == "my long question"
    assert session.take_failed_question() is None
    assert said(session) == []


def test_a_failure_in_the_middle_keeps_what_was_written() -> None:
    session = Session(scripted_chat(ScriptedEngine("one two three", fails_after=2)))
    answering = answered(session, "count")
    assert answering.problem
    assert said(session) == ["count", "one two"]
    assert session.take_failed_question() is None


def test_system_text_and_logging_choice_reach_the_turn() -> None:
    recorder = ScriptedRecorder()
    chat = replace(scripted_chat(), recorder=recorder)
    session = Session(chat)
    assert session.send("secret", AnswerOptions(Sampling(), logged=False), "Be brief.").wait(60)
    assert session.send("open", AnswerOptions(Sampling(), logged=True), "Be brief.").wait(60)
    assert session.conversation.system == "Be brief."
    assert [turn.question.content for turn in recorder.turns] == ["open"]


def test_closing_the_tab_cancels() -> None:
    engine, session, _ = begin_long_answer()
    session.close()
    assert engine.streams[0].reason == "cancelled"
    with pytest.raises(Busy):
        session.send("more", OPTIONS)


def test_a_comparison_leaves_the_conversation_free_and_ends_with_the_tab() -> None:
    engine = ScriptedEngine(LONG, delay=0.005)
    sessions = Sessions(chat := scripted_chat(engine))
    session = sessions.open("tab")

    def begin(shown: Conversation) -> tuple[list[Turn], Conversation]:
        return begin_answers(chat, shown, "Which?", [OPTIONS, replace(OPTIONS, sampling=Sampling(top_k=2))])

    engine.answer, engine.delay = "Hello.", 0.0
    answered(session, "Hi")
    engine.answer, engine.delay = LONG, 0.005
    compared = session.compare(begin, logged=True)
    with pytest.raises(Busy, match="last comparison is still being written"):
        session.compare(begin, logged=True)
    assert sessions.running == 1
    engine.answer, engine.delay = "Fine.", 0.0
    answered(session, "How are you?")
    assert said(session) == ["Hi", "Hello.", "How are you?", "Fine."]
    sessions.close("tab")
    assert all(each.done for each in compared)
    stored = chat.history.read(session.conversation.id)
    assert stored
    assert [each.message.finish_reason for each in stored.turns].count("cancelled") == 2, "kept, as far as they got"


def test_changes_show_the_first_text_though_nothing_follows_and_then_at_most_10_a_second() -> None:
    engine = ScriptedEngine("word " * 200, delay=0.002)
    engine.pauses_after = 1
    session = Session(scripted_chat(engine))

    async def watch() -> tuple[int, float]:
        began = time.perf_counter()
        answering, count = session.send("go", OPTIONS), 0
        async for grown in answering.changes():
            if grown and not count:
                assert len(engine.streams[0].seen) == 1
                engine.go_on.set()
            count += grown
        return count, time.perf_counter() - began

    count, took = asyncio.run(watch())
    assert 2 <= count <= took * 10 + 2


def test_the_first_words_are_shown_at_once_though_progress_of_the_prompt_was_shown_just_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("UPDATE_SECONDS", "QUIET_SECONDS"):
        monkeypatch.setattr(f"qlora_chat.web.running_answer.{name}", 3600.0)
    engine = ScriptedEngine("Hello there", delay=0.1)
    engine.prefilled, engine.pauses_after = (1,), 1
    session = Session(scripted_chat(engine))

    async def first_words() -> str:
        answering = session.send("go", OPTIONS)
        async with asyncio.timeout(60):
            async for _ in answering.changes():
                if answering.turn.answer:
                    break
        session.stop()
        return answering.turn.answer

    assert asyncio.run(first_words()) == "Hello"


def test_a_silent_engine_still_gives_signs_of_life() -> None:
    session = Session(scripted_chat(ScriptedEngine("late", delay=600)))

    async def watch() -> list[bool]:
        changes = list[bool]()
        async for grown in session.send("go", OPTIONS).changes():
            changes.append(grown)
            if changes == [False, False]:
                session.stop()
        return changes

    assert asyncio.run(watch())[:2] == [False, False]


# --- several tabs ----------------------------------------------------------------------------------------------------


def two_tabs(engine: ScriptedEngine | None = None) -> tuple[Chat, Sessions, Session]:
    chat = scripted_chat(engine)
    sessions = Sessions(chat)
    first = sessions.open("first")
    answered(first, "hello")
    return chat, sessions, first


def test_a_reloaded_page_takes_its_conversation_over() -> None:
    _, sessions, first = two_tabs()
    again = sessions.open("again", first.conversation.id, reloaded=True)
    assert again.conversation == first.conversation


def test_a_page_reloaded_in_the_middle_of_an_answer_keeps_the_part() -> None:
    engine = ScriptedEngine(LONG, delay=0.005)
    sessions = Sessions(scripted_chat(engine))
    first = sessions.open("first")
    answering = first.send("go", OPTIONS)
    wait_for(lambda: answering.tokens >= 3)
    again = sessions.open("again", first.conversation.id, reloaded=True)
    assert engine.streams[0].reason == "cancelled"
    assert [message.finish_reason for message in again.conversation.messages] == [None, "cancelled"]
    assert said(again)[1].startswith("word")


def test_a_duplicated_tab_goes_its_own_way() -> None:
    _, sessions, first = two_tabs()
    second = sessions.open("second", first.conversation.id)
    assert said(second) == said(first)
    assert second.conversation.id != first.conversation.id
    answered(second, "more")
    assert said(first) == ["hello", "This is a scripted answer."]


def test_a_closed_tab_is_found_again_in_the_history() -> None:
    _, sessions, first = two_tabs()
    sessions.close("first")
    again = sessions.open("again", first.conversation.id)
    assert again.conversation == first.conversation


def test_an_unknown_conversation_is_an_empty_one() -> None:
    assert Sessions(scripted_chat()).open("tab", "no-such-id").conversation.messages == ()


def test_a_question_that_was_never_answered_does_not_block_the_conversation() -> None:
    chat, sessions, first = two_tabs()
    conversation = first.conversation.without_last_exchange()
    sessions.close("first")
    dangling = conversation.adding(Message("user", "lost"))
    chat.history.save(dangling)
    session = sessions.open("again", conversation.id)
    answered(session, "next")
    assert said(session) == ["lost", "", "next", "This is a scripted answer."]


def test_forgotten_tabs_do_not_pile_up() -> None:
    chat = scripted_chat()
    sessions = Sessions(chat)
    names = TabNames(lambda name: False, lambda name: sessions.close(name, seconds=0), most=3)
    opened = [sessions.open(name) for name in "01234" if names.claim(name, f"browser of {name}")]
    assert len(opened) == 5
    assert [bool(sessions.find(name)) for name in "01234"] == [False, False, True, True, True]
    oldest = opened[0]
    with pytest.raises(Busy):
        oldest.send("still there?", OPTIONS)


def two_processes() -> tuple[Session, Session]:
    """One tab's sessions in two processes over one store; the events of the tab reach now this one, now that one."""
    chat = scripted_chat(ScriptedEngine(lambda prompt: f"answer {prompt.text.count('### Human')}"))
    return Sessions(chat).open("tab"), Sessions(chat).open("tab")


def test_a_tab_goes_on_in_another_process_and_comes_back() -> None:
    here, there = two_processes()
    answered(here, "one")
    for process, text in ((there, "two"), (here, "three"), (there, "four")):
        process.catch_up(ConversationRef.parse(str(ConversationRef.of((there if process is here else here).conversation))))
        answered(process, text)
    assert said(there) == ["one", "answer 1", "two", "answer 2", "three", "answer 3", "four", "answer 4"]


def test_a_page_that_shows_less_than_the_history_holds_overwrites_nothing() -> None:
    here, there = two_processes()
    answered(here, "one")
    shown = ConversationRef.of(here.conversation)
    there.catch_up(shown)
    answered(there, "two")
    here.catch_up(shown)
    with pytest.raises(StaleConversation):
        here.send("three", OPTIONS)
    assert said(here) == ["one", "answer 1", "two", "answer 2"], "and now it shows what the history holds"


def test_a_question_sent_before_the_page_knows_that_the_last_answer_has_ended_follows_it() -> None:
    session = Session(scripted_chat())
    answered(session, "one")
    answered(session, "two")
    for place, text in ((-2, "three"), (-3, "four")):
        session.catch_up(ConversationRef(session.conversation.id, session.conversation.messages[place].id))
        answered(session, text)
    assert said(session)[::2] == ["one", "two", "three", "four"]


def test_an_answer_cut_off_with_its_process_is_gone_on_from() -> None:
    engine = ScriptedEngine(LONG, delay=0.005)
    chat = scripted_chat(engine)
    dying, other = Sessions(chat).open("tab"), Sessions(chat).open("tab")
    answering = dying.send("go on", OPTIONS)
    wait_for(lambda: answering.tokens >= 3)
    other.catch_up(ConversationRef.of(answering.turn.conversation))
    engine.answer, engine.delay = "Hello again.", 0.0
    answered(other, "are you there?")
    texts = said(other)
    assert (texts[0], *texts[2:]) == ("go on", "are you there?", "Hello again.")
    assert other.conversation.messages[1].finish_reason in ("partial", "cancelled")
    dying.stop()


@pytest.mark.parametrize("text", [None, "", " ", "a b c", " a", 7])
def test_what_no_page_wrote_is_no_place(text: object) -> None:
    assert ConversationRef.parse(text) == ConversationRef()
    assert ConversationRef.parse("id head") == ConversationRef("id", "head")
    assert ConversationRef.parse("id") == ConversationRef("id")


def test_an_id_opens_no_conversation_of_another_owner() -> None:
    chat = scripted_chat(ScriptedEngine("I am well."))
    sessions = Sessions(chat)
    hers = sessions.open("hers", owner="alice")
    answered(hers, "my secret plans")
    ref = ConversationRef.of(hers.conversation)
    for reloaded in (True, False):
        his = sessions.open(f"his {reloaded}", ref.conversation_id, reloaded, owner="mallory")
        his.catch_up(ref)
        assert his.conversation.messages == ()
        assert his.edit(hers.conversation.messages[0].id, "mine", OPTIONS) is None
        assert not his.save_feedback(Feedback(hers.conversation.messages[-1].id, 1), logged=True)
    sessions.close("hers")
    again = sessions.open("hers again", ref.conversation_id, owner="alice")
    assert said(again) == ["my secret plans", "I am well."]


def test_a_stale_tab_shows_the_newest_and_can_go_on() -> None:
    chat = scripted_chat()
    first, second = Session(chat), Session(chat)
    answered(first, "one")
    assert second.open(first.conversation.id)
    answered(second, "two")
    with pytest.raises(RuntimeError, match="gone on in another window"):
        first.send("three", AnswerOptions(OPTIONS.sampling))
    assert first.conversation.pairs() == second.conversation.pairs()
    answered(first, "three")
    assert [question for question, _ in first.conversation.pairs()] == ["one", "two", "three"]


def test_a_page_that_shows_an_erased_conversation_does_not_bring_it_back() -> None:
    chat = scripted_chat()
    session = Session(chat)
    answered(session, "to be deleted")
    chat.erase([session.conversation.id])
    with pytest.raises(RuntimeError, match="was deleted there"):
        session.send("still here?", OPTIONS)
    assert chat.history.list() == []
    assert session.send("a new one", OPTIONS).wait(60), "and the page can go on"


def test_an_engine_that_refuses_leaves_a_page_that_can_send_again() -> None:
    chat = scripted_chat(ScriptedEngine("A scripted answer."))
    assert isinstance(chat.engine, ScriptedEngine)
    session = Session(chat)
    answered(session, "one")
    chat.engine.refusal = ValueError("no room")
    for _ in range(2):
        with pytest.raises(ValueError, match="no room"):
            session.send("two", OPTIONS)
        with pytest.raises(ValueError, match="no room"):
            session.retry(session.conversation.messages[-1].id, OPTIONS)
    chat.engine.refusal = None
    answered(session, "two")
    assert session.conversation.pairs() == [["one", "A scripted answer."], ["two", "A scripted answer."]]


def test_beyond_this_machine_the_page_is_shared() -> None:
    from qlora_chat.server.site import Site
    from qlora_chat.settings import ServeSettings

    assert Site(ServeSettings("0.0.0.0", token="correct horse")).features.shared
    assert not Site(ServeSettings()).features.shared


def test_an_answer_that_is_being_saved_is_shown_once() -> None:
    saving, go_on = threading.Event(), threading.Event()

    class SlowHistory(MemoryHistory):
        def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
            saving.set()
            assert go_on.wait(60)
            super().finish(record, outgoing)

    chat = replace(scripted_chat(ScriptedEngine("An answer.")), history=SlowHistory())
    sessions = Sessions(chat)
    session = sessions.open("tab", "", False, None)
    answer = session.send("Hello?", OPTIONS)
    assert saving.wait(60)
    shown = MessageView(chat, sessions).newest(session.conversation.id, None, None)["items"]
    assert ["question" if 'class="question"' in each.get("html", "") else "live" for each in shown] == ["question", "live"]
    go_on.set()
    assert answer.wait(60)
    ended = MessageView(chat, sessions).newest(session.conversation.id, shown[0]["id"], None)["items"]
    assert [(each["text"], each.get("live", False)) for each in ended] == [("An answer.", False)]
