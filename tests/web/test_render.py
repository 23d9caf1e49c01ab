"""What is shown is what was said: nothing typed becomes Markdown, nothing written becomes HTML."""

from __future__ import annotations

from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_chat.messages import Conversation, Message
from qlora_chat.web import render
from tests.fakes import SCRIPTED_INFO


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=60))
def test_a_reader_sees_the_characters_that_were_typed(text: str) -> None:
    assert unescape(render.literal(text)) == text


@pytest.mark.parametrize("mark", ["# head", "- item", "1. item", "> quote", "    code", "* * *", "=== "])
def test_typed_text_never_begins_a_block(mark: str) -> None:
    assert render.literal(mark).startswith("&#")


def test_plain_sentences_stay_plain() -> None:
    assert render.literal("How are you? I'm fine.") == "How are you? I'm fine."


def test_tags_in_an_answer_are_shown_and_code_is_left_alone() -> None:
    text = "Use <b> and `<i>`:\n```html\n<script>x</script>\n```\n<script>y</script>"
    assert render.markdown(text) == "Use &lt;b> and `<i>`:\n```html\n<script>x</script>\n```\n&lt;script>y&lt;/script>"


def test_an_unfinished_code_block_is_code_to_its_end() -> None:
    assert render.markdown("```\n<div>\n\n<p>") == "```\n<div>\n\n<p>"


def test_images_become_links_so_that_nothing_is_fetched() -> None:
    assert render.markdown("![cat](http://elsewhere/cat.png)") == "&#33;[cat](http://elsewhere/cat.png)"


@pytest.mark.parametrize(("reason", "mark"), [("cancelled", "Stopped"), ("length", "Cut off"), ("error", "error")])
def test_an_answer_that_ended_early_says_so(reason: str, mark: str) -> None:
    answer = render.answer("half", reason)  # type: ignore[arg-type]
    assert answer
    assert mark in answer["content"][1]["text"]


def test_an_unanswered_question_is_shown_alone() -> None:
    assert [each["role"] for each in render.messages(Conversation(messages=(Message("user", "hi"),)))] == ["user"]


def test_status_names_model_precision_device_speed_first_token_and_context() -> None:
    line = render.status(SCRIPTED_INFO, used=1234, tokens_per_s=45.6, ttft_ms=78.9)
    for fact in ("scripted", "fp32", "cpu", "46 tokens/s", "first token 79 ms", "context 1,234 of 4,096"):
        assert fact in line


def test_problems_are_escaped_and_announced() -> None:
    assert render.problem("<b>no</b>") == '<p class="problem" role="alert">&lt;b&gt;no&lt;/b&gt;</p>'


def test_dropped_turns_are_counted_in_exchanges() -> None:
    assert render.dropped((), 4096) == ""
    assert "oldest exchange no longer fits" in render.dropped((0, 1), 4096)
    assert "2 oldest exchanges no longer fit" in render.dropped((0, 1, 2, 3), 4096)
