"""Reproducibility of answers: version 2 records of the bundled demo under realistic traffic, replayed.

    python bench/serving/replay.py [--answers 320] [--pass compiled|eager]

Eight users chat at once with the engine that `serve` opens on this machine: its own precision, speculation on, conversations
of several turns with prefix-cache hits, edited questions, sliders moved in mid-answer, every kind of setting. Each record is
then replayed as `qlora-chat replay` does: alone, from an empty cache. `--pass eager` uses the pass of machines without a
compiler. An answer differs if one token does; its position is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import clear_prefix_cache
from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.engines import local
from qlora_chat.engines.open import open_engine
from qlora_chat.history import OutboxRecord, TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import find_prompt_format
from qlora_chat.replay.record import parse_recorded_answer
from qlora_chat.replay.replay import replay
from qlora_chat.settings import ModelSettings, Sampling, quiet_libraries

USERS, TURNS, MAX_NEW = 8, 5, 120
SETTINGS = {
    "greedy": Sampling(temperature=0.0, max_new_tokens=MAX_NEW),
    "the page's": Sampling(max_new_tokens=MAX_NEW),
    "everything": Sampling(temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1, max_new_tokens=MAX_NEW),
    "hot": Sampling(temperature=1.3, top_p=1.0, max_new_tokens=MAX_NEW),
}
QUESTIONS = (
    "Tell me a story about a fox.", "And then?", "What is the capital of France?", "Why is the sky blue?", "Say that again.",
    "Repeat after me: red, green, blue, red, green, blue, red, green, blue.", "Write a list of ten animals.", "Who are you?",
    "How do I boil an egg?", "What is 7 plus 5?", "Write a poem about the sea.", "Repeat your last answer.",
)  # fmt: skip


class RecordCollector(LogRecorder):
    """Collects record bodies as a receiver would get them."""

    def __init__(self) -> None:
        super().__init__(2)
        self.bodies: dict[str, bytes] = {}

    def turn(self, record: TurnRecord) -> OutboxRecord | None:
        outgoing = super().turn(record)
        assert outgoing
        self.bodies[record.answer.id] = outgoing.body
        return outgoing


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=320)
    parser.add_argument("--pass", dest="path", choices=("compiled", "eager"), default="compiled")
    chosen = parser.parse_args()
    quiet_libraries()
    if chosen.path == "eager":
        local.open_cpu = lambda *_: None
    kinds, recorder, figures = record(chosen.answers)
    again = replay_all(kinds, recorder)
    print_report("replay", {"pass": chosen.path, **figures, **again})


def open_demo(slots: int | None) -> Any:
    return open_engine(ModelSettings(model="demo", slots=slots), lambda line: None)


def record(answers: int) -> tuple[dict[str, tuple[str, ...]], RecordCollector, dict[str, Any]]:
    """Let users chat; returns the kinds of each answer by its id, the records, and figures."""
    engine, recorder = open_demo(None), RecordCollector()
    kinds: dict[str, tuple[str, ...]] = {}
    began, passes = time.perf_counter(), engine.forwards
    chat = Chat(engine, find_prompt_format(engine.info.prompt_format), MemoryHistory(), recorder)
    users = [threading.Thread(target=chat_as_user, args=(chat, each, answers // USERS, kinds)) for each in range(USERS)]
    for each in users:
        each.start()
    for each in users:
        each.join()
    figures = {
        "precision": engine.info.precision,
        "answers": len(recorder.bodies),
        "tokens": sum(len(json.loads(body)["answer_ids"]) for body in recorder.bodies.values()),
        "passes": engine.forwards - passes,
        "recorded in, s": round(time.perf_counter() - began, 1),
    }
    engine.close()
    return kinds, recorder, figures


def chat_as_user(chat: Chat, user: int, answers: int, kinds: dict[str, tuple[str, ...]]) -> None:
    """Chat as one user: conversations of several turns, some edited questions, some sliders moved in mid-answer."""
    rng, conversation, done = random.Random(user), Conversation(), 0
    while done < answers:
        if len(conversation.messages) >= 2 * TURNS:
            conversation = Conversation()
        name = rng.choice([*SETTINGS])
        edited = len(conversation.messages) >= 2 and rng.random() < 0.2
        start = replace(conversation, messages=conversation.messages[:-2]) if edited else conversation
        moved_at = rng.randrange(1, 30) if rng.random() < 0.25 else None
        turn = chat.reply(
            start,
            rng.choice(QUESTIONS),
            AnswerOptions(SETTINGS[name].changed(seed=rng.getrandbits(50))),
            instead_of=conversation,
        )
        for index, _ in enumerate(turn):
            if index == moved_at:
                turn.update(SETTINGS[rng.choice([*SETTINGS])])
        conversation = turn.conversation
        cached = turn.finish is not None and turn.finish.cached_tokens > 0
        labels = (
            name,
            "edited question" if edited else "",
            "sliders moved" if moved_at else "",
            "from the cache" if cached else "",
        )
        kinds[conversation.messages[-1].id] = tuple(each for each in labels if each)
        done += 1


def replay_all(kinds: dict[str, tuple[str, ...]], recorder: RecordCollector) -> dict[str, Any]:
    """Replay each record alone; returns the agreement by kind, and every difference."""
    engine = open_demo(1)
    chat = Chat(engine, find_prompt_format(engine.info.prompt_format), MemoryHistory())
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    differences = []
    began = time.perf_counter()
    for turn_id, body in recorder.bodies.items():
        clear_prefix_cache(engine)
        result = replay(parse_recorded_answer(json.loads(body)), chat)
        for kind in ("all", *kinds[turn_id]):
            counts[kind]["identical" if result.identical else "different"] += 1
        if not result.identical:
            differences.append({"kinds": kinds[turn_id], "first": result.first and result.first.__dict__,
                                "differences": [each.__dict__ for each in result.differences]})  # fmt: skip
    engine.close()
    return {
        "replayed in, s": round(time.perf_counter() - began, 1),
        "identical": {kind: f"{each['identical']} of {each.total()}" for kind, each in sorted(counts.items())},
        "differences": differences,
    }


if __name__ == "__main__":
    main()
