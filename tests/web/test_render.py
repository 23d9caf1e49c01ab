"""Numbers, notices and problems as HTML."""

from __future__ import annotations

from qlora_chat.web import render
from tests.fakes import SCRIPTED_INFO


def test_status_names_model_precision_device_speed_first_token_and_context() -> None:
    line = render.status(SCRIPTED_INFO, tokens_per_s=45.6, ttft_ms=78.9)
    for fact in ("scripted", "fp32", "cpu", "46 tokens/s", "first token 79 ms"):
        assert fact in line


def test_problems_are_escaped_and_announced() -> None:
    assert render.problem("<b>no</b>") == '<p class="problem" role="alert">&lt;b&gt;no&lt;/b&gt;</p>'


def test_dropped_turns_are_counted_in_exchanges() -> None:
    assert render.dropped((), 4096) == ""
    assert "oldest exchange no longer fits" in render.dropped((0, 1), 4096)
    assert "2 oldest exchanges no longer fit" in render.dropped((0, 1, 2, 3), 4096)
