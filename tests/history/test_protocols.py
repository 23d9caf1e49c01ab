"""Behaviour of every store: a tree of turns, a head that is compared and set, lists, search, erasure."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from qlora_chat.history import ConversationInfo, Feedback, HistoryStore, StaleConversation, TurnRecord, Vote
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling
from tests.history.conftest import add_turn, compared, vote_on, with_open_answer


def loaded(store: HistoryStore, conversation: Conversation) -> Conversation:
    current = store.load(conversation.id)
    assert current is not None
    return current


def test_a_saved_conversation_is_loaded_unchanged(store: HistoryStore) -> None:
    start = Conversation(system="Be brief. Grüße!")
    talk = add_turn(store, start, "Hi\0 there \U0001f600", "Hello.\n```\ncode\n```")
    talk = add_turn(store, talk, "More?", "No.")
    current = loaded(store, talk)
    assert [message.content.replace("\u2400", "\0") for message in current.messages] == [m.content for m in talk.messages]
    assert [message.id for message in current.messages] == [message.id for message in talk.messages]
    assert current.messages[1].ids == (5, 6)
    assert current.messages[1].finish_reason == "stop"
    assert (current.system, current.head) == ("Be brief. Grüße!", talk.messages[-1].id)


def test_the_question_is_stored_before_the_answer_which_is_marked_as_partial(store: HistoryStore) -> None:
    stored = store.save(with_open_answer(Conversation(), "Hi"))
    current = loaded(store, stored)
    assert [(message.content, message.finish_reason) for message in current.messages] == [("Hi", None), ("", "partial")]


def test_an_edit_is_a_branch_and_nothing_is_lost(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "first answer")
    edited = add_turn(store, talk.without_last_exchange(), "one, edited", "second answer")
    assert loaded(store, talk).pairs() == [["one, edited", "second answer"]]
    tree = store.read(talk.id)
    assert tree is not None
    assert [turn.message.content for turn in tree.turns] == ["one", "first answer", "one, edited", "second answer"]
    assert [turn.parent_id for turn in tree.turns] == [None, talk.messages[0].id, None, edited.messages[0].id]
    assert tree.summary.turns == 4


def test_a_stale_page_overwrites_nothing(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "1")
    newer = add_turn(store, talk, "two", "2")
    with pytest.raises(StaleConversation):
        store.save(with_open_answer(talk, "from an old page"))
    with pytest.raises(StaleConversation):
        store.save(talk.without_last_exchange())
    assert loaded(store, talk).pairs() == newer.pairs()
    tree = store.read(talk.id)
    assert tree is not None
    assert len(tree.turns) == 4, "not even as a branch"


def test_one_of_several_concurrent_pages_wins(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "1")
    outcomes: list[str] = []

    def go_on(text: str) -> None:
        try:
            store.save(with_open_answer(talk, text))
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
    talk = add_turn(store, Conversation(), "one", "1")
    unopened = with_open_answer(talk, "two")
    done = unopened.replacing_last(replace(unopened.messages[-1], content="2", finish_reason="stop"))
    store.finish(TurnRecord(done, "prompt", Sampling()))
    assert loaded(store, talk).pairs() == [["one", "1"], ["two", "2"]]


def test_a_turn_that_could_not_be_opened_is_a_branch_if_the_conversation_went_on(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "1")
    unopened = with_open_answer(talk, "two")
    add_turn(store, talk, "two, elsewhere", "another 2")
    done = unopened.replacing_last(replace(unopened.messages[-1], content="2", finish_reason="stop"))
    store.finish(TurnRecord(done, "prompt", Sampling()))
    assert loaded(store, talk).pairs() == [["one", "1"], ["two, elsewhere", "another 2"]]
    tree = store.read(talk.id)
    assert tree is not None
    assert [turn.message.content for turn in tree.turns][-2:] == ["two", "2"]


def test_an_answer_that_ends_after_the_erasure_restores_nothing(store: HistoryStore) -> None:
    stored = store.save(with_open_answer(Conversation(), "Hi"))
    assert store.erase([stored.id]) == 1
    done = stored.replacing_last(replace(stored.messages[-1], content="late", finish_reason="stop"))
    store.finish(TurnRecord(done, "prompt", Sampling()))
    assert store.load(stored.id) is None
    assert store.search("late") == []


def test_lists_show_the_newest_change_first(store: HistoryStore) -> None:
    first = add_turn(store, Conversation(), "What is   the capital\nof France?", "Paris.")
    second = add_turn(store, Conversation(), "x" * 100, "y")
    assert [each.id for each in store.list()] == [second.id, first.id]
    add_turn(store, first, "And of Spain?", "Madrid.")
    listed = store.list()
    assert [each.id for each in listed] == [first.id, second.id]
    assert listed[0].title == "What is the capital of France?"
    assert len(listed[1].title) <= 60
    assert (listed[0].turns, listed[0].model, listed[0].adapter) == (4, "a-model", "an-adapter")
    assert len(store.list(limit=1)) == 1


def test_title_and_tags_can_be_changed(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "1")
    assert store.change(talk.id, title="Mine", tags=["work", "Ärger"])
    assert not store.change("nobody", title="x")
    summary = store.list()[0]
    assert (summary.title, summary.tags) == ("Mine", ("work", "Ärger"))
    add_turn(store, talk, "two", "2")
    assert store.list()[0].title == "Mine"
    assert loaded(store, talk).tags == ("work", "Ärger")


def test_search_ignores_case_and_accents_and_matches_prefixes(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "Where is the Café in Zürich?", "It closed. " * 50 + "The lighthouse remains.")
    add_turn(store, Conversation(), "unrelated", "words")
    for query in ("cafe", "ZURICH café", "zür", "is where", "lightho"):
        assert [hit.conversation_id for hit in store.search(query)] == [talk.id], query
    hit = store.search("lighthouse")[0]
    assert "lighthouse" in hit.excerpt
    assert len(hit.excerpt) < 200
    assert hit.role == "assistant"
    for nothing in ("", "  ", "!?", "café nowhere", "house", '"', "NEAR(", "a* OR b"):
        assert store.search(nothing) == [], nothing


def test_emoji_and_other_single_characters_are_found(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "Is it 5 € or C++ 😀?", "It is 👩‍👧 & x, or a_b.")
    add_turn(store, Conversation(), "unrelated", "words")
    for query in ("😀", "€", "++", "&", "x", "5", "👩‍👧", "👧", "_", "it € 5", "it _"):
        assert {hit.conversation_id for hit in store.search(query)} == {talk.id}, query
    assert "😀" in store.search("😀")[0].excerpt
    for nothing in ("😁", "¥", "€ nowhere"):
        assert store.search(nothing) == [], nothing


def test_search_finds_words_anywhere_in_scripts_without_spaces(store: HistoryStore) -> None:
    chinese = add_turn(store, Conversation(), "北京的天气怎么样", "今天很冷" * 60 + "。明天会下雪")
    japanese = add_turn(store, Conversation(), "東京タワーの高さは", "333メートル")
    thai = add_turn(store, Conversation(), "กรุงเทพอยู่ที่ไหน", "ok")
    hindi = add_turn(store, Conversation(), "हिन्दी में", "ok")
    for query, talk in (
        ("天气", chinese), ("气怎么", chinese), ("下雪 明天", chinese), ("タワー", japanese), ("高さ", japanese),
        ("メートル 333", japanese), ("ﾀﾜｰ", japanese), ("อยู่", thai), ("ที่ไหน", thai), ("हिन्दी", hindi),
    ):  # fmt: skip
        assert [hit.conversation_id for hit in store.search(query)] == [talk.id], query
    assert "下雪" in store.search("下雪")[0].excerpt, "deep in a text without a space"
    for nothing in ("气天", "京天", "高タ", "ไหนอยู่"):
        assert store.search(nothing) == [], "its letters, but not in that order"
    add_turn(store, chinese, "还有呢", "没有")
    assert store.erase([chinese.id]) == 1
    assert store.search("天气") == []


def test_search_returns_the_newest_turns_up_to_the_limit(store: HistoryStore) -> None:
    talks = [add_turn(store, Conversation(), f"common number{index}", "ok") for index in range(5)]
    assert [hit.conversation_id for hit in store.search("common", limit=3)] == [each.id for each in talks[:1:-1]]


def test_list_and_search_can_be_limited_to_an_owner(store: HistoryStore) -> None:
    mine, other = Conversation(), Conversation()
    store.save(with_open_answer(mine, "secret plans"), ConversationInfo(owner="me"))
    store.save(with_open_answer(other, "secret plans too"), ConversationInfo(owner="you"))
    assert [each.id for each in store.list(owner="me")] == [mine.id]
    assert len(store.list()) == 2
    assert [hit.conversation_id for hit in store.search("secret", owner="you")] == [other.id]


def test_a_named_conversation_is_found_until_it_is_erased_and_a_name_is_given_once(store: HistoryStore) -> None:
    first, second = (with_open_answer(Conversation(), text) for text in ("one", "two"))
    store.save(first, ConversationInfo(name_key="key"))
    with pytest.raises(StaleConversation):
        store.save(second, ConversationInfo(name_key="key"))
    assert store.find_named("key") == first.id
    assert store.find_named("another") is None
    store.erase([first.id])
    assert store.find_named("key") is None
    store.save(second, ConversationInfo(name_key="key"))
    assert store.find_named("key") == second.id


def test_a_list_is_read_page_by_page(store: HistoryStore) -> None:
    talks = [add_turn(store, Conversation(), f"talk {number}", "ok") for number in range(7)]
    newest_first = [each.id for each in reversed(talks)]
    found: list[str] = []
    while page := store.list(limit=3, before=found[-1] if found else None):
        found += [each.id for each in page]
    assert found == newest_first
    assert store.list(before="nobody") == []


def test_a_list_of_one_tag(store: HistoryStore) -> None:
    talks = [add_turn(store, Conversation(), f"talk {number}", "ok") for number in range(4)]
    for talk, tags in ((talks[0], ["pinned"]), (talks[2], ['Ärger "100 %"', "pinned"]), (talks[3], ["pin", "100"])):
        store.change(talk.id, tags=tags)
    assert [each.id for each in store.list(tag="pinned")] == [talks[2].id, talks[0].id]
    assert [each.id for each in store.list(tag="pinned", limit=1)] == [talks[2].id]
    assert [each.id for each in store.list(tag="pinned", before=talks[2].id)] == [talks[0].id]
    assert [each.id for each in store.list(tag='Ärger "100 %"')] == [talks[2].id]
    assert store.list(tag="%") == []


def test_a_summary_is_for_its_owner(store: HistoryStore) -> None:
    mine = add_turn(store, Conversation(), "mine", "ok")
    store.save(with_open_answer(Conversation(id="theirs"), "hello"), ConversationInfo(owner="you"))
    summary = store.summary(mine.id)
    assert summary is not None
    assert (summary.id, summary.title) == (mine.id, "mine")
    assert store.summary("theirs", owner="you")
    assert store.summary("theirs", owner="me") is None
    assert store.summary("nobody") is None
    assert store.summary("nobody", owner="me") is None


def test_a_restored_conversation_is_its_owners(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "1")
    stored = store.read(talk.id)
    assert stored
    store.erase([talk.id])
    assert store.restore(stored, owner="me")
    assert [each.id for each in store.list(owner="me")] == [talk.id]
    assert not store.list(owner="you")


def test_a_hidden_conversation_is_in_no_list_and_can_come_back(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "find me", "1")
    other = add_turn(store, Conversation(), "find me too", "1")
    store.change(talk.id, tags=["pinned"])
    assert store.hide(talk.id)
    assert not store.hide("nobody")
    assert [each.id for each in store.list()] == [other.id]
    assert store.list(tag="pinned") == []
    assert {hit.conversation_id for hit in store.search("find")} == {other.id}
    assert store.search("🙂 find") == []
    assert [*store.hidden()] == [talk.id]
    assert store.summary(talk.id)
    assert store.hide(talk.id, False)
    assert {each.id for each in store.list()} == {talk.id, other.id}
    assert len(store.search("find")) == 2
    assert store.hidden() == {}
    assert loaded(store, talk).tags == ("pinned",)


def test_a_hidden_conversation_can_be_erased_unless_it_has_gone_on(store: HistoryStore) -> None:
    talk, other = (add_turn(store, Conversation(), f"find {number}", "1") for number in range(2))
    for each in (talk, other):
        assert store.hide(each.id)
    since = store.hidden()
    add_turn(store, other, "more", "2")
    assert store.erase([talk.id], unchanged_since=since[talk.id]) == 1
    assert store.erase([other.id], unchanged_since=since[other.id]) == 0
    assert [*store.hidden()] == [other.id]


def test_feedback_stays_with_its_turn(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "1")
    turn_id = talk.messages[-1].id
    assert store.add_feedback(talk.id, Feedback(turn_id, 1))
    assert store.add_feedback(talk.id, Feedback(turn_id, -1, "better", "too short"))
    assert not store.add_feedback(talk.id, Feedback("nobody", 1))
    assert not store.add_feedback("nobody", Feedback(turn_id, 1))
    tree = store.read(talk.id)
    assert tree is not None
    assert [(each.turn_id, each.rating, each.edited, each.comment) for each in tree.feedback] == [
        (turn_id, 1, None, None),
        (turn_id, -1, "better", "too short"),
    ]
    with pytest.raises(ValueError, match="rating is 5"):
        store.add_feedback(talk.id, Feedback(turn_id, 5))


def test_votes_stay_with_their_answers(store: HistoryStore) -> None:
    talk, other = compared(store, "A.", "B.", owner="me"), compared(store, "C.", "D.", owner="you")
    votes = [vote_on(store, talk, 1, blind=True), vote_on(store, other, None)]
    for each, vote in zip((talk, other), votes, strict=True):
        assert store.add_vote(each.id, vote)
        assert not store.add_vote(talk.id if each is other else other.id, vote), "not its answers"
    stored = store.read(talk.id)
    assert stored
    assert (stored.votes, [each.finish_reason for each in stored.conversation().messages]) == ((votes[0],), [None, "stop"])
    assert [*store.votes()] == votes
    assert [*store.votes(owner="you")] == votes[1:]
    assert store.hide(talk.id)
    assert [*store.votes()] == votes[1:]
    assert store.erase([talk.id, other.id]) == 2
    assert not store.votes()
    with pytest.raises(ValueError, match="chosen must be one of the answers"):
        Vote(votes[0].answers, "best", "nobody")


def test_a_read_conversation_can_be_restored(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(system="s"), "one", "1")
    add_turn(store, talk.without_last_exchange(), "other", "2")
    store.add_feedback(talk.id, Feedback(talk.messages[-1].id, 1))
    assert store.add_vote(talk.id, vote_on(store, talk, 1))
    stored = store.read(talk.id)
    assert stored is not None
    assert not store.restore(stored), "it is there already"
    store.erase([talk.id])
    assert store.restore(stored)
    again = store.read(talk.id)
    assert again is not None
    assert again == stored
    assert [hit.turn_id for hit in store.search("other")] == [stored.turns[2].message.id]


def test_erase_returns_how_many_conversations_existed(store: HistoryStore) -> None:
    talks = [add_turn(store, Conversation(), f"word{index}", "ok") for index in range(3)]
    assert store.erase([talks[0].id, talks[1].id, "nobody"]) == 2
    assert [each.id for each in store.list()] == [talks[2].id]
    assert store.search("word0") == []
    assert store.load(talks[0].id) is None
    assert store.read(talks[0].id) is None


def test_settings_and_answer_metadata_are_stored(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "one", "1")
    stored = store.read(talk.id)
    assert stored is not None
    assert stored.settings == {"temperature": 0.5}
    assert stored.turns[1].details["seed"] == 3
