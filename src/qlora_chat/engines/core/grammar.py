"""Answers that match a JSON Schema: for each token, which tokens may come next.

Scope: schemas to grammars over one model's tokens, with the llguidance library, and the state of one answer. Schemas come from
clients, so the work on each is bounded, and one is compiled at a time. Knows no scheduler and no prompt.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import llguidance
import numpy as np

from qlora_chat.engines import EngineError, SchemaError
from qlora_chat.messages import AnswerSchema
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

MAX_NUMBER = 2**53 - 1
"""Largest number in a schema, as whole numbers in JavaScript: a constant near -2^63 overflows the library's stack."""
MAX_GRAMMARS = 32
"""Compiled schemas that are kept: clients send the same one again and again."""
MAX_MULTIPLE = 10_000
"""Least common multiple of all `multipleOf`, as whole numbers: a grammar has a state for each remainder."""
MAX_REASON = 300
"""Characters of the library's own words in a message."""
WRITTEN = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "coerce_one_of": True}
"""JSON as Python writes it, on one line: where any white space may come, small models write nothing else to the end."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000, "step_lexer_fuel": 200_000, "step_max_items": 20_000, "max_lexer_states": 20_000,
    "max_grammar_size": 50_000, "precompute_large_lexemes": False, "verbose_errors": False,
}  # fmt: skip
"""Of the library: some milliseconds for a token, half a second for a schema, 40 MB for an answer."""
COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "properties", "if", "not")
"""Keywords of which two in one schema hold together."""
OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")
"""Keywords that say which further properties an object may have."""
TOO_DEEP = "the schema is nested too deeply; up to 100 levels are supported"
NON_PRINTING = re.compile(r"[^ -~]+")


class GrammarCompiler:
    """Grammars for one model's tokens. Safe from any thread."""

    def __init__(self, tokenizer: ModelTokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._tokens: llguidance.LLTokenizer | None = None
        self._end = 0
        """Token that the library takes for the end of a text."""
        self._grammars: OrderedDict[AnswerSchema, llguidance.LLMatcher] = OrderedDict()

    def check(self, schema: AnswerSchema) -> None:
        """SchemaError if no answer can be held to the schema."""
        self._compiled(schema)

    def begin(self, schema: AnswerSchema, stop_ids: Iterable[int]) -> AnswerGrammar:
        """The grammar at the beginning of an answer that one of `stop_ids` may end. SchemaError as `check`."""
        matcher = self._compiled(schema).deep_copy()
        return AnswerGrammar(matcher, self._vocabulary, self._end, stop_ids)

    def _compiled(self, schema: AnswerSchema) -> llguidance.LLMatcher:
        with self._lock:
            if schema not in self._grammars:
                self._grammars[schema] = self._compile(schema)
                if len(self._grammars) > MAX_GRAMMARS:
                    self._grammars.popitem(last=False)
            self._grammars.move_to_end(schema)
            return self._grammars[schema]

    def _compile(self, schema: AnswerSchema) -> llguidance.LLMatcher:
        tokens = self._open_tokens()
        try:
            parsed = json.loads(schema.text)
            _check_numbers(parsed)
            written: Any = {**WRITTEN, "lenient": not schema.strict}
            grammar = llguidance.LLMatcher.grammar_from_json_schema(_with_closed_objects(parsed), overrides=written)
        except RecursionError:
            raise SchemaError(TOO_DEEP) from None
        except SchemaError:
            raise
        except ValueError as problem:
            raise SchemaError(_reason(str(problem))) from None
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(tokens, grammar, log_level=0, limits=limits)
        trial = matcher.deep_copy()
        trial.compute_bitmask()  # some schemas fail only here
        if problem := matcher.get_error() or trial.get_error():
            raise SchemaError(_reason(problem))
        return matcher

    def _open_tokens(self) -> llguidance.LLTokenizer:
        """The tokens as the library knows them, read at the first schema."""
        if self._tokens is None:
            special = sorted(self._tokenizer.special_tokens())
            if not special:
                raise SchemaError("this model's tokenizer has no special token, so answers cannot be held to a schema")
            self._end = special[0]
            try:
                self._tokens = llguidance.LLTokenizer(self._tokenizer.tokenizer_json, eos_token=self._end)
            except ValueError as problem:
                text = f"this model's tokenizer is of a kind that cannot be held to a schema: {_printable(str(problem))}"
                raise SchemaError(text) from None
        return self._tokens


class AnswerGrammar:
    """The grammar of one answer, as far as it has been written."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int, end: int, stop_ids: Iterable[int]) -> None:
        """`end`: token that the library takes for the end, which `stop_ids` replace."""
        self._matcher, self._vocabulary, self._end = matcher, vocabulary, end
        self._stops = np.array(sorted(each for each in stop_ids if each < vocabulary), dtype=np.int64)

    @property
    def complete(self) -> bool:
        """True if nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> np.ndarray:
        """Ids of the tokens that may come next, ascending; the stop tokens are among them where the answer may end. EngineError
        if the schema turns out to be too complex."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        ids = np.flatnonzero(np.unpackbits(mask, count=min(8 * len(mask), self._vocabulary), bitorder="little"))
        ids = ids[ids != self._end]
        if self._matcher.is_accepting():
            ids = np.union1d(ids, self._stops)
        if self._matcher.is_error() or not len(ids):
            raise EngineError("the answer's schema is too complex for this server; send a simpler one")
        return ids

    def accept(self, token: int) -> None:
        """Go on with a token that was allowed."""
        if token not in self._stops:
            self._matcher.consume_token(token)


def _with_closed_objects(schema: Any) -> Any:
    """The schema without properties that it neither names nor rules out: all that matches it still matches the original, and a
    small model would go on inventing them. As it is where schemas are combined, since closed ones would rule each other out."""
    nodes = [each for _, each in _parts(schema) if isinstance(each, dict)]
    if any(sum(name in node for name in COMBINED) > 1 or "allOf" in node for node in nodes):
        return schema
    for node in nodes:
        if isinstance(node.get("properties"), dict) and node["properties"] and not any(name in node for name in OPEN):
            node["additionalProperties"] = False
    return schema


def _parts(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a schema, with the key that it stands under. Some of its objects only look like schemas."""
    yield name, value
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _parts(each, str(key))


def _check_numbers(schema: Any) -> None:
    """SchemaError for numbers that the library would end the process with, and multiples of too much."""
    numbers = [(name, each) for name, each in _parts(schema) if isinstance(each, int | float) and not isinstance(each, bool)]
    if any(not abs(each) <= MAX_NUMBER for _, each in numbers):
        raise SchemaError(f"a number in the schema is beyond {MAX_NUMBER:,}; leave it out")
    values = [Decimal(str(each)) for name, each in numbers if name == "multipleOf"]
    places = max((-int(each.normalize().as_tuple().exponent) for each in values), default=0)
    if any(abs(each.adjusted()) > 12 for each in values) or (
        math.lcm(*(int(each.scaleb(max(0, places))) for each in values)) > MAX_MULTIPLE
    ):
        raise SchemaError(f"multipleOf is supported up to a least common multiple of {MAX_MULTIPLE:,} (in the smallest unit)")


def _reason(problem: str) -> str:
    """Words for the library's own: what cannot be done, and what to send instead."""
    if "recursion limit" in problem:
        return TOO_DEEP
    if any(sign in problem for sign in ("too large", "Too many", "too complex", "fuel", "items; max", "limit")):
        return f"the schema is too complex ({_printable(problem)}); send a simpler one"
    if "NoExtension" in problem:
        return "no JSON can match the schema, because it refers to itself without end or contradicts itself"
    return f"the schema cannot be enforced: {_printable(problem)}; correct that or leave it out"


def _printable(text: str) -> str:
    text = NON_PRINTING.sub(" ", text.replace("<non-verbose/>", "")).strip()
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."
