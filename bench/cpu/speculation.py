"""Prompt-lookup speculation on the bundled demo and this CPU: on against off, where it should win and where it must not lose.

    python bench/speculation.py

One engine, merged bf16, switched on and off in turns, ten rounds each; medians of paired ratios. "quoting": the demo is asked
to say again what it has said, greedily, its earlier answer in the prompt; "chat": ordinary questions at T 0.7, top-k 40, top-p
0.9, penalty 1.1; "eight chats": those at once. Answers on and off are compared first: they must be the same, in bf16 too. Also
prints what a pass over 1 to 16 tokens takes here, which the table of expectations is made from.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import Future
from typing import Any

from common import report
from engine import SETTINGS, open_local

from qlora_chat.engines.core.prompt_lookup import EXPECTED_COSTS, PassCosts
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

ROUNDS, NEW = 10, 160
QUESTIONS = (
    "Tell me a short story about a cat and a boat.", "Why do birds fly?", "How do I make a cup of tea?",
    "Give me three tips for staying healthy.", "What is gravity?", "Write a poem about rain.", "What can I do on a free day?",
    "Explain how a bicycle works.",
)  # fmt: skip
GREEDY = Sampling(temperature=0.0, max_new_tokens=NEW)
CHAT = Sampling(**SETTINGS, max_new_tokens=NEW)


def asked(engine, text: str, before: str = "") -> Prompt:
    ids = engine.tokenizer.encode_continuation(f"{before}### Human: {text}### Assistant:")
    return Prompt("", (1, *ids))


def switch(engine, on: bool) -> None:
    engine._scheduler._costs = PassCosts(EXPECTED_COSTS["cpu"]) if on else None


def finishes(engine, prompts: list[Prompt], sampling: Sampling, *, afresh: bool = True) -> list[Any]:
    """All answers, of chats that come together; nothing is in the cache before, or what an earlier call has left."""
    for slot in engine._cache.slots if afresh else ():
        slot.ids.clear()
    streams = [engine.stream(prompt, sampling.changed(seed=index), Stops()) for index, prompt in enumerate(prompts)]
    return [[*stream] for stream in streams]


def rate(answers) -> float:
    return sum(pieces[-1].finish.tokens_per_s for pieces in answers)


def quoting(engine) -> Prompt:
    """A long sentence or two of the demo's own in the prompt twice, so that greedy decoding goes on quoting."""
    story = "".join(piece.text for piece in finishes(engine, [asked(engine, QUESTIONS[0])], GREEDY)[0])
    turn = f"### Human: {QUESTIONS[0]}### Assistant:{story}"
    return asked(engine, QUESTIONS[0], before=turn[:900])


def compared(engine, prompts: list[Prompt], sampling: Sampling, costs: list[float]) -> dict[str, Any]:
    """Paired rates, on and off; and what the widths of the passes on say, at what each width takes here: without noise."""
    ratios, ons, offs, passes = [], [], [], 0
    widths: list[int] = []
    forward = engine._scheduler._forward

    def counting(spans):
        width = sum(len(span.ids) for span in spans)
        if engine._scheduler._costs and all(span.start for span in spans) and width <= len(costs):
            widths.append(width)
        return forward(spans)

    engine._scheduler._forward = counting
    for number in range(ROUNDS):
        found = {}
        for on in (True, False) if number % 2 else (False, True):
            switch(engine, on)
            before = engine.forwards
            found[on] = rate(finishes(engine, prompts, sampling))
            passes = engine.forwards - before if on else passes
        ons.append(found[True])
        offs.append(found[False])
        ratios.append(found[True] / found[False])
    engine._scheduler._forward = forward
    alone = costs[len(prompts) - 1] / len(prompts)
    counted = ROUNDS * len(prompts) * (NEW - 1) * alone / sum(costs[width - 1] for width in widths)
    return {
        "on, tokens/s": round(statistics.median(ons), 1),
        "off, tokens/s": round(statistics.median(offs), 1),
        "on / off": round(statistics.median(ratios), 3),
        "on / off by widths of passes": round(counted, 3),
        "tokens a pass": round(len(prompts) * NEW / passes, 2),
    }


def same_answers() -> int:
    """Answers that are the same on and off."""
    engine = open_local()
    prompts = [asked(engine, question) for question in QUESTIONS] + [quoting(engine)]
    same = 0
    for prompt in prompts:
        for sampling in (GREEDY, CHAT):
            ids = []
            for on in (True, False):
                switch(engine, on)
                ids.append([piece.token_id for piece in finishes(engine, [prompt], sampling)[0]])
            same += ids[0] == ids[1]
    engine.close()
    if same < 2 * len(prompts):
        sys.exit(f"only {same} of {2 * len(prompts)} answers are the same on and off: no timing is worth anything")
    return same


def pass_costs(engine) -> list[float]:
    """What passes over 1 to 16 tokens of one chat take, relative to one: on the engine's own thread, 128 tokens in."""
    done: Future[list[float]] = Future()
    forward = engine._scheduler._forward

    def work() -> list[float]:
        from qlora_chat.engines.eager.forward import Span

        ids = list(range(5, 200))
        forward([Span(0, 0, ids[:128])])
        seconds: dict[int, list[float]] = {count: [] for count in range(1, 17)}
        for _ in range(30):
            for count, found in seconds.items():
                began = time.perf_counter()
                forward([Span(0, 128, ids[128 : 128 + count], logits=count)])
                found.append(time.perf_counter() - began)
        one = statistics.median(seconds[1])
        return [round(statistics.median(found) / one, 2) for found in seconds.values()]

    def once(spans):
        engine._scheduler._forward = forward
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)
        return forward(spans)

    engine._scheduler._forward = once
    finishes(engine, [asked(engine, "Hello")], GREEDY.changed(max_new_tokens=2))
    return done.result()


def main() -> None:
    same = same_answers()
    engine = open_local()
    quote, chats = quoting(engine), [asked(engine, question) for question in QUESTIONS]
    costs = pass_costs(engine)
    report(
        "speculation",
        {
            "answers the same on and off": f"{same} of {2 * len(QUESTIONS) + 2}",
            "passes over 1 to 16 tokens, relative": costs,
            "quoting, greedy": compared(engine, [quote], GREEDY, costs),
            "quoting, sampled": compared(engine, [quote], CHAT.changed(repetition_penalty=1.0), costs),
            "chat": compared(engine, [chats[0]], CHAT, costs),
            "another chat": compared(engine, [chats[3]], CHAT, costs),
            "eight chats": compared(engine, chats, CHAT, costs),
        },
    )
    engine.close()


if __name__ == "__main__":
    main()
