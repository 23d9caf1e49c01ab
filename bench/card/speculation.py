"""Prompt-lookup speculation on a card: on against off, in turns.

    PYTHONPATH=src python bench/card/speculation.py                        the bundled demo, its own text
    PYTHONPATH=src python bench/card/speculation.py --shape 7b [--chats 1,8]     random weights of LLaMA-7B's shape

With the demo, as in bench/cpu/speculation.py: an answer that quotes, greedy and sampled, and ordinary ones. Random weights
produce no repetition: either every draft is right (`known`: an earlier answer is drafted again), which bounds the gain, or
drafts come from text without a pattern (`lookup`), which must cost nothing. Answers on and off must be the same, token for
token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from qlora_chat.benchmark import SAMPLING, Subject
from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import clear_prefix_cache, generate_together, quoting_prompt, total_rate
from qlora_chat.benchmark.subjects import QUESTIONS, Demo, chat_prompt, open_subject
from qlora_chat.engines.core.prompt_lookup import Draft, PassCosts
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.local import LocalEngine
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling

ROUNDS, NEW = 5, 160
GREEDY = Sampling(temperature=0.0, max_new_tokens=NEW)
CHAT = SAMPLING.changed(max_new_tokens=NEW, seed=0)
DRAFT = Request.draft


def switch(engine: LocalEngine, on: bool) -> None:
    scheduler = engine._scheduler
    assert isinstance(scheduler, CudaScheduler), "the fast kernels did not take this model"
    scheduler.costs = PassCosts(scheduler.limits.step_costs) if on else None


def answer(engine: LocalEngine, prompts: list[Prompt], sampling: Sampling, *, fresh: bool = True) -> list[Any]:
    """Answer all prompts at once, with an empty prefix cache if `fresh`."""
    if fresh:
        clear_prefix_cache(engine)
    return generate_together(engine, prompts, sampling)


def ids_of(answers: list[Any]) -> list[list[int]]:
    return [[piece.token_id for piece in pieces] for pieces in answers]


def check_same(engine: LocalEngine, on: list[list[int]], off: list[list[int]]) -> None:
    """Exit if an answer with drafts differs from that without: then timings are worthless."""
    for chat, (ours, plain) in enumerate(zip(on, off, strict=True)):
        if ours != plain:
            at = next((at for at, (a, b) in enumerate(zip(ours, plain, strict=False)) if a != b), min(len(ours), len(plain)))
            engine.close()  # its thread must not outlive the interpreter
            sys.exit(f"answer {chat}, token {at}: {ours[at : at + 1]} with drafts, {plain[at : at + 1]} without")


def compared(engine: LocalEngine, prompts: list[Prompt], sampling: Sampling) -> dict[str, float]:
    """Time both in turns. Several prompts are prefilled once before: a prefill rounds differently in another batch."""
    ratios, ons, steps, alone = [], [], 0, len(prompts) == 1
    answer(engine, prompts, sampling)
    for number in range(ROUNDS):
        rates, ids = {}, {}
        for on in (True, False) if number % 2 else (False, True):
            switch(engine, on)
            before = engine.forwards
            answers = answer(engine, prompts, sampling, fresh=alone)
            rates[on], ids[on] = total_rate(answers), ids_of(answers)
            steps = engine.forwards - before if on else steps
        check_same(engine, ids[True], ids[False])
        ons.append(rates[True])
        ratios.append(rates[True] / rates[False])
    return {
        "on, tokens/s": round(statistics.median(ons), 1), "on / off": round(statistics.median(ratios), 3),
        "tokens a step": round(len(prompts) * NEW / steps, 2),
    }  # fmt: skip


def known(engine: LocalEngine, prompts: list[Prompt], sampling: Sampling) -> Callable[[Request], Draft]:
    """Return a proposer whose drafts are all right: the answers to these prompts without speculation."""
    switch(engine, False)
    answers = dict(zip((each.ids for each in prompts), ids_of(answer(engine, prompts, sampling)), strict=True))

    def draft(request: Request) -> Draft:
        done = request.generated
        whole = answers[tuple(request.ids[: len(request.ids) - done])]
        left = whole[done : min(done + 15, request.sampling.max_new_tokens - 1)]
        return Draft(tuple(left), tuple(0.97**at for at in range(1, len(left) + 1)))

    return draft


def demo() -> dict[str, Any]:
    engine = LocalEngine(Demo(Subject("demo", "auto", "bf16")).load)
    quote = quoting_prompt(engine, engine.tokenizer, QUESTIONS[0])
    chats = [chat_prompt(engine.tokenizer, question) for question in QUESTIONS]
    figures = {
        "quoting, greedy": compared(engine, [quote], GREEDY),
        "quoting, sampled": compared(engine, [quote], CHAT.changed(repetition_penalty=1.0)),
        "chat": compared(engine, [chats[0]], CHAT),
        "another chat": compared(engine, [chats[3]], CHAT),
        "eight chats": compared(engine, chats, CHAT),
    }
    engine.close()
    return figures


def shape(name: str, layers: int | None, chats: list[int]) -> dict[str, Any]:
    what = open_subject(Subject(name, "cuda", "nf4", layers))
    engine, figures = LocalEngine(what.load, slots=max(chats)), {}
    for count in chats:
        prompts = [Prompt("", what.prompt(128, seed)) for seed in range(count)]
        for kind, sampling in (("greedy", GREEDY), ("sampled", CHAT)):
            figures[f"{count} chats, {kind}, lookup"] = compared(engine, prompts, sampling)
            Request.draft = known(engine, prompts, sampling)  # type: ignore[method-assign]
            figures[f"{count} chats, {kind}, known"] = compared(engine, prompts, sampling)
            Request.draft = DRAFT  # type: ignore[method-assign]
    costs = engine._scheduler.costs  # type: ignore[union-attr]
    figures["seconds a step, as learnt"] = {rows: round(costs(rows), 6) for rows in (1, 2, 4, 8, 16)} if costs else None
    engine.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["7b"])
    parser.add_argument("--layers", type=int, help="with --shape: number of layers, for a dry run")
    parser.add_argument("--chats", default="1,8")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this is for a graphics card; bench/cpu/speculation.py measures a CPU")
    figures = shape(chosen.shape, chosen.layers, [int(each) for each in chosen.chats.split(",")]) if chosen.shape else demo()
    print_report("card/speculation", figures)


if __name__ == "__main__":
    main()
