"""Whether answers come out again: version 2 records of the bundled demo, made as people make them, and replayed.

    python bench/replay.py [--answers 320] [--pass compiled|eager]

Eight people talk at once with the engine as `serve` opens it on this machine: its own precision, guesses on, conversations of
several turns that find their beginning in the cache, questions that are edited, sliders moved in mid-answer, every kind of
setting. Each record is then made again as `qlora-chat replay` does it: alone, from an empty cache. `--pass eager` takes the
pass that machines without a compiler have. A difference is an answer of which one token is another; its place is printed.
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

from common import report

from qlora_chat.chat import Chat
from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.engines import local, open_engine
from qlora_chat.history import OutboxRecord, TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import prompt_format
from qlora_chat.replay.record import parse_recorded_answer
from qlora_chat.replay.replay import replay
from qlora_chat.settings import ModelSettings, Sampling, quiet_libraries

PEOPLE, TURNS, LONGEST = 8, 5, 120
SETTINGS = {
    "greedy": Sampling(temperature=0.0, max_new_tokens=LONGEST),
    "the page's": Sampling(max_new_tokens=LONGEST),
    "everything": Sampling(temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1, max_new_tokens=LONGEST),
    "hot": Sampling(temperature=1.3, top_p=1.0, max_new_tokens=LONGEST),
}
QUESTIONS = (
    "Tell me a story about a fox.", "And then?", "What is the capital of France?", "Why is the sky blue?", "Say that again.",
    "Repeat after me: red, green, blue, red, green, blue, red, green, blue.", "Write a list of ten animals.", "Who are you?",
    "How do I boil an egg?", "What is 7 plus 5?", "Write a poem about the sea.", "Repeat your last answer.",
)  # fmt: skip


class Kept(LogRecorder):
    """The records as a receiver would get them, beside how each came about."""

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
    again = make_again(kinds, recorder)
    report("replay", {"pass": chosen.path, **figures, **again})


def opened(slots: int | None) -> Any:
    return open_engine(ModelSettings(model="demo", slots=slots), lambda line: None)


def record(answers: int) -> tuple[dict[str, tuple[str, ...]], Kept, dict[str, Any]]:
    """Let people talk; -> what kind each answer is of, by its id, and its record."""
    engine, recorder = opened(None), Kept()
    kinds: dict[str, tuple[str, ...]] = {}
    began, passes = time.perf_counter(), engine.forwards
    chat = Chat(engine, prompt_format(engine.info.prompt_format), MemoryHistory(), recorder)
    people = [threading.Thread(target=talk, args=(chat, each, answers // PEOPLE, kinds)) for each in range(PEOPLE)]
    for each in people:
        each.start()
    for each in people:
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


def talk(chat: Chat, person: int, answers: int, kinds: dict[str, tuple[str, ...]]) -> None:
    """One person: conversations of several turns; some questions are asked again in other words, some sliders are moved."""
    dice, conversation, made = random.Random(person), Conversation(), 0
    while made < answers:
        if len(conversation.messages) >= 2 * TURNS:
            conversation = Conversation()
        name = dice.choice([*SETTINGS])
        edited = len(conversation.messages) >= 2 and dice.random() < 0.2
        begun = replace(conversation, messages=conversation.messages[:-2]) if edited else conversation
        moved_at = dice.randrange(1, 30) if dice.random() < 0.25 else None
        turn = chat.reply(
            begun, dice.choice(QUESTIONS), SETTINGS[name].changed(seed=dice.getrandbits(50)), instead_of=conversation
        )
        for index, _ in enumerate(turn):
            if index == moved_at:
                turn.update(SETTINGS[dice.choice([*SETTINGS])])
        conversation = turn.conversation
        later = turn.finish is not None and turn.finish.cached_tokens > 0
        about = (
            name,
            "edited question" if edited else "",
            "sliders moved" if moved_at else "",
            "from the cache" if later else "",
        )
        kinds[conversation.messages[-1].id] = tuple(each for each in about if each)
        made += 1


def make_again(kinds: dict[str, tuple[str, ...]], recorder: Kept) -> dict[str, Any]:
    """Replay each alone; -> what came out, by kind, and every difference."""
    engine = opened(1)
    chat = Chat(engine, prompt_format(engine.info.prompt_format), MemoryHistory())
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    differences = []
    began = time.perf_counter()
    for turn_id, body in recorder.bodies.items():
        for slot in engine._cache.slots:
            slot.ids.clear()
        found = replay(parse_recorded_answer(json.loads(body)), chat)
        for kind in ("all", *kinds[turn_id]):
            counts[kind]["identical" if found.identical else "different"] += 1
        if not found.identical:
            differences.append({"kinds": kinds[turn_id], "first": found.first and found.first.__dict__,
                                "differences": [each.__dict__ for each in found.differences]})  # fmt: skip
    engine.close()
    return {
        "replayed in, s": round(time.perf_counter() - began, 1),
        "identical": {kind: f"{each['identical']} of {each.total()}" for kind, each in sorted(counts.items())},
        "differences": differences,
    }


if __name__ == "__main__":
    main()
