"""Time to first token of a conversation that has outgrown its window: turns dropped in blocks, against one exchange at a time.

    python bench/cpu/full_window.py [--model smollm2]

One conversation per rule, of short exchanges, over the same engine in turns; the window is cut to 1,536 tokens, so that
the rule of dropping as little as possible, which computes almost the whole prompt again at every turn, ends today. Prints the
medians before the limit and past it, and the share of the turns past it within 1.5 times the median before; for milliseconds,
and for the prompt tokens that were computed, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import clear_prefix_cache
from qlora_chat.chat_templates.known import open_format
from qlora_chat.context import fit_prompt, prompt_limit
from qlora_chat.engines.local import LocalEngine
from qlora_chat.messages import Conversation, Message
from qlora_chat.models.load import load
from qlora_chat.prompt import ChatFormat, Prompt, Tokenizer, find_prompt_format, render
from qlora_chat.settings import ModelSettings, Sampling, quiet_libraries
from qlora_chat.stopping import Stops

WINDOW, NEW = 1536, 6
BEFORE, PAST_IN_BLOCKS, PAST_ONE_BY_ONE = 10, 30, 5
ALLOWED = 1.5
Fit = Callable[[Conversation, ChatFormat, Tokenizer], Prompt]


def in_blocks(conversation: Conversation, prompt_format: ChatFormat, tokenizer: Tokenizer) -> Prompt:
    """The rule of qlora_chat.context."""
    return fit_prompt(conversation, prompt_format, tokenizer, WINDOW, NEW)


def one_by_one(conversation: Conversation, prompt_format: ChatFormat, tokenizer: Tokenizer) -> Prompt:
    """The rule before it: drop as few exchanges as possible."""
    for start in range(0, len(conversation.messages), 2):
        prompt = render(replace(conversation, messages=conversation.messages[start:]), prompt_format, tokenizer)
        if len(prompt.ids) <= prompt_limit(WINDOW, NEW):
            return replace(prompt, dropped=tuple(range(start)))
    raise AssertionError("a short question fits")


Turns = list[tuple[float, int]]
"""Milliseconds to the first token, and prompt tokens that were computed, of each turn."""


def measured_turns(engine, prompt_format: ChatFormat, fit: Fit, past: int) -> tuple[Turns, Turns]:
    """Return the turns before anything was dropped, and those afterwards."""
    clear_prefix_cache(engine)
    conversation, turns = Conversation(), ([], [])
    sampling = Sampling(temperature=0.0, max_new_tokens=NEW)
    while len(turns[1]) < past:
        number = len(conversation.messages) // 2
        conversation = conversation.adding(Message("user", f"Number {number} is next. Say it in words."))
        prompt = fit(conversation, prompt_format, engine.tokenizer)
        *pieces, last = list(engine.stream(prompt, sampling, Stops()))
        ids = tuple(each.token_id for each in (*pieces, last) if each.token_id is not None)
        conversation = conversation.adding(Message("assistant", engine.tokenizer.decode(ids), ids, "length"))
        computed = last.finish.prompt_tokens - last.finish.cached_tokens
        turns[bool(prompt.dropped)].append((last.finish.ttft_ms, computed))
    return turns


def compared(before: list[float], after: list[float]) -> dict[str, object]:
    """Medians, their ratio, and the turns past the limit that are within ALLOWED times the median before."""
    usual, past = statistics.median(before), statistics.median(after)
    within = sum(each <= ALLOWED * usual for each in after)
    return {
        "before": round(usual, 1), "past": round(past, 1), "past / before": round(past / usual, 2),
        "within 1.5x": f"{within} of {len(after)}", "most": round(max(after), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    name = parser.parse_args().model
    quiet_libraries()
    engine = LocalEngine(lambda: load(ModelSettings(model=name), lambda line: None), slots=1)
    chosen = engine.info.format
    prompt_format = open_format(chosen, engine.tokenizer) if chosen else find_prompt_format(engine.info.prompt_format)
    report = {}
    for name, fit, past in (("in blocks", in_blocks, PAST_IN_BLOCKS), ("one by one", one_by_one, PAST_ONE_BY_ONE)):
        before, after = measured_turns(engine, prompt_format, fit, past)
        report[name] = {
            unit: compared([each[index] for each in before[-BEFORE:]], [each[index] for each in after])
            for index, unit in enumerate(("ms to the first token", "prompt tokens computed"))
        }
        print(name, report[name], flush=True)
    print_report("full_window", report)
    engine.close()


if __name__ == "__main__":
    main()
