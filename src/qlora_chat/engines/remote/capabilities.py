"""Capabilities of a server: not every one takes ids, top_k or stop tokens, and some refuse unknown fields.

Scope: our settings, prompt and stops -> a request's JSON; a refusal -> the fields to omit next time. Knows no HTTP.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from qlora_chat.messages import AnswerSchema
from qlora_chat.settings import LOGITS_PROCESSORS, SAMPLING_SETTINGS, Sampling
from qlora_chat.stopping import Stops

LOGPROB_FIELDS = frozenset({"logprobs", "return_tokens_as_token_ids"})
"""Request log probabilities, with tokens named by their ids, as vLLM defines them."""
RESPONSE_FORMAT = "response_format"
"""Field for the schema of an answer. Servers without it often ignore it in silence."""
PROCESSORS = tuple(name for name in LOGITS_PROCESSORS if name not in ("temperature", "top_p"))
"""Beyond OpenAI's two, as vLLM takes them at the top level."""
OPTIONAL_FIELDS = LOGPROB_FIELDS | {*PROCESSORS, "seed", "stop_token_ids", "return_token_ids", "stream_options"}
"""Fields beyond OpenAI's original ones, as vLLM takes them at the top level."""
MISSING_NOTICES = {
    **{name: f"has no {SAMPLING_SETTINGS[name].label.lower()}" for name in PROCESSORS},
    "seed": "has no seed: an answer cannot be reproduced",
}
"""Notices for the fields that a user would miss."""


@dataclass(frozen=True)
class Capabilities:
    """Fields that a server takes and returns. The default assumes everything, until the server refuses a field."""

    fields: frozenset[str] = OPTIONAL_FIELDS
    takes_ids: bool = True
    """A prompt may be token ids; otherwise it is text."""
    returns_ids: bool = False
    """Answers come with token ids."""
    nested: bool = False
    """Sampling goes into a `generation_config` of Transformers' kind, as `transformers serve` requires."""
    adds_bos: bool = True
    """The server prepends BOS to a text prompt."""
    reads_special_tokens: bool = True
    """It finds the special tokens that stand in a text prompt; otherwise they are letters to it."""
    strips_space: bool = False
    """A text answer loses its leading space (a decoder that sees no text before it)."""

    def without(self, refusal: str) -> Capabilities | None:
        """Capabilities to try after the server refused with this message; None where nothing is left to omit."""
        if named := {field for field in self.fields if field in refusal}:
            return replace(self, fields=self.fields - named)
        if self.nested:
            return replace(self, nested=False)
        if self.takes_ids:
            return replace(self, takes_ids=False)
        if self.fields:
            return replace(self, fields=frozenset())
        return None

    def notices(self) -> tuple[str, ...]:
        """Notices for the user about controls that have no effect here."""
        missing = [] if self.nested else [text for field, text in MISSING_NOTICES.items() if field not in self.fields]
        if not self.takes_ids:
            missing.append("takes text only: earlier answers are tokenised again")
        if not self.reads_special_tokens:
            missing.append("reads special tokens in a text as letters: a chat template that writes them cannot be used with it")
        return tuple(missing)

    def body(
        self, model: str, prompt: str | list[int], sampling: Sampling, stops: Stops, max_tokens: int, seed: int | None
    ) -> dict[str, Any]:
        """The request's JSON. Every setting is sent, because a server may have defaults of its own."""
        settings = _normalized(sampling)
        optional = {
            **{name: settings[name] for name in PROCESSORS},
            "seed": seed,
            "stop_token_ids": sorted(stops.token_ids),
            "return_token_ids": True,
            "stream_options": {"include_usage": True},
            **({} if sampling.logprobs is None else {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}),
        }
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            **{name: value for name, value in optional.items() if name in self.fields and value is not None},
        }
        if stops.texts:
            body["stop"] = list(stops.texts)
        if self.nested:
            return {**body, "generation_config": json.dumps(_generation_config(settings, stops, max_tokens))}
        return {**body, "temperature": settings["temperature"], "top_p": settings["top_p"]}


def response_format(schema: AnswerSchema) -> dict[str, Any]:
    """A schema as vLLM and this program take it for completions, too."""
    described = {"name": "answer", "schema": json.loads(schema.text), "strict": schema.strict}
    return {"type": "json_schema", "json_schema": described}


def _normalized(sampling: Sampling) -> dict[str, Any]:
    """Greedy is temperature 0 everywhere; a top-p of 0, which means the same here, is refused by some servers."""
    greedy = sampling.temperature == 0 or sampling.top_p == 0
    chosen = {name: getattr(sampling, name) for name in LOGITS_PROCESSORS}
    return {**chosen, "temperature": 0.0, "top_p": 1.0, "top_k": 0} if greedy else chosen


def _generation_config(settings: dict[str, Any], stops: Stops, max_tokens: int) -> dict[str, Any]:
    """Transformers' GenerationConfig. It replaces the model's own, so it must name the stop tokens as well."""
    greedy = settings["temperature"] == 0
    stop_ids = sorted(stops.token_ids)
    processors = {"repetition_penalty": settings["repetition_penalty"]} if greedy else settings
    return {
        "do_sample": not greedy,
        **processors,
        "max_new_tokens": max_tokens,
        "eos_token_id": stop_ids or None,
        "pad_token_id": stop_ids[0] if stop_ids else 0,
    }
