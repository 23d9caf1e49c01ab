"""Markdown of answers as HTML: what it looks like, what it refuses, and how it grows."""

from __future__ import annotations

import re
import time
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qlora_chat.web.markdown import StreamedMarkdown, render_blocks, stylesheet
from qlora_chat.web.markdown.code_blocks import LANGUAGES, code_block
from qlora_chat.web.markdown.mathml import mathml
from qlora_chat.web.markdown.stylesheet import DARK, LIGHT, contrast
from tests.web.test_page_safety_browser import MATH_PAYLOADS, MORE_PAYLOADS, PAYLOADS

MATHML = frozenset(
    {"math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mfrac",
     "msqrt", "mroot", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose"}
)  # fmt: skip
HTML = frozenset(
    {"a", "blockquote", "br", "button", "code", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
     "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}
)  # fmt: skip
STYLE = re.compile(r"text-align:(left|center|right)|--digits:\d+")


class _Reader(HTMLParser):
    """Elements of some HTML, with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> _Reader:
    return _Reader("".join(render_blocks(text)))


def tags(text: str) -> list[str]:
    return [tag for tag, _ in read(text).elements]


def assert_harmless(text: str) -> None:
    for tag, attributes in read(text).elements:
        assert tag in HTML | MATHML, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            assert name not in ("src", "srcset", "xlink:href", "action", "id"), name
            assert name != "class" or tag not in MATHML, value
            if name == "style":
                assert STYLE.fullmatch(value), value
            if name == "href":
                assert tag == "a", tag
                assert re.match("(https?://|mailto:)", value, re.IGNORECASE), value
        if tag == "a":
            assert attributes["target"] == "_blank"
            assert attributes["rel"] == "noopener noreferrer nofollow"


@pytest.mark.parametrize("payload", [*PAYLOADS, *MORE_PAYLOADS, *MATH_PAYLOADS])
def test_nothing_in_an_answer_can_run_or_load_anything(payload: str) -> None:
    assert_harmless(payload)
    assert_harmless(f"before {payload} after")
    assert_harmless(f"| {payload} |\n|---|\n| {payload} |\n\n- > {payload}")


@given(st.text(alphabet="ab <>&\"'`*_[]()!#-|:$\\{}\n=/.x1", max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_text_is_harmless(text: str) -> None:
    assert_harmless(text)


def test_raw_html_is_shown_as_text() -> None:
    assert read("a <b>bold</b> <script>alert(1)</script>").text.strip() == "a <b>bold</b> <script>alert(1)</script>"


def test_tables_keep_their_alignment_and_scroll_by_themselves() -> None:
    elements = read("| a | b |\n|:--|--:|\n| 1 | 2 |").elements
    assert elements[0][0] == "div"
    assert elements[0][1]["class"] == "table"
    assert [each["style"] for tag, each in elements if tag == "td"] == ["text-align:left", "text-align:right"]


def test_lists_count_from_any_number_and_tasks_show_their_state() -> None:
    (ordered,) = (each for tag, each in read("98. a\n99. b\n100. c").elements if tag == "ol")
    assert ordered["start"] == "98"
    assert ordered["style"] == "--digits:3", "room for the longest number"
    tasks = read("- [ ] buy *milk*\n- [x] sleep\n- [link](http://a.example)\n- [ ]")
    assert [each["aria-label"] for tag, each in tasks.elements if "aria-label" in each] == ["not done", "done"]
    assert tasks.text.split() == ["☐", "buy", "milk", "☑", "sleep", "link", "[", "]"]


def test_code_has_its_language_a_copy_button_and_colours() -> None:
    shown = read("```python\nprint('<b>')\n```")
    assert ("button", {"type": "button", "class": "translated", "data-copy": ""}) in shown.elements
    assert shown.text == "pythonCopyprint('<b>')\n\n"
    assert {"nb", "s1"} <= {each.get("class") for _, each in shown.elements}
    assert "span" not in tags("```mermaid\ngraph TD\n```")[3:], "an unknown language has no colours"


def test_an_open_fence_is_code_already() -> None:
    assert read("Look:\n\n```python\nx = 1").text == "Look:\npythonCopyx = 1\n"


def test_links_lead_to_the_web_and_images_are_links() -> None:
    shown = read(
        "[a](https://a.example/x_y) ![cat](http://b.example/c.png) <me@c.example> see https://d.example/(e). [f](/etc/passwd)"
    )
    hrefs = [each["href"] for tag, each in shown.elements if tag == "a"]
    assert hrefs == ["https://a.example/x_y", "http://b.example/c.png", "mailto:me@c.example", "https://d.example/(e)"]
    assert "cat" in shown.text
    assert tags("[![x](http://a.example/b.png)](http://c.example)").count("a") == 1


FORMULAS = [
    ("$a^2$", 1), (r"\(a^2\)", 1), ("$$a^2$$", 1), (r"\[a^2\]", 1), ("$$\na^2\n$$", 1),
    ("Text:\n\\[\na \\\\ b\n\\]\nmore", 1),
    ("the $n$th of $k$-means, $x$.", 3), (r"$\begin{aligned} a &= b \\ c &= d \end{aligned}$", 1),
    ("- one\n  $$\n  x\n  $$", 1),
    (r"$\boxed{42}$ and $\mathbb{R}^n$", 2), ("| $x$ |\n|---|\n| $y$ |", 2), ("从$x$到$y$", 2), (r"\begin", 0),
    ("$5.5 \\times 3$", 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "count"), FORMULAS)
def test_formulas_are_mathml(text: str, count: int) -> None:
    assert tags(text).count("math") == count


PRICES = [
    "$5 and $10", "It costs $5.", "US$5 or US$10", "$5-$10 each", "$5, $10, or $20", "$1,000/month and $2",
    "between 5$ and 10$",
    "$HOME and $PATH", "$A:$B", "only $5 for 10$", "$ 5 $", "a $", "$", "$$", "$20 million, $30 million",
]  # fmt: skip


@pytest.mark.parametrize("text", PRICES)
def test_prices_and_variables_stay_as_they_are(text: str) -> None:
    shown = read(text)
    assert shown.text.strip() == text
    assert "math" not in [tag for tag, _ in shown.elements]


@pytest.mark.parametrize("text", ["`$x$`", "``a $x$ b``", "```\n$x$\n$$y$$\n```", "    $x$"])
def test_code_is_never_a_formula(text: str) -> None:
    assert "math" not in tags(text)


@pytest.mark.parametrize(
    "text", [r"$\foo{x}$", r"\(\frac{a\)", r"$x_1_2$", r"\[\begin{tikzpicture}\end{tikzpicture}\]", r"$\def\a{b}\a$"]
)
def test_a_formula_that_cannot_be_parsed_stays_as_it_was_written(text: str) -> None:
    shown = read(text)
    assert shown.text.strip() == text
    assert "math" not in [tag for tag, _ in shown.elements]


def test_letters_of_other_alphabets_are_written_as_such() -> None:
    assert read(r"$\mathbf{AB} \mathbb{RQ} \mathcal{LB}$").text.strip() == "\U0001d400\U0001d401\u211d\u211a\u2112\u212c"


def test_formulas_of_any_size_are_refused_or_small() -> None:
    assert mathml("x" * 5000, block=False) is None
    assert mathml("{" * 300 + "x" + "}" * 300, block=False) is None
    assert mathml(r"\sqrt" * 900 + "x", block=False) is None
    bomb = r"\newcommand{\a}{\b\b}\newcommand{\b}{\c\c}\newcommand{\c}{xx}\a"
    assert mathml(bomb, block=False) is None
    wide = mathml(r"\rule{9999em}{9999em}\hspace{99em}x", block=False) or ""
    assert not re.search(r"\d{2,}em", wide)


# --- growing -------------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["a", "b ", "\n", "\n\n", "- ", "1. ", "2", ".", "#", "> ", "```", "---", "***", "$$", "$", "\\[", "\\]", "|", "|-|\n",
     "  ",
     "    ", "*", "_", "`", "~~~\n", "=", "[x](http://a.example)", "\\", "+", "1)", "\t", "[ ] ", "\r\n"]
)  # fmt: skip
TEXT = """Look at this **list**:

1. first $x$
2. second

   with more

2) other

| a | b |
|---|--:|
| 1 | 2 |
#tag
---x
```python
x = "$$"
```
$$
a^2
$$ then
> quote
- [ ] task
  - nested

***bold*** end"""


@given(st.lists(PIECES, max_size=25).map("".join))
@example(TEXT)
@example("- \n\n- - - a")
@settings(max_examples=200, deadline=None)
def test_while_a_text_grows_only_its_last_block_changes(text: str) -> None:
    growing = StreamedMarkdown()
    shown: list[str] = []
    before: list[str] = []
    for end in range(1, len(text) + 1):
        blocks = render_blocks(text[:end])
        assert blocks[: len(before) - 1] == before[: len(before) - 1], text[:end]
        first, changed = growing.update(text[:end])
        shown[first:] = changed
        assert shown == blocks, text[:end]
        before = blocks


def test_streamed_markdown_begins_again_with_another_text() -> None:
    growing = StreamedMarkdown()
    growing.update("one\n\ntwo\n\nthree")
    assert growing.update("another") == (0, ['<p dir="auto">another</p>\n'])


HEAVY = [
    "[", "![", "*a ", "_a*", "`", "<", "> ", "- ", "$", "$x", "\\(", "\\[\n", "$$\n", "$$x", "\\[x\n\n", "| ", "[a](", "&",
    "\\text{", "$\\sqrt", "http://", "- [ ] ", "```\n", "$$\n\\] x\n",
]  # fmt: skip


@pytest.mark.slow  # a ratio of times, which a busy machine can upset
@pytest.mark.parametrize("piece", HEAVY)
def test_time_grows_with_the_text_and_not_with_its_square(piece: str) -> None:
    """Eight times the text takes far less than 64 times as long."""

    def seconds(letters: int) -> float:
        began = time.process_time()
        render_blocks(piece * (letters // len(piece)))
        return time.process_time() - began

    small = min(seconds(3_000), seconds(3_001))
    assert seconds(24_000) < max(30 * small, 0.3)


def test_the_rest_of_an_endless_text_is_shown_as_it_is() -> None:
    text = "word " * 80_000
    assert read(text).text.replace("\n", "").count("word") == 80_000


@pytest.mark.parametrize(("selector", "background"), [(".markdown .code", LIGHT[1]), (".dark .markdown .code", DARK[1])])
def test_every_colour_of_code_can_be_read(selector: str, background: str) -> None:
    rules = re.findall("(?m)^" + re.escape(selector) + r" :is\([^)]*\) \{ color: (#\w{6})", stylesheet())
    assert len(rules) > 5
    assert all(contrast(colour, background) >= 4.5 for colour in rules)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"{number}." for number in range(1, 60)) + " the end",
        "> " * 60 + "the end",
        "- " * 40 + "the end\n- another item",
        "\n".join("  " * depth + f"- item {depth}" for depth in range(40)) + "\n\nthe end",
    ],
)
def test_what_is_nested_too_deep_to_draw_is_shown_as_text(text: str) -> None:
    shown = "".join(render_blocks(text))
    assert "the end" in shown
    assert all(f"item {depth}" in shown for depth in range(40) if f"item {depth}" in text)


def test_code_in_every_known_language_has_colours_and_its_own_text() -> None:
    code = "x = '<b>' & \"1\"\n\n  y"
    for language in LANGUAGES:
        html = code_block(code, language)
        assert "<b>" not in html
        assert unescape(re.sub("<[^>]*>", "", html)).endswith(f"{code}\n"), language
