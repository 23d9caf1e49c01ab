"""Tokens become pieces: without partial characters, without losing text, and with one end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_chat.engines import TokenLogprobs
from qlora_chat.engines.core import answer_builder
from qlora_chat.engines.core.answer_builder import AnswerBuilder, Detokenizer, iterate
from qlora_chat.models import LoadedModel
from qlora_chat.stopping import Stops
from tests.fakes import LetterTokenizer


def test_a_character_of_several_bytes_appears_whole(demo_fp32: LoadedModel) -> None:
    detokenizer = Detokenizer(demo_fp32.tokenizer)
    ids = demo_fp32.tokenizer.encode_continuation("日🎉é")
    pieces = [detokenizer.push(each) for each in ids]
    assert "".join(pieces) == "日🎉é"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(ids) > 3, "these characters take several byte tokens each"


def test_a_character_cut_off_at_the_end_is_marked(demo_fp32: LoadedModel) -> None:
    detokenizer = Detokenizer(demo_fp32.tokenizer)
    first_byte = demo_fp32.tokenizer.encode_continuation("日")[0]
    assert detokenizer.push(first_byte) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_pieces_add_up_to_the_text(demo_fp32: LoadedModel, text: str) -> None:
    detokenizer = Detokenizer(demo_fp32.tokenizer)
    pieces = [detokenizer.push(each) for each in demo_fp32.tokenizer.encode_continuation(text)]
    assert "".join(pieces) + detokenizer.flush() == text


LETTERS = LetterTokenizer()


def builder(*stops: str) -> AnswerBuilder:
    return AnswerBuilder(LETTERS, Stops(frozenset({2}), stops), prompt_tokens=5)


def test_a_stop_token_ends_the_answer_and_releases_held_back_text() -> None:
    answer = builder("##")
    ends = [answer.push_token(token, 100) for token in [*LETTERS.encode("C#"), 2]]
    assert ends == [False, False, True]
    pieces = list(iterate(answer.pieces))
    assert "".join(piece.text for piece in pieces) == "C#"
    assert [piece.token_id for piece in pieces] == [*LETTERS.encode("C#"), None]
    finish = pieces[-1].finish
    assert finish is not None
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("stop", 5, 3)


def test_the_limit_ends_the_answer_without_held_back_text() -> None:
    answer = builder("##")
    assert answer.push_token(LETTERS.encode("#")[0], 1, TokenLogprobs(-0.5))
    (piece,) = iterate(answer.pieces)
    assert (piece.text, piece.logprob) == ("", -0.5)
    assert piece.finish is not None
    assert piece.finish.reason == "length"
    assert answer.text == "#", "a server that continues the answer needs all of it"


def test_an_answer_ends_once() -> None:
    answer = builder()
    answer.push_text("Yes", 100)
    answer.count = 4  # as the server counted
    answer.end("stop")
    answer.end("cancelled")
    *_, last = iterate(answer.pieces)
    assert last.finish is not None
    assert (last.finish.reason, last.finish.completion_tokens) == ("stop", 4)
    assert answer.pieces.empty()


def test_prefill_is_reported_at_intervals_until_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 0.05, 0.11, 0.15, 0.22, *[1.0] * 9])
    monkeypatch.setattr(answer_builder.time, "perf_counter", lambda: next(moments))
    answer = AnswerBuilder(LETTERS, Stops(), 100)  # 0.0
    answer.report_prefill(10)  # too soon: a short prompt is read by then
    answer.report_prefill(20)
    answer.report_prefill(20)  # nothing new
    answer.report_prefill(30)  # too soon after the last one
    answer.report_prefill(101)  # as a server may count that tokenises in its own way
    answer.push_token(LETTERS.encode("a")[0], 1)
    answer.report_prefill(100)
    pieces = list(iterate(answer.pieces))
    assert [each.prefill for each in pieces] == [(20, 100), (100, 100), None]
    assert [each.text for each in pieces] == ["", "", "a"]
