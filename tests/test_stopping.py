"""Stops: however the text is chunked, the cut is the same, and no part of a stop is ever shown."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_chat.stopping import StopOnTokens, Stops, TextStops

GUANACO = ("### Human", "### Assistant")


def reference(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """Shown text of a whole text: up to the stop that completes first, character by character."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def shown(chunks: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    filtered = TextStops(stops)
    text = "".join(filtered.push(chunk) for chunk in chunks)
    return text + filtered.flush(), filtered.stopped


@given(
    st.text(alphabet="#H uman:A\n", max_size=60),
    st.lists(st.text(alphabet="#H uman", min_size=1, max_size=6), min_size=1, max_size=3).map(tuple),
    st.lists(st.integers(1, 7), min_size=1, max_size=60),
)
def test_any_chunking_shows_what_the_whole_text_shows(text: str, stops: tuple[str, ...], sizes: list[int]) -> None:
    chunks, rest = [], text
    for size in sizes * 60:
        if not rest:
            break
        chunks.append(rest[:size])
        rest = rest[size:]
    assert shown(chunks, stops) == reference(text, stops)


@given(st.text(max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_text_without_a_stop_passes_unchanged(text: str, sizes: list[int]) -> None:
    assert shown([text], ("### Human",)) == reference(text, ("### Human",))


def test_half_a_marker_is_never_shown() -> None:
    stops = TextStops(GUANACO)
    seen = ""
    for character in "Paris.### Human: and":
        seen += stops.push(character)
        assert not seen.endswith("#")
    assert seen == "Paris."
    assert stops.stopped
    assert stops.push("more") == ""


def test_text_that_resembles_a_marker_appears_once_it_cannot_be_one() -> None:
    stops = TextStops(GUANACO)
    assert stops.push("### Hum") == ""
    assert stops.push("ble pie") == "### Humble pie"
    assert stops.push(" ##") == " "
    assert stops.flush() == "##"


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Stops(texts=("",))


def test_stop_on_tokens_checks_every_row_for_every_id() -> None:
    stop = StopOnTokens([0, 2])
    assert stop([[5, 2], [2, 5], [7, 0], []]) == [True, False, True, False]


def test_stop_on_tokens_returns_a_tensor_for_a_tensor() -> None:
    done = StopOnTokens([2])(torch.tensor([[5, 2], [2, 5]]), None)
    assert done.dtype == torch.bool
    assert done.tolist() == [True, False]
