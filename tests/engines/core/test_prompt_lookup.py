"""Drafts from a text, when verifying them pays, and that a chat that never repeats itself pays nothing."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_chat.engines.core.prompt_lookup import (
    MAX_DRAFT,
    MAX_MATCH,
    NO_DRAFT,
    Draft,
    Drafter,
    PassCosts,
    Speculator,
    select_drafts,
)

CHEAP = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7)
"""Passes in which further tokens cost a tenth of the first."""


def continuation(text: str, count: int) -> str:
    drafter = Drafter([ord(letter) for letter in text])
    at, _ = drafter.match()
    return "".join(map(chr, drafter.following(at, count))) if at else ""


def test_a_text_continues_as_it_did_before() -> None:
    assert continuation("the cat sat on the mat; the cat", 8) == " sat on "


def test_the_newest_occurrence_wins() -> None:
    assert continuation("one two A. one two B. one two ", 2) == "B."


def test_the_longer_match_wins_over_the_newer() -> None:
    assert continuation("xabcQ bcR xabc", 1) == "Q"


def test_a_periodic_text_continues_its_period() -> None:
    assert continuation("la la la", 9) == " la la la"


def test_a_text_without_repetition_drafts_nothing() -> None:
    assert continuation("abcdefgh", 4) == ""
    assert Speculator([ord(each) for each in "abcdefgh"]).draft(8) == NO_DRAFT


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60))
def test_token_by_token_the_match_is_that_of_a_search_of_the_whole_text(ids: list[int]) -> None:
    """The newest earlier occurrence of the last three tokens, else of the last two, and the length of the match."""
    at, length = Drafter(ids).match()
    occurrences = [[i for i in range(size, len(ids)) if ids[i - size : i] == ids[-size:]] for size in (3, 2)]
    expected = next((each[-1] for each in occurrences if each), 0)
    assert at == expected
    if at:
        assert ids[at - length : at] == ids[len(ids) - length :]
        longer = length + 1
        assert length == MAX_MATCH or at < longer or ids[at - longer : at] != ids[len(ids) - longer :]


def quoting(answer: list[int], quoted: list[int]) -> Speculator:
    """A chat with the prompt `quoted` and this answer so far."""
    chat = Speculator(quoted)
    for token in answer:
        chat.push(token)
    return chat


def lengths(drafts: list[Draft], base_tokens: int, costs: PassCosts) -> list[int]:
    """Number of tokens selected of each draft."""
    selected = select_drafts(drafts, base_tokens, costs)
    assert selected is not None
    return [len(tokens) for tokens in selected]


TEXT = [random.Random(5).randrange(1000) for _ in range(120)]


def test_a_chat_that_quotes_gets_long_drafts() -> None:
    draft = quoting([7, *TEXT[:40]], TEXT).draft(99)
    assert list(draft.tokens) == TEXT[40 : 40 + MAX_DRAFT]
    assert lengths([draft], 1, PassCosts(CHEAP))[0] >= 8


def test_a_chat_whose_drafts_fail_gets_none() -> None:
    """Every pair of tokens has occurred before, and every draft is wrong: another token than the drafted one always follows."""
    chat = Speculator([1, 2, 3])
    drawn = random.Random(1)
    for _ in range(400):
        draft = chat.draft(1).tokens
        chat.push(drawn.choice([each for each in range(4) if each not in draft]))
    assert chat._drafter.match()[1] >= 2, "the text has a match"
    assert chat.draft(8) is NO_DRAFT, "and its acceptance rate is too low to consider it"


def test_drafting_resumes_once_drafts_are_accepted() -> None:
    chat = quoting(list(random.Random(2).choices(range(6), k=300)), TEXT)
    for token in TEXT[:30]:
        chat.push(token)
    assert lengths([chat.draft(8)], 1, PassCosts(CHEAP))[0] >= 4


def test_nothing_is_verified_where_a_pass_costs_as_much_as_its_tokens() -> None:
    draft = quoting([7, *TEXT[:40]], TEXT).draft(8)
    assert select_drafts([draft], 1, PassCosts((1.0, 2.0))) is None


def test_a_full_batch_verifies_the_best_drafts() -> None:
    sure = quoting([7, *TEXT[:40]], TEXT).draft(8)
    doubtful = Speculator([1, 2, 9, 8, 1, 2]).draft(8)
    free_up_to_eight = PassCosts((*[1.0] * 8, *(1.0 + each for each in range(1, 9))))
    doubtful_tokens, sure_tokens, none = lengths([doubtful, sure, NO_DRAFT], 3, free_up_to_eight)
    assert doubtful_tokens + sure_tokens == 5, "five more tokens fit into the pass for free"
    assert sure_tokens > doubtful_tokens
    assert none == 0


def test_costs_are_learnt_from_the_passes_themselves() -> None:
    costs = PassCosts(CHEAP)
    for _ in range(60):
        costs.note(1, 0.010)
        costs.note(5, 0.030)
    assert costs(1) == pytest.approx(0.010, rel=0.05)
    assert costs(5) == pytest.approx(0.030, rel=0.1)
    assert costs(6) == pytest.approx(0.030 * 1.5 / 1.4, rel=0.1), "the nearest measurement, scaled by the expected ratio"


def test_an_outlier_counts_for_little_and_old_measurements_fade() -> None:
    costs = PassCosts(CHEAP)
    for _ in range(20):
        costs.note(1, 0.010)
    for _ in range(10):
        costs.note(5, 0.100)
    assert costs(5) > 0.030
    for _ in range(1500):
        costs.note(1, 0.010)
    assert costs(5) == pytest.approx(0.014, rel=0.1)
