"""Messages as HTML: what is said by whom, what may be pressed, and hostile text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from qlora_chat.web.markdown import render_blocks
from qlora_chat.web.message_list import article
from qlora_chat.web.message_list.article import Mark

HOSTILE = '"><img src=x onerror=alert(1)>&amp;'
TAGS = re.compile(r"</?(\w+)")


class _Elements(HTMLParser):
    """Names of the elements of an HTML text, and of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def an_answer(text: str = "An **answer**.", versions: tuple[str, ...] = ("a",), **values: object) -> str:
    given = {"rating": None, "ending": "", "facts": "", "has_details": False, **values}
    return article.answer("a", render_blocks(text), versions, **given)  # type: ignore[arg-type]


def test_a_question_is_shown_as_it_was_written() -> None:
    html = article.question("id", "What is <b>?\n  *indented* & \\(a\\)", ["id"])
    assert '<div class="body own" dir="auto">What is &lt;b&gt;?\n  *indented* &amp; \\(a\\)</div>' in html
    assert "fold" not in html


@pytest.mark.parametrize(
    "html",
    [
        article.question(HOSTILE, HOSTILE, ["x", HOSTILE, "y"]),
        article.question("id", HOSTILE * 100, ["id"]),
        article.question("id", "\n".join([HOSTILE] * 100), ["id"]),
        an_answer(HOSTILE, facts=article.facts_line(HOSTILE, [HOSTILE])),
        an_answer(ending=article.ended(HOSTILE, goes_on=True)),
        article.details([("Model", HOSTILE), (HOSTILE, HOSTILE)], frozenset({"Model"})),
        article.note_html(HOSTILE, "alert"),
    ],
)
def test_nobody_s_text_becomes_markup(html: str) -> None:
    assert "<img" not in html
    elements = _Elements()
    elements.feed(html)
    assert elements.names
    assert "img" not in elements.names
    assert not elements.attributes & {"onerror", "src"}, "no attribute ends early"


def test_a_long_question_has_its_rest_folded() -> None:
    lines = [f"line {number}" for number in range(100)]
    html = article.question("id", "\n".join(lines), ["id"])
    beginning, rest = re.findall(r'<span>(line.*?)</span><span class="rest">(.*?)</span>', html, re.DOTALL)[0]
    assert beginning.split("\n") == lines[: article.MOST_LINES]
    assert beginning + rest == "\n".join(lines)
    assert "Show all 789 characters" in html
    one_line = article.question("id", "x" * 1501, ["id"])
    assert f'<span>{"x" * 1500}</span><span class="rest">x</span>' in one_line
    assert "fold" not in article.question("id", "x" * 1500, ["id"])


def test_versions_lead_to_their_neighbours() -> None:
    html = an_answer(versions=("first", "a", "last"))
    assert '<span class="count">2/3</span>' in html
    assert re.findall(r'data-event="select" value="(\w+)"', html) == ["first", "last"]
    assert an_answer(versions=("a", "last")).count('aria-disabled="true"') == 1
    assert "count" not in an_answer()


def test_thumbs_continue_and_details_are_there_where_they_mean_something() -> None:
    for rating, template in ((None, "unrated"), (1, "rated-good"), (-1, "rated-bad")):
        assert f'data-template="{template}"' in an_answer(rating=rating)
    assert "details-act" not in an_answer()
    assert "details-act" in an_answer(has_details=True)
    assert "continue-act" in article.ended("Stopped.", goes_on=True)
    assert "continue-act" not in article.ended("Ended by an error.", goes_on=False)
    assert article.ended("", goes_on=True) == ""


def test_names_are_not_translated() -> None:
    assert article.facts_line("Settings", ["5 tokens", "", "stop"]) == (
        '<span class="own">Settings</span> · <span>5 tokens</span> · <span>stop</span>'
    )
    html = article.details([("Model", "none"), ("Device", "cpu")], frozenset({"Model"}))
    assert '<dd class="own">none</dd>' in html
    assert article.details([], frozenset()) == ""


@pytest.mark.parametrize(
    ("text", "at", "before"),
    [
        ("one two", 4, "one "),
        ("one two", 0, ""),
        ("one two", 99, "one two"),
        ("a **b** & <c> d", 5, "a b &"),
        ("a **b** & <c> d", 8, "a b & <c"),
        ("😀😀x", 2, "😀😀"),
        ("before $x^2$ after", 8, "before x2"),  # never within a formula
    ],
)
def test_a_mark_stands_after_so_many_visible_characters(text: str, at: int, before: str) -> None:
    (html,) = article.with_marks(render_blocks(text), [Mark(0, at, "<span>Here</span>")])
    shown = re.sub(r"\s*<span class=\"mark translated\".*?</span></span>.*", "", html, flags=re.DOTALL)
    assert article.visible_text(shown).replace("\n", "").rstrip() == before.rstrip()
    assert (
        article.visible_text(html).replace("Here", "", 1).split() == article.visible_text("".join(render_blocks(text))).split()
    )


def test_a_mark_does_not_move_another() -> None:
    marks = [Mark(0, 1, "first"), Mark(0, 2, "second"), Mark(0, 2, "third"), Mark(1, 1, "fourth")]
    blocks = article.with_marks(["abc", "de"], marks)
    assert [re.sub(r"<[^>]*>", "|", each) for each in blocks] == ["a|first|b|second||third|c", "d|fourth|e"]
    assert article.with_marks([], [Mark(0, 3, "alone")]) != []
    assert article.with_marks(["abc"], []) == ["abc"]


def test_a_mark_in_code_is_not_put_into_its_button() -> None:
    html = article.with_marks(render_blocks("```python\nprint(1)\n```"), [Mark(0, 8, "here")])[0]
    assert html.index("</button>") < html.index("here")
    assert [each for each in TAGS.findall(html) if each == "button"] == ["button", "button"]
