"""Answers held to a JSON Schema beside free ones: tokens/s, the time to prepare a schema, and JSON that matches.

    PYTHONPATH=src python bench/schema.py [demo|smollm2|7b] [--device cpu|cuda]

7b: random weights of LLaMA-7B's shape. The measured schema is an endless list of texts, whose tokens are mostly free.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from qlora_chat.benchmark import SAMPLING, Subject
from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import clear_prefix_cache
from qlora_chat.benchmark.subjects import open_subject
from qlora_chat.engines import Piece
from qlora_chat.engines.local import LocalEngine
from qlora_chat.messages import AnswerSchema
from qlora_chat.prompt import Prompt
from qlora_chat.stopping import Stops

ROUNDS, NEW, CONTEXT, CHATS = 5, 128, 64, 8
ENDLESS = AnswerSchema(json.dumps({"type": "array", "items": {"type": "string"}, "minItems": 100_000}))
PERSON = AnswerSchema(
    json.dumps({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
    })
)  # fmt: skip


def answers(engine: LocalEngine, prompts: list[Prompt], schemas: list[AnswerSchema | None], seed: int) -> list[list[Piece]]:
    clear_prefix_cache(engine)
    sampling = SAMPLING.changed(max_new_tokens=NEW)
    streams = [
        engine.stream(prompt, sampling.changed(seed=seed + index), Stops(), schema=schema)
        for index, (prompt, schema) in enumerate(zip(prompts, schemas, strict=True))
    ]
    return [[piece for piece in stream if not piece.prefill] for stream in streams]


def rates(pieces: list[list[Piece]]) -> list[float]:
    return [(each[-1].finish and each[-1].finish.tokens_per_s) or 0.0 for each in pieces]


def in_turns(engine: LocalEngine, prompts: list[Prompt], kinds: dict[str, list[AnswerSchema | None]]) -> dict[str, Any]:
    """Median tokens/s of all answers of each kind together, and of those without a schema."""
    measured: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for number in range(ROUNDS + 1):
        for kind, schemas in kinds.items():
            measured[kind].append(rates(answers(engine, prompts, schemas, 100 * number)))
    figures: dict[str, Any] = {}
    for kind, rounds in measured.items():
        free = [index for index, schema in enumerate(kinds[kind]) if schema is None]
        figures[kind] = round(statistics.median(sum(each) for each in rounds[1:]), 1)
        if 0 < len(free) < len(prompts):
            figures[f"{kind}: a free one"] = round(statistics.median(each[index] for each in rounds[1:] for index in free), 1)
    return figures


def check(engine: LocalEngine, prompt: Prompt) -> str:
    """Share of answers that match, among those that were not cut off."""
    matching = whole = 0
    for seed in range(20):
        (pieces,) = answers(engine, [prompt], [PERSON], seed)
        assert pieces[-1].finish
        if pieces[-1].finish.reason == "stop":
            whole += 1
            person = json.loads("".join(piece.text for piece in pieces))
            matching += list(person) == ["name", "age"] and len(person["name"]) <= 20 and person["age"] <= 150
    return f"{matching} of {whole} whole answers, of 20"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("subject", nargs="?", default="demo", choices=["demo", "smollm2", "7b"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layers", type=int, help="with 7b: number of layers, for a dry run")
    chosen = parser.parse_args()
    precision = "bf16" if chosen.subject == "demo" else "nf4"
    subject = open_subject(Subject(chosen.subject, chosen.device, precision, chosen.layers))
    engine = LocalEngine(subject.load, slots=CHATS)
    prompts = [Prompt("", subject.prompt(CONTEXT, seed)) for seed in range(CHATS)]
    prepared = []
    for schema in (PERSON, ENDLESS):
        began = time.perf_counter()
        engine.check_schema(schema)
        prepared.append(round(1000 * (time.perf_counter() - began), 1))
    figures: dict[str, Any] = {
        "computed by": engine.info.computed_by,
        "ms to prepare the first schema, and another": prepared,
        "match": check(engine, prompts[0]),
        "one chat, tokens/s": in_turns(engine, prompts[:1], {"free": [None], "in a schema": [ENDLESS]}),
        "eight chats, tokens/s": in_turns(
            engine, prompts,
            {"free": [None] * 8, "one in a schema": [ENDLESS, *[None] * 7], "all in a schema": [ENDLESS] * 8},
        ),
    }  # fmt: skip
    engine.close()
    print_report(f"schema, {chosen.subject}", figures)


if __name__ == "__main__":
    main()
