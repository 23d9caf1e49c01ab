"""What is guessed from a text, when a guess is worth checking, and that a chat that never repeats itself pays nothing."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_chat.engines.core.prompt_lookup import LONGEST_MATCH, MOST_DRAFTED, NOTHING, Drafter, PassCosts, Speculator, lengths

CHEAP = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7)
"""Passes in which further tokens cost a tenth of the first."""


def told(text: str, count: int) -> str:
    drafter = Drafter([ord(letter) for letter in text])
    at, _ = drafter.match()
    return "".join(map(chr, drafter.following(at, count))) if at else ""


def test_a_text_goes_on_as_it_did_before() -> None:
    assert told("the cat sat on the mat; the cat", 8) == " sat on "


def test_the_newest_place_wins() -> None:
    assert told("one two A. one two B. one two ", 2) == "B."


def test_the_longer_match_wins_over_the_newer() -> None:
    assert told("xabcQ bcR xabc", 1) == "Q"


def test_a_rhyme_goes_on_with_itself() -> None:
    assert told("la la la", 9) == " la la la"


def test_a_text_without_repetition_says_nothing() -> None:
    assert told("abcdefgh", 4) == ""
    assert Speculator([ord(each) for each in "abcdefgh"]).propose(8) == NOTHING


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60))
def test_token_by_token_it_finds_what_a_search_of_the_whole_text_finds(ids: list[int]) -> None:
    """The newest earlier place of the last three tokens, else of the last two, and how far back both read the same."""
    at, length = Drafter(ids).match()
    places = [[i for i in range(size, len(ids)) if ids[i - size : i] == ids[-size:]] for size in (3, 2)]
    expected = next((found[-1] for found in places if found), 0)
    assert at == expected
    if at:
        assert ids[at - length : at] == ids[len(ids) - length :]
        longer = length + 1
        assert length == LONGEST_MATCH or at < longer or ids[at - longer : at] != ids[len(ids) - longer :]


def quoting(answer: list[int], quoted: list[int]) -> Speculator:
    """A chat that was given `quoted` and has written `answer`."""
    chat = Speculator(quoted)
    for token in answer:
        chat.push(token)
    return chat


TEXT = [random.Random(5).randrange(1000) for _ in range(120)]


def test_a_chat_that_quotes_is_given_long_drafts() -> None:
    proposal = quoting([7, *TEXT[:40]], TEXT).propose(99)
    assert list(proposal.tokens) == TEXT[40 : 40 + MOST_DRAFTED]
    assert lengths([proposal], 1, PassCosts(CHEAP))[0] >= 8


def test_a_chat_whose_guesses_fail_is_left_alone() -> None:
    """Every pair of tokens has been seen before, and every guess is wrong: the next letter of the two is always the other."""
    chat = Speculator([1, 2, 3])
    drawn = random.Random(1)
    for _ in range(400):
        guess = chat.propose(1).tokens
        chat.push(drawn.choice([each for each in range(4) if each not in guess]))
    assert chat._drafter.match()[1] >= 2, "the text has been here before"
    assert chat.propose(8) is NOTHING, "and what followed is believed too little to be checked, or weighed"


def test_it_believes_again_once_guesses_come_true() -> None:
    chat = quoting(list(random.Random(2).choices(range(6), k=300)), TEXT)
    for token in TEXT[:30]:
        chat.push(token)
    assert lengths([chat.propose(8)], 1, PassCosts(CHEAP))[0] >= 4


def test_nothing_is_checked_where_a_pass_costs_what_its_tokens_cost() -> None:
    proposal = quoting([7, *TEXT[:40]], TEXT).propose(8)
    assert lengths([proposal], 1, PassCosts((1.0, 2.0))) == [0]


def test_a_full_batch_shares_what_there_is_to_those_who_use_it_best() -> None:
    sure = quoting([7, *TEXT[:40]], TEXT).propose(8)
    doubtful = Speculator([1, 2, 9, 8, 1, 2]).propose(8)
    free_up_to_eight = PassCosts((*[1.0] * 8, *(1.0 + each for each in range(1, 9))))
    given_ = lengths([doubtful, sure, NOTHING], 3, free_up_to_eight)
    assert sum(given_) == 5, "five more fit into the pass for nothing"
    assert given_[1] > given_[0]
    assert given_[2] == 0


def test_costs_are_learnt_from_the_passes_themselves() -> None:
    costs = PassCosts(CHEAP)
    for _ in range(60):
        costs.note(1, 0.010)
        costs.note(5, 0.030)
    assert costs(1) == pytest.approx(0.010, rel=0.05)
    assert costs(5) == pytest.approx(0.030, rel=0.1)
    assert costs(6) == pytest.approx(0.030 * 1.5 / 1.4, rel=0.1), "a neighbour's, as far as it was expected to differ"


def test_an_outlier_does_not_end_it_and_old_news_fades() -> None:
    costs = PassCosts(CHEAP)
    for _ in range(20):
        costs.note(1, 0.010)
    for _ in range(10):
        costs.note(5, 0.100)
    assert costs(5) > 0.030
    for _ in range(1500):
        costs.note(1, 0.010)
    assert costs(5) == pytest.approx(0.014, rel=0.1)
