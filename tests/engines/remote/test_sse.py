"""Completions as bytes: the same chunks however the bytes are cut; anything else is an error with a message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_chat.engines import PrefillProgress
from qlora_chat.engines.remote.reasons import ServerError
from qlora_chat.engines.remote.sse import MAX_LINE, Chunk, error_text, read_chunks

STREAM = (
    b": a comment\r\n\r\n"
    b'data: {"choices": [{"text": "Gr\xc3\xbc\xc3\x9fe,\xe2\x80\xa8", "token_ids": [5, 6]}]}\r\n\r\n'
    b'data: {"choices": [{"text": " you", "finish_reason": "stop"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3,'
    b' "prompt_tokens_details": {"cached_tokens": 4}}}\n'
    b"data: [DONE]\n\n"
)
CHUNKS = [
    Chunk("Grüße,\u2028", (5, 6)),
    Chunk(" you", None, "stop"),
    Chunk("", None, None, prompt_tokens=9, completion_tokens=3, cached_tokens=4),
]


def chunks_of(*parts: bytes) -> list[Chunk]:
    async def come() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def read() -> list[Chunk]:
        return [chunk async for chunk in read_chunks(come())]

    return asyncio.run(read())


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert chunks_of(*(STREAM[begin:end] for begin, end in pairwise(edges))) == CHUNKS


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (["a\ud83d", "\ude00 b", ""], ["a", "\U0001f600 b", ""]),
        (["\ud83d", "", "\ude00"], ["", "", "\U0001f600"]),
        (["\ud83d", "\ude00\ud83d", "\ude01"], ["", "\U0001f600", "\U0001f601"]),
        (["\ud83d\ude00"], ["\U0001f600"]),
        (["a\ud83d", "b"], ["a", "\ufffdb"]),
        (["a\ude00b\ud83d"], ["a\ufffdb\ufffd"]),
        (["a", "\U0001f600", "é\0"], ["a", "\U0001f600", "é\0"]),
    ],
)
def test_halves_of_a_character_are_joined_across_chunks_or_replaced(sent: list[str], read: list[str]) -> None:
    choices: list[dict[str, Any]] = [{"text": text} for text in sent]
    choices[-1]["finish_reason"] = "stop"
    assert [
        each.text for each in chunks_of(*(f"data: {json.dumps({'choices': [each]})}\n".encode() for each in choices))
    ] == read


def test_a_finish_reason_ends_a_stream_that_says_no_done() -> None:
    assert chunks_of(b'data: {"choices": [{"text": "a", "finish_reason": "length"}]}') == [Chunk("a", None, "length")]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "broke off"),
        (b'data: {"choices": [{"text": "a"}]}\n\n', "broke off"),
        (b"data: " + b"x" * (MAX_LINE + 1), "longer than"),
        (b"data: " + b"[" * 100_000 + b"\n", "not JSON"),
        (b'data: {"choices": [{"text": "\xff"}]}\n', "not UTF-8"),
        (b'data: {"choices": [4]}\n', "no JSON object"),
        (b'data: {"choices": [{"token_ids": [-1]}]}\n', "token_ids"),
        (b'data: {"choices": [{"token_ids": [true]}]}\n', "token_ids"),
        (b'data: {"choices": [{"finish_reason": 3}]}\n', "finish_reason"),
        (b'data: {"choices": [], "usage": 5}\n', "choices"),
        (b'data: {"error": {"message": "out of\\n memory"}}\n', "out of memory"),
    ],
)
def test_invalid_streams_are_errors_with_a_message(sent: bytes, message: str) -> None:
    with pytest.raises(ServerError, match=message):
        chunks_of(sent)


def test_an_error_is_found_wherever_it_is_nested() -> None:
    assert error_text({"error": {"message": "a"}}) == error_text({"detail": "a"}) == error_text({"message": "a"}) == "a"
    assert len(error_text({"detail": [{"msg": "x" * 1000}]})) == 300


@pytest.mark.parametrize(
    "listed",
    [None, [], {}, {"token_logprobs": [-1.0]}, {"token_logprobs": [None, -1.0]}, {"token_logprobs": ["x", -1.0]},
     {"token_logprobs": [True, -1.0]}, {"token_logprobs": [float("nan"), -1.0]}, {"token_logprobs": [0.5, -1.0]}],
)  # fmt: skip
def test_invalid_log_probabilities_are_omitted(listed: Any) -> None:
    choice = {"text": "ab", "token_ids": [5, 6], "logprobs": listed}
    (chunk, *_) = chunks_of(f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n".encode())
    assert (chunk.ids, chunk.logprobs) == ((5, 6), ())


def test_top_log_probabilities_are_read_by_their_ids_and_sorted() -> None:
    tops = [{"token_id:7": -2.0, "token_id:5": -0.5, " word": -1.0, "token_id:x": -1.0}, "odd"]
    choice = {"text": "ab", "token_ids": [5, 6], "logprobs": {"token_logprobs": [-0.5, -3], "top_logprobs": tops}}
    (chunk, *_) = chunks_of(f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n".encode())
    assert chunk.logprobs == ((-0.5, ((5, -0.5), (7, -2.0))), (-3.0, ()))


def test_our_own_servers_comments_tell_how_much_of_the_prompt_is_read() -> None:
    comments = (
        b"".join(b": prefill %d/4984\n\n" % read for read in (512, 1024, 1024, 900)) + b": prefill 9/3\n\n: prefill x/9\n\n"
    )
    assert chunks_of(comments + STREAM) == [
        Chunk(prefill=PrefillProgress(512, 4984)),
        Chunk(prefill=PrefillProgress(1024, 4984)),
        *CHUNKS,
    ]
    slow = b"".join(b": prefill %d/99999\n\n" % read for read in range(1, 8_000))
    assert chunks_of(slow + STREAM)[-1] == CHUNKS[-1], "many comments are no endless silence while the number grows"
