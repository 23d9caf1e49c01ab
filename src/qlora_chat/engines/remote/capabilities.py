"""What one server takes in a request: not every one has ids, top_k or stop tokens, and some refuse what they do not know.

Scope: our settings, prompt and stops -> a request's JSON; a refusal -> what to leave out next time. Knows no HTTP.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from qlora_chat.settings import LOGITS_PROCESSORS, SAMPLING_SETTINGS, Sampling
from qlora_chat.stopping import Stops

SCORES = frozenset({"logprobs", "return_tokens_as_token_ids"})
"""What asks for log probabilities, with tokens named by their ids, as vLLM does it."""
PROCESSORS = tuple(name for name in LOGITS_PROCESSORS if name not in ("temperature", "top_p"))
"""Beyond OpenAI's two, as vLLM takes them at the top level."""
OPTIONAL = SCORES | {*PROCESSORS, "seed", "stop_token_ids", "return_token_ids", "stream_options"}
"""Fields beyond OpenAI's oldest: as vLLM takes them at the top level."""
LACKS = {
    **{name: f"has no {SAMPLING_SETTINGS[name].label.lower()}" for name in PROCESSORS},
    "seed": "has no seed: an answer cannot be made again",
}
"""Of those, what a person would miss."""


@dataclass(frozen=True)
class Capabilities:
    """What a server takes and gives; the first guess is everything."""

    fields: frozenset[str] = OPTIONAL
    takes_ids: bool = True
    """Whether a prompt may be token ids; else it is text."""
    gives_ids: bool = False
    """Whether answers come with token ids."""
    nested: bool = False
    """Whether sampling goes into a `generation_config` of Transformers' kind, as `transformers serve` wants it."""
    adds_bos: bool = True
    """Whether the server begins a text prompt with BOS by itself."""
    strips_space: bool = False
    """Whether an answer in text loses the space that it begins with (a decoder that sees no text before it)."""

    def without(self, refusal: str) -> Capabilities | None:
        """What to try after the server refused with these words; None where nothing is left to leave out."""
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
        """What a person should know that sliders and answers lack here."""
        lacking = [] if self.nested else [words for field, words in LACKS.items() if field not in self.fields]
        return tuple(lacking if self.takes_ids else [*lacking, "takes text only: earlier answers are tokenised again"])

    def body(
        self, model: str, prompt: str | list[int], sampling: Sampling, stops: Stops, max_tokens: int, seed: int | None
    ) -> dict[str, Any]:
        """The request's JSON. Every setting is sent, for a server may have defaults of its own."""
        chosen = _chosen(sampling)
        offered = {
            **{name: chosen[name] for name in PROCESSORS},
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
            **{name: value for name, value in offered.items() if name in self.fields and value is not None},
        }
        if stops.texts:
            body["stop"] = list(stops.texts)
        if self.nested:
            return {**body, "generation_config": json.dumps(_nested(chosen, stops, max_tokens))}
        return {**body, "temperature": chosen["temperature"], "top_p": chosen["top_p"]}


def _chosen(sampling: Sampling) -> dict[str, Any]:
    """Greedy is temperature 0 everywhere; a top-p of 0, which means the same here, is refused by some servers."""
    greedy = sampling.temperature == 0 or sampling.top_p == 0
    chosen = {name: getattr(sampling, name) for name in LOGITS_PROCESSORS}
    return {**chosen, "temperature": 0.0, "top_p": 1.0, "top_k": 0} if greedy else chosen


def _nested(chosen: dict[str, Any], stops: Stops, max_tokens: int) -> dict[str, Any]:
    """Transformers' GenerationConfig, which replaces the model's own: so it must name the ends, too."""
    greedy = chosen["temperature"] == 0
    ends = sorted(stops.token_ids)
    drawn = {"repetition_penalty": chosen["repetition_penalty"]} if greedy else chosen
    return {
        "do_sample": not greedy,
        **drawn,
        "max_new_tokens": max_tokens,
        "eos_token_id": ends or None,
        "pad_token_id": ends[0] if ends else 0,
    }
