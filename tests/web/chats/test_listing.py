"""The list of conversations page by page, and what a search shows."""

from __future__ import annotations

from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.text_match import marked_ranges
from qlora_chat.messages import Conversation
from qlora_chat.web.chats.listing import PAGE, Page, clean_tags, clean_title, first_page, found, page_after
from tests.history.conftest import add_turn


def history_of(*questions: str) -> MemoryHistory:
    history = MemoryHistory(limit=10_000)
    for question in questions:
        add_turn(history, Conversation(), question, f"About {question}: a lighthouse.")
    return history


def ids_of(page: Page) -> list[str]:
    return [each.summary.id for each in page.entries]


def titles_of(page: Page) -> list[str]:
    return [each.summary.title for each in page.entries]


def test_pages_hold_every_conversation_once() -> None:
    history = history_of(*(f"number {number}" for number in range(2 * PAGE + 5)))
    page = first_page(history, None)
    ids = ids_of(page)
    while page.next:
        page = page_after(history, None, page.next)
        ids += ids_of(page)
    assert ids == [each.id for each in history.list()]


def test_a_list_that_has_been_scrolled_down_is_asked_for_anew_at_once() -> None:
    history = history_of(*(f"number {number}" for number in range(2 * PAGE + 5)))
    page = first_page(history, None, 2 * PAGE)
    assert ids_of(page) == [each.id for each in history.list()][: 2 * PAGE]
    assert len(page_after(history, None, page.next).entries) == 5
    assert len(first_page(history, None, -1).entries) == PAGE


def test_a_list_of_thousands_stays_as_far_as_it_was_scrolled() -> None:
    history = history_of(*(f"number {number}" for number in range(2_200)))
    assert len(first_page(history, None, 2_150).entries) == 2_150
    assert len(first_page(history, None, 10**30).entries) == 2_200


def test_pinned_conversations_come_with_the_first_page_only() -> None:
    history = history_of("old", *(f"number {number}" for number in range(PAGE)))
    old = history.list()[-1]
    history.change(old.id, tags=["pinned", "work"])
    page = first_page(history, None)
    assert page.entries[0].summary.title == "old"
    assert page.next
    assert old.id not in ids_of(page_after(history, None, page.next))


def test_a_search_shows_each_conversation_once_with_an_excerpt() -> None:
    history = history_of("one", "two lighthouses", "three")
    result = found(history, None, "LIGHTH", 10)
    assert titles_of(result) == ["two lighthouses", "three", "one"]
    assert all(each.hit and "lighthouse" in each.hit.excerpt and each.query == "LIGHTH" for each in result.entries)
    first = found(history, None, "lighth", 2)
    rest = found(history, None, "lighth", 2, first.next or "")
    assert [*titles_of(first), *titles_of(rest)] == ["two lighthouses", "three", "one"]
    assert rest.next is None
    assert found(history, None, "lighth", 2, "no number") == first
    assert found(history, None, "nothing", 10) == Page([], None)


def test_a_tag_is_searched_by_its_sign() -> None:
    history = history_of("one", "two")
    history.change(history.list()[0].id, tags=["work"])
    assert titles_of(found(history, None, "#work", 10)) == ["two"]


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
