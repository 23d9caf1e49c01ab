"""What of a conversation fits the window: what must stay, what goes, and that the same goes turn after turn."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_chat.context import PromptTooLong, context_use, fit_prompt, with_own_ids
from qlora_chat.messages import Conversation, Message
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import DEFAULT_FORMAT, FORMATS, Prompt, render
from tests.fakes import LetterTokenizer
from tests.test_prompt import talk

TOKENIZER = LetterTokenizer()
TURNS = st.lists(st.text(alphabet="abc ", min_size=1, max_size=30), min_size=1, max_size=12)


def fitted(conversation: Conversation, window: int, reserve: int = 10, pinned: tuple[int, ...] = ()) -> Prompt:
    return fit_prompt(conversation, DEFAULT_FORMAT, TOKENIZER, window, reserve, pinned=pinned)


def size(*texts: str) -> int:
    return len(render(talk(*texts, system="S"), DEFAULT_FORMAT, TOKENIZER).ids)


@settings(deadline=None)
@given(TURNS, st.integers(40, 200), st.integers(1, 400))
def test_a_prompt_fits_its_window_and_drops_nothing_while_everything_fits(texts: list[str], window: int, reserve: int) -> None:
    texts = texts if len(texts) % 2 else texts[:-1]
    conversation, limit = talk(*texts, system="S"), window - min(reserve, window // 4)
    if size(texts[-1]) > limit:
        with pytest.raises(PromptTooLong) as caught:
            fitted(conversation, window, reserve)
        assert f"{size(texts[-1]):,}" in str(caught.value)
        assert f"{limit:,}" in str(caught.value)
        return
    prompt = fitted(conversation, window, reserve)
    assert len(prompt.ids) <= limit
    assert prompt.text.startswith("S\n### Human: ")
    assert prompt.text.endswith(f"### Human: {texts[-1]}### Assistant:")
    assert prompt.dropped == tuple(range(len(prompt.dropped)))
    assert len(prompt.dropped) % 2 == 0, "whole turns go"
    assert bool(prompt.dropped) == (size(*texts) > limit)


def test_the_turns_after_a_drop_go_on_with_the_cached_prompt() -> None:
    """Past the limit, a prompt begins like the one before it in at least nine turns of ten."""
    conversation, before, begun_alike, past = Conversation(system="S"), None, 0, 0
    for turn in range(160):
        conversation = conversation.adding(Message("user", f"question {turn:3}"))
        prompt = fitted(conversation, 3000, 100)
        if prompt.dropped:
            past += 1
            begun_alike += before is not None and prompt.ids[: len(before)] == before
        before = prompt.ids
        conversation = conversation.adding(Message("assistant", f"answer {turn:3}"))
    assert past > 80
    assert begun_alike >= 0.9 * past


def test_right_after_a_drop_three_quarters_of_the_limit_are_used() -> None:
    conversation, limit = Conversation(), 1400
    while True:
        conversation = conversation.adding(Message("user", "a" * 20))
        prompt = fitted(conversation, 1500, 100)
        if prompt.dropped:
            break
        conversation = conversation.adding(Message("assistant", "b" * 20))
    assert 0.7 * limit < len(prompt.ids) <= 0.76 * limit


def test_what_goes_follows_from_the_conversation_alone() -> None:
    texts = [f"turn {index} {'x' * (index * 7 % 40)}" for index in range(41)]
    grown = [fitted(talk(*texts[:end]), 400).dropped for end in range(1, len(texts) + 1, 2)]
    assert len(set(grown)) > 3, "several times turns went"
    assert all(set(earlier) <= set(later) for earlier, later in pairwise(grown)), "nothing comes back"
    assert fitted(talk(*texts), 400).dropped == grown[-1], "as a process sees it that has not seen the earlier turns"


def test_pinned_exchanges_stay() -> None:
    texts = [f"turn {index} " + "x" * 20 for index in range(21)]
    prompt = fitted(talk(*texts), 400, pinned=(3, 4))
    assert {0, 1}.issubset(prompt.dropped)
    assert not {2, 3, 4, 5} & set(prompt.dropped), "question and answer stay together"
    assert "turn 2 " in prompt.text
    assert prompt.text.index("turn 3 ") < prompt.text.index("turn 4 ") < prompt.text.index("turn 20 ")
    with pytest.raises(PromptTooLong, match="Unpin turns"):
        fitted(talk(*texts), 400, pinned=tuple(range(20)))


def test_a_prompt_needs_a_question_and_a_continuation_an_answer() -> None:
    with pytest.raises(ValueError, match="the user's"):
        fitted(talk("X", "Y"), 100)
    with pytest.raises(ValueError, match="the assistant's"):
        fit_prompt(talk("X"), DEFAULT_FORMAT, TOKENIZER, 100, 10, continue_final=True)


def test_an_answer_to_go_on_with_stays_with_its_question() -> None:
    conversation = talk("old " * 20, "older " * 20, "question", "the beginning of")
    prompt = fit_prompt(conversation, DEFAULT_FORMAT, TOKENIZER, 150, 10, continue_final=True)
    assert prompt.text == "### Human: question### Assistant: the beginning of"
    assert prompt.dropped == (0, 1)
    assert TOKENIZER.decode(prompt.ids[-prompt.continued :]) == " the beginning of"
    with pytest.raises(PromptTooLong, match="This answer cannot go on"):
        fit_prompt(conversation, DEFAULT_FORMAT, TOKENIZER, 40, 10, continue_final=True)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: LetterTokenizer, text: str) -> list[int]:
        raise AssertionError("the text was tokenised")

    tokenizer = LetterTokenizer()
    monkeypatch.setattr(LetterTokenizer, "encode", encode)
    long = Conversation().adding(Message("user", "a" * (tokenizer.longest_token * 100)))
    with pytest.raises(PromptTooLong, match=r"at least 100 tokens, and at most 75 fit"):
        fit_prompt(long, FORMATS["guanaco"], tokenizer, 100, 1000)


def test_the_use_of_the_window_is_that_of_the_prompt_to_be_sent(demo_fp32: LoadedModel) -> None:
    conversation, tokenizer = talk("What is 7 plus 5?", "12."), demo_fp32.tokenizer
    use = context_use(conversation, "And 3 more?", DEFAULT_FORMAT, tokenizer, 512, 100)
    sent = render(talk("What is 7 plus 5?", "12.", "And 3 more?"), DEFAULT_FORMAT, tokenizer)
    assert use.history + use.draft == len(sent.ids)
    assert (use.answer, use.window, use.dropped, use.problem) == (100, 512, (), None)
    draft = "x" * 100
    whole = len(render(conversation.adding(Message("user", draft)), DEFAULT_FORMAT, TOKENIZER).ids)
    assert context_use(conversation, draft, DEFAULT_FORMAT, TOKENIZER, whole + 10, 10).dropped == ()
    assert context_use(conversation, draft, DEFAULT_FORMAT, TOKENIZER, whole + 9, 10).dropped == (0, 1), (
        "known before it is sent"
    )


def test_a_huge_draft_is_not_tokenised_to_its_end(demo_fp32: LoadedModel) -> None:
    seen = []

    class Counting:
        longest_token, bos_id = 16, 1

        def encode_continuation(self, text: str) -> list[int]:
            seen.append(len(text))
            return demo_fp32.tokenizer.encode_continuation(text)

    use = context_use(talk("a", "b"), "words and words " * 500_000, DEFAULT_FORMAT, Counting(), 512, 100)  # type: ignore[arg-type]
    assert use.problem is not None
    assert "at least" in use.problem
    began = time.perf_counter()
    assert context_use(talk("a", "b"), "a b " * 2000, DEFAULT_FORMAT, Counting(), 512, 100).draft > 412  # type: ignore[arg-type]
    assert sum(seen) < 20_000
    assert time.perf_counter() - began < 60


def test_ids_of_a_model_with_another_tokenizer_are_not_used() -> None:
    class Shouting(LetterTokenizer):
        def decode(self, ids: Sequence[int]) -> str:
            return super().decode(ids).upper()

    tokenizer = LetterTokenizer()
    answer = Message("assistant", "Paris.", tuple(tokenizer.encode("Paris.")), "stop")
    conversation = Conversation(messages=(Message("user", "Where?"), answer))
    assert with_own_ids(conversation, tokenizer) is conversation
    other = with_own_ids(conversation, Shouting())
    assert (other.messages[1].ids, other.messages[1].content, other.messages[1].id) == ((), "Paris.", answer.id)
    unknown = replace(answer, ids=(-5, 2**40))
    assert with_own_ids(replace(conversation, messages=(conversation.messages[0], unknown)), tokenizer).messages[1].ids == ()
