"""Pieces that the caller of one answer receives, and text that is never shown."""

import pytest
import torch

from qlora_chat.engines import OutOfMemory, Piece
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import SpanScheduler
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.drafts import make_cache
from tests.fakes import LetterTokenizer, MarkovForward

STOPS = Stops(frozenset({2}), DEFAULT_FORMAT.stop_texts)


def make_request(limit: int) -> Request:
    return Request((1, 5), Sampling(max_new_tokens=limit), STOPS, 512, LetterTokenizer())


def pieces_of(request: Request) -> list[Piece]:
    pieces = []
    while not request.pieces.empty():
        piece = request.pieces.get()
        assert isinstance(piece, Piece)
        pieces.append(piece)
    return pieces


def write(request: Request, text: str) -> None:
    for token in LetterTokenizer().encode(text):
        request.accept(token)


@pytest.mark.parametrize("half", ["#", "###", "### Hum", "### Assistan"])
def test_an_answer_cut_off_inside_a_marker_shows_none_of_it(half: str) -> None:
    by_length, by_hand = make_request(len("Hello." + half)), make_request(100)
    write(by_length, "Hello." + half)
    write(by_hand, "Hello." + half)
    by_hand.end_cancelled()
    for request, reason in ((by_length, "length"), (by_hand, "cancelled")):
        pieces = pieces_of(request)
        assert "".join(piece.text for piece in pieces) == "Hello."
        assert pieces[-1].finish is not None
        assert pieces[-1].finish.reason == reason


def test_text_that_only_resembles_a_marker_is_shown_when_the_model_ends() -> None:
    request = make_request(100)
    write(request, "I know C#")
    request.accept(2)
    assert "".join(piece.text for piece in pieces_of(request)) == "I know C#"


def test_a_request_may_arrive_in_the_middle_of_a_step() -> None:
    scheduler = SpanScheduler(MarkovForward(), make_cache(1))  # type: ignore[arg-type]
    late = make_request(5)

    class ArrivesLate(Request):
        @property
        def cancelled(self) -> bool:  # read while the waiting requests are iterated
            scheduler.submit(late)
            return True

        @cancelled.setter
        def cancelled(self, value: bool) -> None:
            pass

    first = ArrivesLate((1, 5), Sampling(), STOPS, 512, LetterTokenizer())
    scheduler.submit(first)
    scheduler.step()
    assert pieces_of(first)[-1].finish is not None
    assert not scheduler.idle, "the late request waits for the next step"


def test_the_repetition_penalty_counts_the_draft_before_a_token_and_nothing_of_it_afterwards() -> None:
    request = Request((1, 5), Sampling(repetition_penalty=1.3, seed=1), STOPS, 512, LetterTokenizer())
    seen = [
        set(each.seen.nonzero().flatten().tolist())
        for each in request.sampler_inputs([7, 9], 12, torch.device("cpu"))
        if each.seen is not None
    ]
    assert seen == [{1, 5}, {1, 5, 7}, {1, 5, 7, 9}]
    again = request.sampler_inputs([], 12, torch.device("cpu"))[0].seen
    assert again is not None
    assert set(again.nonzero().flatten().tolist()) == {1, 5}


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"])
def test_every_library_s_out_of_memory_is_reported_as_such(message: str) -> None:
    request = make_request(5)
    request.fail(RuntimeError(message))
    assert isinstance(request.pieces.get(), OutOfMemory)
