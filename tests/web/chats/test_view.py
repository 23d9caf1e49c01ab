"""The list of conversations as HTML: what a person wrote is text in it, and is marked as their own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from qlora_chat.history import SearchHit, Summary
from qlora_chat.history.importing.importer import ImportReport
from qlora_chat.web.chats.listing import Entry, Page
from qlora_chat.web.chats.view import MAX_PROBLEMS, page, report_in_words, row

HOSTILE = "<img src=x onerror='window.hacked=1'>\"><script>alert(1)</script>&amp;"
WHEN = datetime.fromtimestamp(1_700_000_000, UTC)
LISBON = Summary("a1", "Lisbon", (), None, None, 2, WHEN, WHEN)


class Parsed(HTMLParser):
    """Elements as (tag, attributes), and for each class the text within."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        self._open.append(values.get("class", "").partition(" ")[0] or tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for each in self._open:
            self.said[each] = self.said.get(each, "") + data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [values for name, values in self.elements if name == tag]


def parsed(*, excerpt: str = "", turn: str = "", query: str = "", **changes: Any) -> Parsed:
    hit = SearchHit("a1", "", turn, "user", excerpt, WHEN) if excerpt or turn else None
    return Parsed(row(Entry(replace(LISBON, **changes), query, hit)))


@pytest.mark.parametrize("part", ["title", "excerpt", "tags", "id", "turn"])
def test_what_a_person_wrote_is_text(part: str) -> None:
    shown = parsed(**{"query": "img", "title": "x", part: (HOSTILE,) if part == "tags" else HOSTILE})
    assert {tag for tag, _ in shown.elements} <= {"div", "button", "span", "mark"}
    assert [name for _, values in shown.elements for name in values if name.startswith("on")] == []
    if part in ("title", "excerpt"):
        assert shown.said[f"chat-{part}"] == HOSTILE


def test_a_row_says_what_the_browser_needs_to_know() -> None:
    shown = parsed(turn="t7", tags=("pinned", "work", "far away"))
    assert shown.attributes("div")[0] == {
        "class": "chat-row", "data-chat": "a1", "data-updated": "1700000000000", "data-turn": "t7", "data-pinned": "",
    }  # fmt: skip
    assert shown.said["chat-tags"] == "#work#far away"
    opens, menu = shown.attributes("button")
    assert opens["class"] == "chat-open"
    assert (menu["aria-label"], menu["popovertarget"]) == ("Menu of Lisbon", "chat-menu")


def test_what_is_a_persons_own_is_not_translated() -> None:
    """static/language.js leaves the texts and attributes of these elements alone."""
    shown = parsed(title="Settings", excerpt="Send", tags=("Stop",))
    own = {values["class"] for values in shown.attributes("span") if "class" in values}
    assert own == {"chat-title own", "chat-excerpt own", "chat-tags own"}


def test_a_conversation_without_a_title_has_a_name_to_show() -> None:
    shown = parsed(title="")
    assert shown.attributes("span")[0] == {"class": "chat-title", "data-empty": "Untitled"}
    assert shown.attributes("button")[1]["aria-label"] == "Menu of a conversation without a title"


def test_marks_stand_around_characters_of_any_size() -> None:
    shown = row(Entry(replace(LISBON, title="a 😀 b <c>"), "😀 c"))
    assert "a <mark>😀</mark> b &lt;<mark>c</mark>&gt;</span>" in shown


def test_a_page_has_its_rows_in_order() -> None:
    shown = page(Page([Entry(LISBON), Entry(replace(LISBON, id="b2"))], "b2"))
    assert shown["next"] == "b2"
    assert [each["data-chat"] for each in Parsed(shown["rows"]).attributes("div")] == ["a1", "b2"]


def test_an_import_is_reported_in_sentences() -> None:
    report = ImportReport(added=1_200, there=1, left_out=Counter({"no question": 2}), problems=["/tmp/x/file, line 2: bad"])
    assert report_in_words(report, "/tmp/x/file", "mine.json") == [
        "1,200 added", "1 was there already", "2 left out (no question)", "mine.json, line 2: bad",
    ]  # fmt: skip
    many = report_in_words(ImportReport(there=3, problems=["bad"] * (MAX_PROBLEMS + 5)), "p", "n")
    assert (many[:2], many[-1], len(many)) == (["0 added", "3 were there already"], "and 5 more", MAX_PROBLEMS + 3)
