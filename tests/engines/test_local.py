"""The engine with the bundled demo: Transformers' tokens, many chats in one pass, and errors that stay with their chat."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import EngineError, Finish, Piece, Stream
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.local import LocalEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import DEFAULT_FORMAT, Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import StopOnTokens, Stops

GREEDY = Sampling(temperature=0.0, max_new_tokens=64)
STOPS = Stops(frozenset({2}), DEFAULT_FORMAT.stop_texts)
QUESTIONS = (
    "What is the capital of France?",
    "Tell me a short story about a cat and a boat.",
    "Why do birds fly?",
    "Write a poem about rain.",
    "How do I make a cup of tea?",
    "What is 7 plus 5?",
    "Give me three tips for staying healthy.",
    "What is gravity?",
)


@pytest.fixture(scope="module")
def reference(demo_fp32: LoadedModel) -> Any:
    """The merged demo in plain Transformers, fp32."""
    from peft import PeftModel

    from qlora_chat.models.locate import BUNDLED

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own deprecations
        base = AutoModelForCausalLM.from_pretrained(BUNDLED / "base", dtype=torch.bfloat16).dequantize().to(torch.bfloat16)
        return PeftModel.from_pretrained(base, str(BUNDLED / "adapter")).merge_and_unload().float().eval()


def ids_of(stream: Stream) -> list[int]:
    return [piece.token_id for piece in stream if piece.token_id is not None]


def text_of(stream: Stream) -> str:
    return "".join(piece.text for piece in stream)


def finish_of(stream: Stream) -> Finish:
    last = list(stream)[-1]
    assert last.finish is not None
    return last.finish


@pytest.mark.parametrize("question", QUESTIONS[:2])
def test_greedy_tokens_are_those_of_generate(
    question: str, shared_engine: LocalEngine, prompt_for: Callable[..., Prompt], reference: Any
) -> None:
    prompt = prompt_for(question)
    ids = torch.tensor([prompt.ids])
    expected = reference.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0
    )[0, len(prompt.ids) :].tolist()
    assert ids_of(shared_engine.stream(prompt, GREEDY, Stops())) == expected


def test_our_stop_on_tokens_ends_generate_too(
    demo_fp32: LoadedModel, prompt_for: Callable[..., Prompt], reference: Any
) -> None:
    ids = torch.tensor([prompt_for(QUESTIONS[0]).ids])
    full_stop = demo_fp32.tokenizer.encode_continuation("Paris.")[-1]
    out = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=64,
        stopping_criteria=[StopOnTokens([full_stop])],
        pad_token_id=0,
    )
    assert out[0].tolist()[-1] == full_stop
    assert out[0].tolist().count(full_stop) == 1


def test_eight_chats_together_give_the_same_answers_as_alone(
    shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    prompts = [prompt_for(question) for question in QUESTIONS]
    settings = [GREEDY, Sampling(temperature=0.9, seed=11, max_new_tokens=64, repetition_penalty=1.2)] * 4
    alone = [ids_of(shared_small_engine.stream(p, s, STOPS)) for p, s in zip(prompts, settings, strict=True)]
    streams = [shared_small_engine.stream(p, s, STOPS) for p, s in zip(prompts, settings, strict=True)]
    assert [ids_of(stream) for stream in streams] == alone


class PausedEngine:
    """Pauses an engine before its nth pass until `resume` is set, and records the spans of each pass."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
        self.reached, self.resume = threading.Event(), threading.Event()
        self.passes: list[list[Span]] = []
        scheduler: Any = engine._scheduler
        forward = scheduler._forward

        def paused(spans: list[Span]) -> torch.Tensor:
            self.passes.append(spans)
            if len(self.passes) == before:
                self.reached.set()
                assert self.resume.wait(60)
            return forward(spans)

        monkeypatch.setattr(scheduler, "_forward", paused)


