"""What every store does alike: a tree of turns, a head that is compared and set, lists, search, erasure."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from qlora_chat.history import ConversationInfo, HistoryStore, StaleConversation, TurnRecord
from qlora_chat.messages import Conversation, FinishReason, Message
from qlora_chat.settings import Sampling


def opened(conversation: Conversation, question: str) -> Conversation:
    asked = conversation.adding(Message("user", question))
    return asked.adding(Message("assistant", "", (), "partial"))


def said(
    store: HistoryStore, conversation: Conversation, question: str, answer: str, reason: FinishReason = "stop"
) -> Conversation:
    """A whole turn, as chat.py makes it."""
    kept = store.save(opened(conversation, question), ConversationInfo("a-model", "an-adapter", {"temperature": 0.5}))
    done = kept.replacing_last(replace(kept.messages[-1], content=answer, ids=(5, 6), finish_reason=reason))
    store.finish(TurnRecord(done, f"### Human: {question}### Assistant:", Sampling(seed=3)))
    return replace(done, head=done.messages[-1].id)


def loaded(store: HistoryStore, conversation: Conversation) -> Conversation:
    found = store.load(conversation.id)
    assert found is not None
    return found


def test_a_conversation_comes_back_as_it_was(store: HistoryStore) -> None:
    start = Conversation(system="Be brief. Grüße!")
    talk = said(store, start, "Hi\0 there \U0001f600", "Hello.\n```\ncode\n```")
    talk = said(store, talk, "More?", "No.")
    found = loaded(store, talk)
    assert [message.content.replace("\u2400", "\0") for message in found.messages] == [m.content for m in talk.messages]
    assert [message.id for message in found.messages] == [message.id for message in talk.messages]
    assert found.messages[1].ids == (5, 6)
    assert found.messages[1].finish_reason == "stop"
    assert (found.system, found.head) == ("Be brief. Grüße!", talk.messages[-1].id)


def test_the_question_is_there_before_the_answer_which_is_marked(store: HistoryStore) -> None:
    kept = store.save(opened(Conversation(), "Hi"))
    found = loaded(store, kept)
    assert [(message.content, message.finish_reason) for message in found.messages] == [("Hi", None), ("", "partial")]


def test_an_edit_is_a_branch_and_nothing_is_lost(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "one", "first answer")
    edited = said(store, talk.without_last_exchange(), "one, edited", "second answer")
    assert loaded(store, talk).pairs() == [["one, edited", "second answer"]]
    tree = store.read(talk.id)
    assert tree is not None
    assert [turn.message.content for turn in tree.turns] == ["one", "first answer", "one, edited", "second answer"]
    assert [turn.parent_id for turn in tree.turns] == [None, talk.messages[0].id, None, edited.messages[0].id]
    assert tree.summary.turns == 4


def test_a_stale_page_overwrites_nothing(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "one", "1")
    newer = said(store, talk, "two", "2")
    with pytest.raises(StaleConversation):
        store.save(opened(talk, "from an old page"))
    with pytest.raises(StaleConversation):
        store.save(talk.without_last_exchange())
    assert loaded(store, talk).pairs() == newer.pairs()
    tree = store.read(talk.id)
    assert tree is not None
    assert len(tree.turns) == 4, "not even as a branch"


def test_of_two_pages_that_go_on_at_once_one_wins(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "one", "1")
    outcomes: list[str] = []

    def go_on(text: str) -> None:
        try:
            store.save(opened(talk, text))
            outcomes.append(text)
        except StaleConversation:
            outcomes.append("stale")

    threads = [threading.Thread(target=go_on, args=(f"page {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("stale") == 7
    winner = next(each for each in outcomes if each != "stale")
    assert loaded(store, talk).messages[2].content == winner


def test_a_turn_that_could_not_be_opened_is_added_whole(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "one", "1")
    unopened = opened(talk, "two")
    done = unopened.replacing_last(replace(unopened.messages[-1], content="2", finish_reason="stop"))
    store.finish(TurnRecord(done, "prompt", Sampling()))
    assert loaded(store, talk).pairs() == [["one", "1"], ["two", "2"]]


def test_an_answer_that_ends_after_the_erasure_does_not_bring_anything_back(store: HistoryStore) -> None:
    kept = store.save(opened(Conversation(), "Hi"))
    assert store.erase([kept.id]) == 1
    done = kept.replacing_last(replace(kept.messages[-1], content="late", finish_reason="stop"))
    store.finish(TurnRecord(done, "prompt", Sampling()))
    assert store.load(kept.id) is None
    assert store.search("late") == []


def test_lists_show_the_newest_change_first(store: HistoryStore) -> None:
    first = said(store, Conversation(), "What is   the capital\nof France?", "Paris.")
    second = said(store, Conversation(), "x" * 100, "y")
    assert [each.id for each in store.list()] == [second.id, first.id]
    said(store, first, "And of Spain?", "Madrid.")
    listed = store.list()
    assert [each.id for each in listed] == [first.id, second.id]
    assert listed[0].title == "What is the capital of France?"
    assert len(listed[1].title) <= 60
    assert (listed[0].turns, listed[0].model, listed[0].adapter) == (4, "a-model", "an-adapter")
    assert len(store.list(limit=1)) == 1


def test_renaming_and_tagging(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "one", "1")
    assert store.change(talk.id, title="Mine", tags=["work", "Ärger"])
    assert not store.change("nobody", title="x")
    summary = store.list()[0]
    assert (summary.title, summary.tags) == ("Mine", ("work", "Ärger"))
    said(store, talk, "two", "2")
    assert store.list()[0].title == "Mine"
    assert loaded(store, talk).tags == ("work", "Ärger")


def test_search_finds_words_whatever_case_and_accents_and_beginnings(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "Where is the Café in Zürich?", "It closed. " * 50 + "The lighthouse remains.")
    said(store, Conversation(), "unrelated", "words")
    for asked in ("cafe", "ZURICH café", "zür", "is where", "lightho"):
        assert [hit.conversation_id for hit in store.search(asked)] == [talk.id], asked
    hit = store.search("lighthouse")[0]
    assert "lighthouse" in hit.excerpt
    assert len(hit.excerpt) < 200
    assert hit.role == "assistant"
    for nothing in ("", "  ", "!?", "café nowhere", "house", '"', "NEAR(", "a* OR b"):
        assert store.search(nothing) == [], nothing


def test_search_finds_words_of_scripts_without_spaces_wherever_they_stand(store: HistoryStore) -> None:
    chinese = said(store, Conversation(), "北京的天气怎么样", "今天很冷" * 60 + "。明天会下雪")
    japanese = said(store, Conversation(), "東京タワーの高さは", "333メートル")
    thai = said(store, Conversation(), "กรุงเทพอยู่ที่ไหน", "ok")
    hindi = said(store, Conversation(), "हिन्दी में", "ok")
    for asked, talk in (
        ("天气", chinese), ("气怎么", chinese), ("下雪 明天", chinese), ("タワー", japanese), ("高さ", japanese),
        ("メートル 333", japanese), ("ﾀﾜｰ", japanese), ("อยู่", thai), ("ที่ไหน", thai), ("हिन्दी", hindi),
    ):  # fmt: skip
        assert [hit.conversation_id for hit in store.search(asked)] == [talk.id], asked
    assert "下雪" in store.search("下雪")[0].excerpt, "deep in a text without a space"
    for nothing in ("气天", "京天", "高タ", "ไหนอยู่"):
        assert store.search(nothing) == [], "its letters, but not in that order"
    said(store, chinese, "还有呢", "没有")
    assert store.erase([chinese.id]) == 1
    assert store.search("天气") == []


def test_search_gives_the_newest_first_and_at_most_so_many(store: HistoryStore) -> None:
    talks = [said(store, Conversation(), f"common number{index}", "ok") for index in range(5)]
    assert [hit.conversation_id for hit in store.search("common", limit=3)] == [each.id for each in talks[:1:-1]]


def test_a_list_can_be_of_one_owner(store: HistoryStore) -> None:
    mine, other = Conversation(), Conversation()
    store.save(opened(mine, "secret plans"), ConversationInfo(owner="me"))
    store.save(opened(other, "secret plans too"), ConversationInfo(owner="you"))
    assert [each.id for each in store.list(owner="me")] == [mine.id]
    assert len(store.list()) == 2
    assert [hit.conversation_id for hit in store.search("secret", owner="you")] == [other.id]


def test_feedback_stays_with_its_turn(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "one", "1")
    turn_id = talk.messages[-1].id
    assert store.feedback(talk.id, turn_id, 1)
    assert store.feedback(talk.id, turn_id, -1, "better", "too short")
    assert not store.feedback(talk.id, "nobody", 1)
    assert not store.feedback("nobody", turn_id, 1)
    tree = store.read(talk.id)
    assert tree is not None
    assert [(each.turn_id, each.rating, each.edited, each.comment) for each in tree.feedback] == [
        (turn_id, 1, None, None),
        (turn_id, -1, "better", "too short"),
    ]
    with pytest.raises(ValueError, match="rating is 5"):
        store.feedback(talk.id, turn_id, 5)


def test_what_was_read_can_be_restored_elsewhere(store: HistoryStore) -> None:
    talk = said(store, Conversation(system="s"), "one", "1")
    said(store, talk.without_last_exchange(), "other", "2")
    store.feedback(talk.id, talk.messages[-1].id, 1)
    kept = store.read(talk.id)
    assert kept is not None
    assert not store.restore(kept), "it is there already"
    store.erase([talk.id])
    assert store.restore(kept)
    again = store.read(talk.id)
    assert again is not None
    assert again == kept
    assert [hit.turn_id for hit in store.search("other")] == [kept.turns[2].message.id]


def test_erasing_says_how_many_there_were(store: HistoryStore) -> None:
    talks = [said(store, Conversation(), f"word{index}", "ok") for index in range(3)]
    assert store.erase([talks[0].id, talks[1].id, "nobody"]) == 2
    assert [each.id for each in store.list()] == [talks[2].id]
    assert store.search("word0") == []
    assert store.load(talks[0].id) is None
    assert store.read(talks[0].id) is None


def test_the_settings_and_facts_of_an_answer_are_kept(store: HistoryStore) -> None:
    talk = said(store, Conversation(), "one", "1")
    kept = store.read(talk.id)
    assert kept is not None
    assert kept.settings == {"temperature": 0.5}
    assert kept.turns[1].details["seed"] == 3
