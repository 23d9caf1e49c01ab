"""Guesses as further rows of a step on a card: on against off, in turns.

    PYTHONPATH=src python bench/speculation_card.py                        the bundled demo, its own text
    PYTHONPATH=src python bench/speculation_card.py --shape 7b [--chats 1,8]     random weights of LLaMA-7B's shape

Of the demo, as bench/speculation.py does on a CPU: an answer that quotes, greedily and sampled, and ordinary ones. Random
weights say nothing that repeats itself: there every guess is right (`known`: an answer written before is guessed again), which
bounds what can be won, or guesses are found as ever in text without a pattern (`as ever`), where nothing may be lost. Compared
first: answers on and off, which must be the same, token for token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import report
from engine import open_local
from speculation import CHAT, GREEDY, NEW, QUESTIONS, asked, finishes, quoting, rate

from qlora_chat.benchmark import Subject
from qlora_chat.benchmark.subjects import opened
from qlora_chat.engines.core.prompt_lookup import PassCosts, Proposal
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.cuda.scheduler import STEP_COSTS, CudaScheduler
from qlora_chat.engines.local import LocalEngine
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling

ROUNDS = 5
FOUND = Request.propose


def switch(engine: LocalEngine, on: bool) -> None:
    scheduler = engine._scheduler
    assert isinstance(scheduler, CudaScheduler), "the fast kernels did not take this model"
    scheduler.costs = PassCosts(STEP_COSTS) if on else None


def ids_of(answers: list[Any]) -> list[list[int]]:
    return [[piece.token_id for piece in pieces] for pieces in answers]


def check_same(engine: LocalEngine, on: list[list[int]], off: list[list[int]]) -> None:
    """Ends the run where an answer with guesses is another than without: then no timing is worth anything."""
    for chat, (ours, plain) in enumerate(zip(on, off, strict=True)):
        if ours != plain:
            at = next((at for at, (a, b) in enumerate(zip(ours, plain, strict=False)) if a != b), min(len(ours), len(plain)))
            engine.close()  # its thread must not outlive the interpreter
            sys.exit(f"answer {chat}, token {at}: {ours[at : at + 1]} with guesses, {plain[at : at + 1]} without")


def compared(engine: LocalEngine, prompts: list[Prompt], sampling: Sampling) -> dict[str, float]:
    """Several prompts are read before: what reading leaves rounds otherwise when others are read at once."""
    ratios, ons, steps, alone = [], [], 0, len(prompts) == 1
    finishes(engine, prompts, sampling)
    for number in range(ROUNDS):
        found, said = {}, {}
        for on in (True, False) if number % 2 else (False, True):
            switch(engine, on)
            before = engine.forwards
            answers = finishes(engine, prompts, sampling, afresh=alone)
            found[on], said[on] = rate(answers), ids_of(answers)
            steps = engine.forwards - before if on else steps
        check_same(engine, said[True], said[False])
        ons.append(found[True])
        ratios.append(found[True] / found[False])
    return {
        "on, tokens/s": round(statistics.median(ons), 1), "on / off": round(statistics.median(ratios), 3),
        "tokens a step": round(len(prompts) * NEW / steps, 2),
    }  # fmt: skip


def known(engine: LocalEngine, prompts: list[Prompt], sampling: Sampling) -> Callable[[Request], Proposal]:
    """Guesses that are all right: the answers to these prompts, as they are without guessing."""
    switch(engine, False)
    answers = dict(zip((each.ids for each in prompts), ids_of(finishes(engine, prompts, sampling)), strict=True))

    def propose(request: Request) -> Proposal:
        said = request.generated
        left = answers[tuple(request.ids[: len(request.ids) - said])][
            said : min(said + 15, request.sampling.max_new_tokens - 1)
        ]
        return Proposal(tuple(left), tuple(0.97**at for at in range(1, len(left) + 1)))

    return propose


def demo() -> dict[str, Any]:
    engine = open_local()
    quote, chats = quoting(engine), [asked(engine, question) for question in QUESTIONS]
    found = {
        "quoting, greedy": compared(engine, [quote], GREEDY),
        "quoting, sampled": compared(engine, [quote], CHAT.changed(repetition_penalty=1.0)),
        "chat": compared(engine, [chats[0]], CHAT),
        "another chat": compared(engine, [chats[3]], CHAT),
        "eight chats": compared(engine, chats, CHAT),
    }
    engine.close()
    return found


def shape(name: str, layers: int | None, chats: list[int]) -> dict[str, Any]:
    what = opened(Subject(name, "cuda", "nf4", layers))
    engine, found = LocalEngine(what.ours, slots=max(chats)), {}
    for count in chats:
        prompts = [Prompt("", what.prompt(128, seed)) for seed in range(count)]
        for kind, sampling in (("greedy", GREEDY), ("sampled", CHAT)):
            found[f"{count} chats, {kind}, as ever"] = compared(engine, prompts, sampling)
            Request.propose = known(engine, prompts, sampling)  # type: ignore[method-assign]
            found[f"{count} chats, {kind}, known"] = compared(engine, prompts, sampling)
            Request.propose = FOUND  # type: ignore[method-assign]
    costs = engine._scheduler.costs  # type: ignore[union-attr]
    found["seconds a step, as learnt"] = {rows: round(costs(rows), 6) for rows in (1, 2, 4, 8, 16)} if costs else None
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["7b"])
    parser.add_argument("--layers", type=int, help="with --shape: so many layers, for a dry run")
    parser.add_argument("--chats", default="1,8")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this is for a graphics card; bench/speculation.py measures a CPU")
    figures = shape(chosen.shape, chosen.layers, [int(each) for each in chosen.chats.split(",")]) if chosen.shape else demo()
    report("speculation_card", figures)


if __name__ == "__main__":
    main()
