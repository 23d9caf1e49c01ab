"""The list of conversations page by page, and what a search shows."""

from __future__ import annotations

from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.text_match import marked_ranges
from qlora_chat.messages import Conversation
from qlora_chat.web.chats.listing import PAGE, clean_tags, clean_title, first_page, found, page_after
from tests.history.conftest import add_turn


def history_of(*questions: str) -> MemoryHistory:
    history = MemoryHistory(limit=10_000)
    for question in questions:
        add_turn(history, Conversation(), question, f"About {question}: a lighthouse.")
    return history


def test_pages_hold_every_conversation_once() -> None:
    history = history_of(*(f"number {number}" for number in range(2 * PAGE + 5)))
    page = first_page(history, None)
    ids = [each["id"] for each in page["chats"]]
    while page["next"]:
        page = page_after(history, None, page["next"])
        ids += [each["id"] for each in page["chats"]]
    assert ids == [each.id for each in history.list()]


def test_a_list_that_has_been_scrolled_down_is_asked_for_anew_at_once() -> None:
    history = history_of(*(f"number {number}" for number in range(2 * PAGE + 5)))
    page = first_page(history, None, 2 * PAGE)
    assert [each["id"] for each in page["chats"]] == [each.id for each in history.list()][: 2 * PAGE]
    assert len(page_after(history, None, page["next"])["chats"]) == 5
    assert len(first_page(history, None, -1)["chats"]) == PAGE


def test_a_list_of_thousands_stays_as_far_as_it_was_scrolled() -> None:
    history = history_of(*(f"number {number}" for number in range(2_200)))
    assert len(first_page(history, None, 2_150)["chats"]) == 2_150
    assert len(first_page(history, None, 10**30)["chats"]) == 2_200


def test_pinned_conversations_come_with_the_first_page_only() -> None:
    history = history_of("old", *(f"number {number}" for number in range(PAGE)))
    old = history.list()[-1]
    history.change(old.id, tags=["pinned", "work"])
    page = first_page(history, None)
    top = page["chats"][0]
    assert (top["title"], top["tags"], top["pinned"]) == ("old", ["work"], True)
    assert page["next"]
    assert old.id not in [each["id"] for each in page_after(history, None, page["next"])["chats"]]


def test_a_search_shows_each_conversation_once_with_an_excerpt() -> None:
    history = history_of("one", "two lighthouses", "three")
    result = found(history, None, "LIGHTH", 10)
    assert [each["title"] for each in result["chats"]] == ["two lighthouses", "three", "one"]
    top = result["chats"][0]
    assert [top["title"][begin:end] for begin, end in top["title_marks"]] == ["lighthouses"]
    assert {top["excerpt"][begin:end] for begin, end in top["marks"]} <= {"lighthouses", "lighthouse"}
    first = found(history, None, "lighth", 2)
    rest = found(history, None, "lighth", 2, first["next"])
    assert [each["title"] for each in [*first["chats"], *rest["chats"]]] == ["two lighthouses", "three", "one"]
    assert rest["next"] is None
    assert found(history, None, "lighth", 2, "no number")["chats"] == first["chats"]
    assert found(history, None, "nothing", 10) == {"chats": [], "next": None}


def test_a_tag_is_searched_by_its_sign() -> None:
    history = history_of("one", "two")
    history.change(history.list()[0].id, tags=["work"])
    assert [each["title"] for each in found(history, None, "#work", 10)["chats"]] == ["two"]


def test_titles_and_tags_are_cleaned() -> None:
    assert clean_title("  a\n b " + "x" * 500) == ("a b " + "x" * 500)[:200]
    assert clean_title(None) == ""
    assert clean_tags(" #work ,work,,a\tb") == ["work", "a b"]


def test_marks_cover_words_prefixes_and_symbols() -> None:
    def marked(line: str, query: str) -> list[str]:
        return [line[begin:end] for begin, end in marked_ranges(line, query)]

    assert marked("The Café in Zürich", "cafe zur") == ["Café", "Zürich"]
    assert marked("今天天气很好", "天气") == ["天气"]
    assert marked("5 € and 6 €", "€") == ["€", "€"]
    assert marked("nothing here", "absent") == []
