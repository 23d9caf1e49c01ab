"""Prompt-lookup speculation with the bundled demo on this CPU: on against off, where it should win and where it must not lose.

    python bench/cpu/speculation.py

One engine, merged bf16, switched on and off in turns, ten rounds each; medians of paired ratios. "quoting": the
demo answers greedily with its own answer in the prompt; "chat": ordinary questions at T 0.7, top-k 40, top-p
0.9, penalty 1.1; "eight chats": those at once. Answers on and off are compared first: they must be the same, in bf16 too. Also
prints the relative time of passes over 1 to 16 tokens, from which EXPECTED_COSTS is made.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import Future
from typing import Any

from engine import open_local

from qlora_chat.benchmark import SAMPLING
from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import clear_prefix_cache, generate_together, quoting_prompt, total_rate
from qlora_chat.benchmark.subjects import QUESTIONS, chat_prompt
from qlora_chat.engines.core.prompt_lookup import EXPECTED_COSTS, PassCosts
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling

ROUNDS, NEW = 10, 160
GREEDY = Sampling(temperature=0.0, max_new_tokens=NEW)
CHAT = SAMPLING.changed(max_new_tokens=NEW, seed=0)


def switch(engine, on: bool) -> None:
    engine._scheduler._costs = PassCosts(EXPECTED_COSTS["cpu"]) if on else None


def answer(engine, prompts: list[Prompt], sampling: Sampling) -> list[Any]:
    """Answer all prompts at once with an empty prefix cache."""
    clear_prefix_cache(engine)
    return generate_together(engine, prompts, sampling)


def prompts_of(engine) -> tuple[Prompt, list[Prompt]]:
    """Return a prompt that makes greedy decoding quote, and ordinary questions."""
    chats = [chat_prompt(engine.tokenizer, question) for question in QUESTIONS]
    return quoting_prompt(engine, engine.tokenizer, QUESTIONS[0]), chats


def compared(engine, prompts: list[Prompt], sampling: Sampling, costs: list[float]) -> dict[str, Any]:
    """Paired rates, on and off; and the noise-free ratio by the widths of the passes, at each width's cost here."""
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
        rates = {}
        for on in (True, False) if number % 2 else (False, True):
            switch(engine, on)
            before = engine.forwards
            rates[on] = total_rate(answer(engine, prompts, sampling))
            passes = engine.forwards - before if on else passes
        ons.append(rates[True])
        offs.append(rates[False])
        ratios.append(rates[True] / rates[False])
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
    """Return the number of answers that are the same on and off; exit if one is not."""
    engine = open_local()
    quote, chats = prompts_of(engine)
    prompts = [*chats, quote]
    same = 0
    for prompt in prompts:
        for sampling in (GREEDY, CHAT):
            ids = []
            for on in (True, False):
                switch(engine, on)
                ids.append([piece.token_id for piece in answer(engine, [prompt], sampling)[0]])
            same += ids[0] == ids[1]
    engine.close()
    if same < 2 * len(prompts):
        sys.exit(f"only {same} of {2 * len(prompts)} answers are the same on and off: timings would be worthless")
    return same


def pass_costs(engine) -> list[float]:
    """Return the time of passes over 1 to 16 tokens of one chat, relative to one: on the engine's thread, 128 tokens in."""
    done: Future[list[float]] = Future()
    forward = engine._scheduler._forward

    def work() -> list[float]:
        from qlora_chat.engines.core.forward_pass import Span

        ids = list(range(5, 200))
        forward([Span(0, 0, ids[:128])])
        seconds: dict[int, list[float]] = {count: [] for count in range(1, 17)}
        for _ in range(30):
            for count, times in seconds.items():
                began = time.perf_counter()
                forward([Span(0, 128, ids[128 : 128 + count], logits=count)])
                times.append(time.perf_counter() - began)
        one = statistics.median(seconds[1])
        return [round(statistics.median(times) / one, 2) for times in seconds.values()]

    def once(spans):
        engine._scheduler._forward = forward
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)
        return forward(spans)

    engine._scheduler._forward = once
    answer(engine, [chat_prompt(engine.tokenizer, "Hello")], GREEDY.changed(max_new_tokens=2))
    return done.result()


def main() -> None:
    same = same_answers()
    engine = open_local()
    quote, chats = prompts_of(engine)
    costs = pass_costs(engine)
    print_report(
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