def test_one_forward_a_step_serves_all(
    small_engine: LocalEngine, prompt_for: Callable[..., Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    length, sampling = 40, Sampling(temperature=0.0, max_new_tokens=40)
    paused = PausedEngine(small_engine, monkeypatch, before=1)
    streams = [small_engine.stream(prompt_for(question), sampling, Stops()) for question in QUESTIONS]
    paused.resume.set()
    for stream in streams:
        assert finish_of(stream).completion_tokens == length
    assert small_engine.forwards <= length + 12, "eight chats of 40 tokens take about 40 passes, not 320"


def test_a_new_chat_joins_within_a_step(
    small_engine: LocalEngine, prompt_for: Callable[..., Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = PausedEngine(small_engine, monkeypatch, before=6)
    first = small_engine.stream(prompt_for(QUESTIONS[1]), Sampling(temperature=0.0, max_new_tokens=100), Stops())
    assert paused.reached.wait(60)
    second = small_engine.stream(prompt_for(QUESTIONS[0]), GREEDY, Stops())
    paused.resume.set()
    assert finish_of(first).completion_tokens == 100
    assert finish_of(second).completion_tokens == 64
    assert [len(spans) for spans in paused.passes[:7]] == [1, 1, 1, 1, 1, 1, 2], "in the pass after the running one"


def test_an_answer_ends_at_a_stop(shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]) -> None:
    stream = shared_engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == " The capital of France is Paris."
    assert [piece.finish is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    finish = pieces[-1].finish
    assert finish is not None
    assert finish.reason == "stop"
    assert finish.prompt_tokens == len(prompt_for(QUESTIONS[0]).ids)
    assert finish.ttft_ms is not None
    assert finish.ttft_ms > 0
    assert finish.tokens_per_s is not None
    assert finish.tokens_per_s > 0


def test_length_ends_an_answer_and_the_window_does_too(
    shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    prompt = prompt_for(QUESTIONS[1])
    assert (
        finish_of(shared_small_engine.stream(prompt, Sampling(temperature=0.0, max_new_tokens=3), Stops())).completion_tokens
        == 3
    )
    long = prompt_for("rivers and lakes and hills " * 50)
    finish = finish_of(shared_small_engine.stream(long, Sampling(temperature=1.0, max_new_tokens=9000, seed=1), Stops()))
    assert finish.reason == "length"
    assert finish.prompt_tokens + finish.completion_tokens == shared_small_engine.info.window


def test_the_same_seed_gives_the_same_answer(shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt]) -> None:
    warm = Sampling(temperature=1.0, seed=5, max_new_tokens=40)
    first, second = (text_of(shared_small_engine.stream(prompt_for(QUESTIONS[1]), warm, STOPS)) for _ in range(2))
    other = text_of(shared_small_engine.stream(prompt_for(QUESTIONS[1]), warm.changed(seed=6), STOPS))
    assert first == second != other


def test_settings_changed_during_an_answer_apply_from_the_next_token(
    shared_small_engine: LocalEngine, prompt_for: Callable[..., Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From wild sampling to greedy: what follows is what greedy says after the tokens so far."""
    prompt = prompt_for(QUESTIONS[1])
    paused = PausedEngine(shared_small_engine, monkeypatch, before=21)
    stream = shared_small_engine.stream(prompt, Sampling(temperature=1.5, seed=3, max_new_tokens=80), Stops())
    assert paused.reached.wait(60)
    stream.update(Sampling(temperature=0.0, max_new_tokens=80))
    paused.resume.set()
    ids = ids_of(stream)
    wild = paused.passes[20][0].start + 1 - len(prompt.ids)
    begun = (*prompt.ids, *ids[:wild])
    assert wild >= 20
    assert (
        ids_of(shared_small_engine.stream(Prompt("", begun), Sampling(temperature=0.0, max_new_tokens=80 - wild), Stops()))
        == ids[wild:]
    )


def test_cancel_ends_within_a_token_and_frees_the_slot(demo_fp32: LoadedModel, prompt_for: Callable[..., Prompt]) -> None:
    engine = LocalEngine(lambda: demo_fp32, slots=1)
    long = Sampling(temperature=0.0, max_new_tokens=400)
    stream = engine.stream(prompt_for(QUESTIONS[1]), long, Stops())
    pieces = iter(stream)
    for _ in range(5):
        next(pieces)
    waiting = engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS)
    before = engine.forwards
    stream.cancel()
    stream.cancel()
    rest = list(pieces)
    assert rest[-1].finish is not None
    assert rest[-1].finish.reason == "cancelled"
    assert rest[-1].finish.completion_tokens <= 5 + len(rest)
    assert text_of(waiting) == " The capital of France is Paris.", "the only slot was free again"
    assert engine.forwards - before <= len(rest) + 16, "nothing more was computed for the cancelled chat"
    engine.close()


def test_a_waiting_chat_can_be_cancelled_too(demo_fp32: LoadedModel, prompt_for: Callable[..., Prompt]) -> None:
    engine = LocalEngine(lambda: demo_fp32, slots=1)
    first = engine.stream(prompt_for(QUESTIONS[1]), Sampling(max_new_tokens=300), Stops())
    second = engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS)
    second.cancel()
    assert finish_of(second).reason == "cancelled"
    first.cancel()
    engine.close()


class BrokenSampling:
    """Settings that raise when they are used, in place of any error of a single chat."""

    repetition_penalty = "broken"
    temperature = top_p = 1.0
    top_k = 0
    max_new_tokens = 10


def test_an_exception_reaches_its_own_caller_and_no_other(engine: LocalEngine, prompt_for: Callable[..., Prompt]) -> None:
    good = engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS)
    bad = engine.stream(prompt_for(QUESTIONS[2]), Sampling(max_new_tokens=300), Stops())
    bad.update(BrokenSampling())  # type: ignore[arg-type]
    with pytest.raises(EngineError):
        list(bad)
    assert text_of(good) == " The capital of France is Paris."
    assert text_of(engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS)) == " The capital of France is Paris."


def test_a_pass_that_fails_for_one_chat_continues_for_the_others(
    demo_fp32: LoadedModel, prompt_for: Callable[..., Prompt]
) -> None:
    """Out of memory whenever the victim's long prompt is in the pass, as on a full card."""
    engine = LocalEngine(lambda: demo_fp32, slots=4)
    scheduler: Any = engine._scheduler
    forward, victim = scheduler._forward, prompt_for("why " * 200)

    def short_of_memory(spans: Any) -> torch.Tensor:
        if any(len(span.ids) > 60 for span in spans):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(spans)

    scheduler._forward = short_of_memory
    streams = [engine.stream(prompt_for(question), GREEDY, STOPS) for question in QUESTIONS[:3]]
    broken = engine.stream(victim, GREEDY, STOPS)
    with pytest.raises(EngineError, match="not enough memory for this answer"):
        list(broken)
    assert text_of(streams[0]) == " The capital of France is Paris."
    assert all(text_of(stream) for stream in streams[1:])
    engine.close()


def test_damaged_weights_are_an_error_and_not_an_answer(demo_fp32: LoadedModel, prompt_for: Callable[..., Prompt]) -> None:
    engine = LocalEngine(lambda: demo_fp32, slots=1)
    scheduler: Any = engine._scheduler
    forward = scheduler._forward
    scheduler._forward = lambda spans: forward(spans) * torch.nan
    with pytest.raises(EngineError, match="not a number"):
        list(engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS))
    engine.close()


@pytest.mark.parametrize(
    ("ids", "adapter", "message"),
    [((), None, "empty"), ((1, 8192), None, "8191"), ((1, -1), None, "8191"), ((1,) * 512, None, "window"), ((1,), "x", "'x'")],
)
def test_an_invalid_prompt_is_refused_at_the_call(
    ids: tuple[int, ...], adapter: str | None, message: str, shared_engine: LocalEngine
) -> None:
    with pytest.raises(ValueError, match=message):
        shared_engine.stream(Prompt("", ids), GREEDY, STOPS, adapter)


def test_closing_ends_running_answers_and_the_thread(demo_fp32: LoadedModel, prompt_for: Callable[..., Prompt]) -> None:
    engine = LocalEngine(lambda: demo_fp32)
    stream = engine.stream(prompt_for(QUESTIONS[1]), Sampling(max_new_tokens=400), Stops())
    engine.close()
    assert finish_of(stream).reason == "cancelled"
    assert not any(thread.name == "qlora-chat-engine" and thread is engine._thread for thread in threading.enumerate())
    with pytest.raises(EngineError, match="closed"):
        engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS)


def test_an_error_while_loading_is_raised_by_the_constructor() -> None:
    def fails() -> LoadedModel:
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        LocalEngine(fails)


def test_every_turn_prefills_only_new_tokens_and_answers_as_after_a_fresh_prefill(demo_fp32: LoadedModel) -> None:
    engine, fresh = LocalEngine(lambda: demo_fp32, slots=2), LocalEngine(lambda: demo_fp32, slots=1)
    chat = Chat(engine, DEFAULT_FORMAT, MemoryHistory())
    conversation, brief = Conversation(), Sampling(temperature=0.0, max_new_tokens=20)
    texts = ["My name is Tom.", "What is my name?", "What is 2 plus 3?", "Hi!", "What is a dog?"]
    for turn_number, text in enumerate(texts, 1):
        turn = chat.reply(conversation, text, AnswerOptions(brief))
        answer = [piece.token_id for piece in turn if piece.token_id is not None]
        conversation = turn.conversation
        assert turn.finish is not None
        assert not turn.prompt.dropped, "these turns fit the window"
        if turn_number > 1:
            new = turn.finish.prompt_tokens - turn.finish.cached_tokens
            question = len(demo_fp32.tokenizer.encode_continuation(f"### Human: {text}### Assistant:"))
            assert new <= question + 1, "the question, and an answer's last token, which nothing has followed yet"
        again = fresh.stream(turn.prompt, brief, STOPS)
        _clear_cache(fresh)
        assert ids_of(again) == answer
    engine.close()
    fresh.close()


def _clear_cache(engine: LocalEngine) -> None:
    """Wait until the engine is idle and empty its cache, so that its next prompt is prefilled whole."""
    deadline = time.monotonic() + 60
    while not engine._scheduler.idle and time.monotonic() < deadline:
        time.sleep(0.005)
    for slot in engine._cache.slots:
        slot.ids.clear()


def test_a_slow_reader_receives_every_piece(shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]) -> None:
    stream = shared_engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS)
    time.sleep(0.5)
    pieces: list[Piece] = list(stream)
    assert "".join(piece.text for piece in pieces) == " The capital of France is Paris."


def test_as_many_slots_as_fit_are_allocated(demo_fp32: LoadedModel) -> None:
    engine = LocalEngine(lambda: demo_fp32)
    assert engine.slots == 16
    engine.close()


def test_logits_for_another_thread_are_computed_on_the_engine_s(
    shared_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a card's graphs or OpenMP's team may be running."""
    threads = list[str]()

    def forward(spans: object) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return torch.zeros(1, 4)

    monkeypatch.setattr(shared_engine._scheduler, "compute_logits", forward)
    assert shared_engine.forward([]).shape == (1, 4)
    assert threads == ["qlora-chat-engine"]


def test_a_cut_answer_goes_on_as_if_it_had_not_been_cut(shared_engine: LocalEngine) -> None:
    chat = Chat(shared_engine, DEFAULT_FORMAT, MemoryHistory())
    question = "Tell me about the sea."
    list(whole := chat.reply(Conversation(), question, AnswerOptions(Sampling(temperature=0.0, max_new_tokens=30))))
    list(cut := chat.reply(Conversation(), question, AnswerOptions(Sampling(temperature=0.0, max_new_tokens=11))))
    assert cut.finish is not None
    assert cut.finish.reason == "length"
    list(rest := chat.continue_answer(cut.conversation, AnswerOptions(Sampling(temperature=0.0, max_new_tokens=19))))
    assert rest.answer == whole.answer
    assert rest.conversation.messages[-1].ids == whole.conversation.messages[-1].ids
    assert rest.finish is not None
    assert rest.finish.cached_tokens >= rest.prompt_tokens - 1, "only the last token is computed again"
