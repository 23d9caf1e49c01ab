"""What the caller of one answer is told, and what is never shown."""

import pytest
import torch

from qlora_chat.engines import OutOfMemory, Piece
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import Scheduler
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.fakes import LetterTokenizer

STOPS = Stops(frozenset({2}), DEFAULT_FORMAT.stop_texts)


def request(limit: int) -> Request:
    return Request((1, 5), Sampling(max_new_tokens=limit), STOPS, 512, LetterTokenizer())


def pieces_of(asked: Request) -> list[Piece]:
    found = []
    while not asked.pieces.empty():
        piece = asked.pieces.get()
        assert isinstance(piece, Piece)
        found.append(piece)
    return found


def write(asked: Request, text: str) -> None:
    for token in LetterTokenizer().encode(text):
        asked.accept(token)


@pytest.mark.parametrize("half", ["#", "###", "### Hum", "### Assistan"])
def test_an_answer_cut_off_inside_a_marker_shows_none_of_it(half: str) -> None:
    by_length, by_hand = request(len("Hello." + half)), request(100)
    write(by_length, "Hello." + half)
    write(by_hand, "Hello." + half)
    by_hand.end_cancelled()
    for asked, reason in ((by_length, "length"), (by_hand, "cancelled")):
        pieces = pieces_of(asked)
        assert "".join(piece.text for piece in pieces) == "Hello."
        assert pieces[-1].finish is not None
        assert pieces[-1].finish.reason == reason


def test_what_only_looked_like_a_marker_is_shown_when_the_model_ends() -> None:
    asked = request(100)
    write(asked, "I know C#")
    asked.accept(2)
    assert "".join(piece.text for piece in pieces_of(asked)) == "I know C#"


def test_a_request_that_arrives_in_the_middle_of_a_step_harms_nobody() -> None:
    scheduler = Scheduler(lambda spans: pytest.fail("nothing to run"), cache=None)  # type: ignore[arg-type]
    late = request(5)

    class ArrivesLate(Request):
        @property
        def cancelled(self) -> bool:  # looked at while the waiting are walked through
            scheduler.submit(late)
            return True

        @cancelled.setter
        def cancelled(self, value: bool) -> None:
            pass

    first = ArrivesLate((1, 5), Sampling(), STOPS, 512, LetterTokenizer())
    scheduler.submit(first)
    scheduler.step()
    assert pieces_of(first)[-1].finish is not None
    assert not scheduler.idle, "the late one waits for the next step"


def test_the_repetition_penalty_counts_the_guesses_before_a_token_and_takes_none_of_them_for_said() -> None:
    asked = Request((1, 5), Sampling(repetition_penalty=1.3, seed=1), STOPS, 512, LetterTokenizer())
    seen = [
        set(each.seen.nonzero().flatten().tolist())
        for each in asked.choices([7, 9], 12, torch.device("cpu"))
        if each.seen is not None
    ]
    assert seen == [{1, 5}, {1, 5, 7}, {1, 5, 7, 9}]
    again = asked.choices([], 12, torch.device("cpu"))[0].seen
    assert again is not None
    assert set(again.nonzero().flatten().tolist()) == {1, 5}


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"])
def test_memory_that_is_short_is_called_so_whoever_ran_out_of_it(said: str) -> None:
    asked = request(5)
    asked.fail(RuntimeError(said))
    assert isinstance(asked.pieces.get(), OutOfMemory)
