"""The CUDA scheduler over a decoder that computes on the CPU: its steps are started ahead, and hand out the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from qlora_chat.engines import EngineError, OutOfMemory
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.cuda.policy import StepLimits
from qlora_chat.engines.cuda.prefill.reader import PrefillPass
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.fakes import NumberedAdapters, PlainDecoder, single_part_pass

GREEDY = Sampling(temperature=0.0, max_new_tokens=24, seed=5)
QUESTIONS = ("What is the capital of France?", "Why do birds fly?", "What is gravity?")


class Driven:
    """A scheduler that a test steps by hand."""

    def __init__(self, model: LoadedModel, slots: int = 4, limits: StepLimits = StepLimits()) -> None:  # noqa: B008
        cache = KVCache(model.weights, slots)
        self._forward = forward = Forward(model.weights, cache)
        self.passes: list[list[int]] = []
        """Tokens of each chat in each prefill pass."""
        self.memory_for = 10_000
        """Tokens of a pass."""
        self.decoder = PlainDecoder(forward, Span)
        self.adapters = NumberedAdapters(cache)
        self.scheduler = CudaScheduler(self.decoder, self._begin, cache, self.adapters, limits=limits)  # type: ignore[arg-type]
        self._model = model

    def _begin(self, spans: Sequence[Span]) -> PrefillPass:
        return single_part_pass(lambda: self._run(spans))

    def _run(self, spans: Sequence[Span]) -> None:
        self.passes.append([len(span.ids) for span in spans])
        if sum(self.passes[-1]) > self.memory_for:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self._forward(spans)

    def ask(
        self, prompt: Prompt, sampling: Sampling = GREEDY, changes: dict[int, Sampling] | None = None, adapter: object = None
    ) -> Request:
        request = Request(prompt.ids, sampling, Stops(), self._model.info.window, self._model.tokenizer, changes)
        request.adapter = adapter
        self.scheduler.submit(request)
        return request

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.scheduler.step()


@pytest.fixture
def driven(small_fp32: LoadedModel) -> Driven:
    return Driven(small_fp32)


def ids_of(stream: Request) -> list[int]:
    return [piece.token_id for piece in stream if piece.token_id is not None]


def test_the_tokens_are_those_of_the_plain_scheduler(
    driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    streams = [driven.ask(prompt_for(text)) for text in QUESTIONS]
    driven.run()
    expected = [ids_of(shared_small_engine.stream(prompt_for(text), GREEDY, Stops())) for text in QUESTIONS]  # type: ignore[arg-type]
    assert [ids_of(stream) for stream in streams] == expected


def test_a_step_is_started_before_the_previous_tokens_are_handed_out(driven: Driven, prompt_for: Callable[..., Prompt]) -> None:
    stream = driven.ask(prompt_for("Why do birds fly?"))
    driven.run()
    assert len(ids_of(stream)) == GREEDY.max_new_tokens
    assert driven.decoder.started <= GREEDY.max_new_tokens + 1, (
        "the first token comes with the prompt's step, and one step is wasted"
    )


def test_chats_that_join_and_leave_change_nothing_for_the_others(
    driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    first = driven.ask(prompt_for(QUESTIONS[0]))
    for _ in range(6):
        driven.scheduler.step()
    second = driven.ask(prompt_for(QUESTIONS[1]), GREEDY.changed(max_new_tokens=5))
    third = driven.ask(prompt_for(QUESTIONS[2]))
    for _ in range(4):
        driven.scheduler.step()
    third.cancel()
    driven.run()
    alone = ids_of(shared_small_engine.stream(prompt_for(QUESTIONS[0]), GREEDY, Stops()))  # type: ignore[arg-type]
    assert ids_of(first) == alone
    assert len(ids_of(second)) == 5
    assert list(third)[-1].finish.reason == "cancelled"  # type: ignore[union-attr]


@pytest.mark.parametrize(("tokens", "steps"), [(8, 1), (32, 1), (40, 2), (64, 2)])
def test_a_short_prompts_first_token_comes_with_the_step_that_prefills_its_end(
    driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt], tokens: int, steps: int
) -> None:
    long = prompt_for("Tell me about " + "rivers and mountains and " * 30)
    prompt = Prompt("", long.ids[:tokens])
    stream = driven.ask(prompt)
    while not stream.generated:
        driven.scheduler.step()
    assert (driven.passes, driven.decoder.started) == ([], steps)
    driven.run()
    assert ids_of(stream) == ids_of(shared_small_engine.stream(prompt, GREEDY, Stops()))  # type: ignore[arg-type]


@pytest.mark.parametrize(("tokens", "steps"), [(8, 1), (9, 2), (40, 2), (41, 3)])
def test_a_first_token_is_sampled_in_the_kind_of_step_that_a_repeated_prompt_gets(
    driven: Driven, prompt_for: Callable[..., Prompt], tokens: int, steps: int
) -> None:
    """A repeated prompt has only its last token left to compute, and a wider step would round differently."""
    driven.decoder.narrow_rows = 8
    stream = driven.ask(Prompt("", prompt_for("Tell me about " + "rivers and mountains and " * 30).ids[:tokens]))
    while not stream.generated:
        driven.scheduler.step()
    assert driven.decoder.started - steps in (0, 1), "a step for the next token may be in flight"


@pytest.mark.parametrize(("tokens", "steps"), [((12, 20), 1), ((20, 30), 2), ((16, 16, 16, 16), 2)])
def test_short_prompts_that_come_together_are_answered_together(
    driven: Driven, prompt_for: Callable[..., Prompt], tokens: Sequence[int], steps: int
) -> None:
    """A chat that answered first would leave the others a few rows of each step."""
    long = prompt_for("Tell me about " + "rivers and mountains and " * 30).ids
    prompts = [Prompt("", (chat + 1, *long[1:count])) for chat, count in enumerate(tokens)]
    streams = [driven.ask(prompt) for prompt in prompts]
    while not all(stream.generated for stream in streams):
        driven.scheduler.step()
    assert [stream.generated for stream in streams] == [1] * len(tokens)
    assert (driven.passes, driven.decoder.started) == ([], steps)


def test_a_long_prompt_is_prefilled_in_one_pass_when_no_chat_answers(
    driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    long = prompt_for("Tell me about " + "rivers and mountains and " * 30)
    assert len(long.ids) > StepLimits().prefill_rows_idle
    alone = driven.ask(long)
    driven.run()
    assert driven.decoder.widest == 1, "prefilled by the eager pass"
    assert ids_of(alone) == ids_of(shared_small_engine.stream(long, GREEDY, Stops()))  # type: ignore[arg-type]


def test_a_short_prompt_is_prefilled_in_the_spare_rows_of_an_answers_steps(
    driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    driven.ask(prompt_for("Why do birds fly?"), GREEDY.changed(max_new_tokens=40))
    driven.run(4)
    driven.passes.clear()
    prompt = prompt_for("What do you know of lakes and forests?")
    mixed = driven.ask(prompt)
    driven.run()
    assert driven.passes == []
    assert 1 < driven.decoder.widest <= 16, "part of the prompt in each step"
    assert ids_of(mixed) == ids_of(shared_small_engine.stream(prompt, GREEDY, Stops()))  # type: ignore[arg-type]


def test_chats_that_come_together_are_prefilled_and_answered_together(
    driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    prompts = [prompt_for(f"Tell me about {what} " * 12) for what in ("rivers", "lakes", "forests", "mountains")]
    streams = [driven.ask(each) for each in prompts]
    driven.run()
    assert driven.passes == [[len(each.ids) - 1 for each in prompts]]
    assert driven.decoder.started <= GREEDY.max_new_tokens + 2, "no step was spent on prefill"
    expected = [ids_of(shared_small_engine.stream(each, GREEDY, Stops())) for each in prompts]  # type: ignore[arg-type]
    assert [ids_of(stream) for stream in streams] == expected


def test_a_first_token_does_not_wait_for_every_prompt_behind_it(
    small_fp32: LoadedModel, prompt_for: Callable[..., Prompt]
) -> None:
    driven = Driven(small_fp32, limits=StepLimits(pass_tokens=64, first_token_wait=128))
    first = driven.ask(prompt_for("Why do birds fly?"), GREEDY.changed(max_new_tokens=2))
    others = [driven.ask(prompt_for("What do you know of " + "lakes and forests and " * 30)) for _ in range(3)]
    for _ in range(5):
        driven.scheduler.step()
    assert first.generated, "two passes over the other prompts, then its own token"
    assert all(other.pending > 1 for other in others[1:])
    for other in others:
        other.cancel()
    driven.run()


@pytest.mark.parametrize("max_rows", [2, 8])
def test_where_a_step_has_few_rows_chats_take_turns_and_all_of_them_answer(
    max_rows: int, driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    driven.decoder.max_rows = max_rows
    streams = [driven.ask(prompt_for(text)) for text in QUESTIONS]
    driven.run(60)
    generated = [stream.generated for stream in streams]
    assert max(generated) - min(generated) <= 2, "no chat waits for the others to end"
    late = driven.ask(prompt_for("What is a river?"))
    driven.run()
    assert driven.decoder.widest <= max_rows
    expected = [ids_of(shared_small_engine.stream(prompt_for(text), GREEDY, Stops())) for text in QUESTIONS]  # type: ignore[arg-type]
    assert [ids_of(stream) for stream in streams] == expected
    assert len(ids_of(late)) == GREEDY.max_new_tokens


def test_the_next_turn_prefills_only_its_new_tokens(driven: Driven, prompt_for: Callable[..., Prompt]) -> None:
    first = prompt_for("What is gravity?")
    stream = driven.ask(first)
    driven.run()
    answer = ids_of(stream)
    again = driven.ask(Prompt("", (*first.ids, *answer[:-1], 5, 6, 7)))
    driven.run()
    finish = list(again)[-1].finish
    assert finish is not None
    assert finish.cached_tokens == len(first.ids) + len(answer) - 1


def test_every_row_of_a_chat_has_the_number_of_its_adapter(driven: Driven, prompt_for: Callable[..., Prompt]) -> None:
    driven.ask(prompt_for("Why do birds fly?"), GREEDY.changed(max_new_tokens=60))
    driven.run(4)
    driven.ask(prompt_for("What is gravity?"), adapter=5)
    driven.scheduler.step()
    driven.scheduler.step()
    base, *others = driven.decoder.rows
    assert base.adapter == -1
    assert {row.adapter for row in others} == {5}, "of its prompt"
    driven.run(6)
    assert [row.adapter for row in driven.decoder.rows] == [-1, 5], "of its answer"


def test_a_slider_acts_on_the_very_next_token(driven: Driven, prompt_for: Callable[..., Prompt]) -> None:
    stream = driven.ask(prompt_for("What is gravity?"), GREEDY.changed(max_new_tokens=200))
    for _ in range(8):
        driven.scheduler.step()
    so_far = stream.generated
    assert so_far > 2
    stream.update(GREEDY.changed(max_new_tokens=so_far + 1))
    driven.run()
    assert len(ids_of(stream)) == so_far + 1, "the token sampled with the old settings is dropped"


def test_a_slider_that_was_moved_is_moved_at_the_same_token_again(driven: Driven, prompt_for: Callable[..., Prompt]) -> None:
    prompt, warm = prompt_for("Why do birds fly?"), GREEDY.changed(temperature=2.0)
    stream = driven.ask(prompt)
    while stream.generated < 5:
        driven.scheduler.step()
    stream.update(warm)
    driven.run()
    pieces = list(stream)
    recorded = [piece.token_id for piece in pieces]
    assert pieces[-1].finish
    changes = pieces[-1].finish.changes
    assert changes
    assert changes == ((5, warm),), "the very next one, although a step with the old settings was in flight"
    again, late = driven.ask(prompt, changes=dict(changes)), driven.ask(prompt, changes={8: warm})
    driven.run()
    assert ids_of(again) == recorded
    later = ids_of(late)
    assert later[:5] == recorded[:5]
    assert later != recorded, "the moment matters"


def test_a_failed_step_fails_the_running_requests_only(driven: Driven, prompt_for: Callable[..., Prompt]) -> None:
    failing = driven.ask(prompt_for("Why do birds fly?"))
    driven.decoder.fail_at = 4
    with pytest.raises(RuntimeError, match="fallen out"):
        driven.run()
    driven.scheduler.fail_all(RuntimeError("the card has fallen out"))
    with pytest.raises(EngineError, match="fallen out"):
        list(failing)
    after = driven.ask(prompt_for("What is gravity?"))
    driven.run()
    assert len(ids_of(after)) == GREEDY.max_new_tokens


def test_a_prompt_without_memory_for_one_pass_is_prefilled_in_smaller_ones(
    driven: Driven, shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    driven.memory_for = 70
    prompt = prompt_for("What do you know of " + "lakes and forests and " * 50)
    stream = driven.ask(prompt)
    driven.run()
    assert ids_of(stream) == ids_of(shared_small_engine.stream(prompt, GREEDY, Stops()))  # type: ignore[arg-type]
    tried = [sum(each) for each in driven.passes]
    too_many = [each for each in tried if each > 70]
    assert too_many
    assert tried[: len(too_many)] == too_many, "the limit is known from then on"


def test_a_prompt_without_memory_for_any_pass_fails_alone(driven: Driven, prompt_for: Callable[..., Prompt]) -> None:
    answer = driven.ask(prompt_for("Why do birds fly?"), GREEDY.changed(max_new_tokens=60))
    driven.run(6)
    driven.memory_for = 0
    failing = driven.ask(prompt_for("What do you know of " + "lakes and forests and " * 50))
    driven.run()
    assert len(ids_of(answer)) == 60
    with pytest.raises(OutOfMemory, match="shorten the conversation"):
        list(failing)
