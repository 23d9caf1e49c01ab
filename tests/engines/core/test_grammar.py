"""Answers held to a JSON Schema: by each scheduler, beside answers that are not, and only where the schema can be enforced."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qlora_chat.engines import SchemaError, Stream
from qlora_chat.engines.core.grammar import GrammarCompiler
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import SpanScheduler
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.eager.multi_lora import MultiLoraForward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.messages import AnswerSchema
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.cuda.test_scheduler import Driven

STOPS = Stops(frozenset({2}))
WILD = Sampling(temperature=2.0, top_p=1.0, repetition_penalty=1.2, max_new_tokens=60)
GREEDY = Sampling(temperature=0.0, max_new_tokens=60)
PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}, "mood": {"enum": ["happy", "sad"]}},
    "required": ["age", "mood"],
}


def schema(value: Any, *, strict: bool = True) -> AnswerSchema:
    return AnswerSchema(json.dumps(value), strict)


def text_of(stream: Stream) -> str:
    return "".join(piece.text for piece in stream)


def check_person(stream: Stream) -> None:
    *pieces, last = stream
    person = json.loads("".join(piece.text for piece in (*pieces, last)))
    assert list(person) == ["age", "mood"], "no property that the schema does not name"
    assert 0 <= person["age"] <= 150
    assert person["mood"] in ("happy", "sad")
    assert last.finish
    assert last.finish.reason == "stop"


@pytest.fixture(scope="module")
def compiler(demo_fp32: LoadedModel) -> GrammarCompiler:
    return GrammarCompiler(demo_fp32.tokenizer, demo_fp32.weights.shape.vocabulary)


def test_any_sampling_gives_json_that_matches(shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]) -> None:
    prompt = prompt_for("How are you?")
    for stream in [shared_engine.stream(prompt, WILD.changed(seed=seed), STOPS, schema=schema(PERSON)) for seed in range(8)]:
        check_person(stream)


def test_an_answer_without_a_schema_beside_it_stays_the_same(
    small_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    free, prompt = WILD.changed(seed=4), prompt_for("Tell me a story about a fox.")
    alone = text_of(small_engine.stream(prompt, free, STOPS))
    held = small_engine.stream(prompt_for("How are you?"), WILD.changed(seed=1), STOPS, schema=schema(PERSON))
    beside = small_engine.stream(prompt, free, STOPS)
    check_person(held)
    assert text_of(beside) == alone


@pytest.mark.parametrize("kind", ["eager", "cuda"])
def test_the_other_schedulers_hold_to_a_schema(
    kind: str, small_fp32: LoadedModel, compiler: GrammarCompiler, prompt_for: Callable[..., Prompt]
) -> None:
    cache = KVCache(small_fp32.weights, 4)
    eager = SpanScheduler(MultiLoraForward(small_fp32.weights, cache), cache)
    scheduler: SpanScheduler | CudaScheduler = eager if kind == "eager" else Driven(small_fp32).scheduler

    def ask(question: str, *, held: bool) -> Request:
        grammar = compiler.begin(schema(PERSON), STOPS.token_ids) if held else None
        sampling, ids = WILD.changed(seed=3) if held else GREEDY, prompt_for(question).ids
        request = Request(ids, sampling, STOPS, small_fp32.info.window, small_fp32.tokenizer, grammar=grammar)
        scheduler.submit(request)
        return request

    def run() -> None:
        while not scheduler.idle:
            scheduler.step()

    alone = ask("Tell me a story.", held=False)
    run()
    beside, held = ask("Tell me a story.", held=False), ask("How are you?", held=True)
    run()
    check_person(held)
    assert text_of(beside) == text_of(alone)


def test_the_last_permitted_token_may_complete_the_answer(
    shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    prompt = prompt_for("Hi")
    *_, last = shared_engine.stream(prompt, GREEDY, STOPS, schema=schema(PERSON))
    assert last.finish
    needed = last.finish.completion_tokens
    for limit, reason in ((needed, "stop"), (needed - 1, "length")):
        *_, last = shared_engine.stream(prompt, GREEDY.changed(max_new_tokens=limit), STOPS, schema=schema(PERSON))
        assert last.finish
        assert (last.finish.reason, last.finish.completion_tokens) == (reason, limit)


def test_a_stop_token_may_come_only_where_the_answer_may_end(compiler: GrammarCompiler, demo_fp32: LoadedModel) -> None:
    grammar = compiler.begin(schema({"type": "integer"}), [2])
    assert 2 not in grammar.allowed()
    (seven,) = demo_fp32.tokenizer.encode_continuation("7")
    assert seven in grammar.allowed()
    grammar.accept(seven)
    assert {2, seven} <= set(grammar.allowed().tolist()), "7 is an integer, and so is 77"
    assert not grammar.complete


def test_combined_schemas_may_add_properties(compiler: GrammarCompiler) -> None:
    both = {"allOf": [{"properties": {name: {"const": 1}}, "required": [name]} for name in "ab"], "type": "object"}
    compiler.check(schema(both))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"not": {"type": "string"}}, r'cannot be enforced: Unimplemented keys: \["not"\]'),
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"$ref": "http://example.com/schema.json"}, "does not fetch"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"allOf": [{"$ref": "#"}]}, "refers to itself without end"),
        ({"allOf": [{"const": 1}, {"const": 2}]}, "cannot be enforced|contradicts itself"),
        ({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(20)]}, "too complex|cannot be"),
        ({"type": "string", "pattern": "(" * 3000 + ")" * 3000}, "cannot be enforced"),
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
        ({"allOf": [{"type": "integer", "multipleOf": each} for each in (97, 89, 83, 79)]}, "multipleOf"),
        ({"type": "number", "multipleOf": 1e-300}, "multipleOf"),
        ({"type": "number", "multipleOf": 10**15}, "multipleOf"),
        ({"enum": [1, -(2**63)]}, "a number in the schema is beyond"),
        ({"type": "integer", "const": -(2.0**63)}, "a number in the schema is beyond"),
        ({"const": float("nan")}, "a number in the schema is beyond"),
        ({"type": "number", "multipleOf": True}, "cannot be enforced"),
        ({"type": "number", "multipleOf": 0}, "cannot be enforced"),
        ({"type": "object", "properties": 5}, "cannot be enforced"),
        ({"type": "object", "properties": {"a": 5}}, "cannot be enforced"),
        ({"$ref": 5}, "cannot be enforced"),
        ({"allOf": 5}, "cannot be enforced"),
        ({"enum": []}, "cannot be enforced"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schema_that_cannot_be_enforced_is_refused_with_the_reason(compiler: GrammarCompiler, value: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        compiler.check(schema(value))


@pytest.mark.parametrize("levels", [200, 5000])
def test_a_schema_that_is_nested_too_deeply_is_refused(compiler: GrammarCompiler, levels: int) -> None:
    text = '{"items": ' * levels + "{}" + "}" * levels
    with pytest.raises(SchemaError, match="nested too deeply"):
        compiler.check(AnswerSchema(text))


def test_what_cannot_be_enforced_is_left_out_unless_the_schema_is_strict(compiler: GrammarCompiler) -> None:
    unique = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    compiler.check(schema(unique, strict=False))
    with pytest.raises(SchemaError, match="uniqueItems"):
        compiler.check(schema(unique))


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
        {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "object", "properties": {"endless": {"$ref": "#"}}, "required": ["endless"]},
        {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(2500)}},
        {"enum": [f"value {index}" for index in range(3000)]},
        {"type": "number", "multipleOf": 0.01},
        {},
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_large_schema_costs_little(compiler: GrammarCompiler, value: Any) -> None:
    compiler.check(schema(value))
    assert len(compiler.begin(schema(value), [2]).allowed()) > 0
