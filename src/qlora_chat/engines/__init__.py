"""What an engine is: token ids in, pieces of text out.

Scope: the protocol that the in-process engine and remote servers share, and the values that cross it. An engine knows
ids, sampling and stops; it never hears of roles, pages or history. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from qlora_chat.errors import UserError
from qlora_chat.messages import FinishReason
from qlora_chat.models import ModelInfo, Notify
from qlora_chat.prompt import Prompt, Tokenizer
from qlora_chat.settings import EngineSettings, ModelSettings, Sampling
from qlora_chat.stopping import Stops

COMPILED = "compiled"
"""How the name of the forward pass begins that is compiled for a CPU, in which no chat's numbers depend on its company."""


@dataclass(frozen=True)
class Finish:
    """How an answer ended, and what it took."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's tokens, those whose keys and values were still in the cache."""
    completion_tokens: int
    ttft_ms: float | None
    """From the call to the first token; None if none came."""
    tokens_per_s: float | None
    """Rate after the first token; None below two tokens."""
    changes: tuple[tuple[int, Sampling], ...] | None = None
    """Settings taken up in mid-answer, as (tokens made before them, settings); None where an engine cannot tell."""


@dataclass(frozen=True)
class Piece:
    """One token's share of an answer. Only the last piece has `finish`."""

    text: str
    """May be empty: characters wait until they are whole and cannot be the beginning of a stop."""
    token_id: int | None = None
    finish: Finish | None = None
    logprob: float | None = None
    """Natural logarithm of the token's probability under the model itself, before penalty and temperature; None unless
    the sampling asks for logprobs."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(token id, log probability) of the likeliest tokens, best first; as many as the sampling asks for."""


class EngineError(UserError, RuntimeError):
    """Generation failed; the message is fit to be shown."""


class OutOfMemory(EngineError):
    """There was not enough memory for this answer; others go on, and the next may find enough."""


class Stream(Protocol):
    """One answer being generated. Iterating raises EngineError if generation fails."""

    def __iter__(self) -> Iterator[Piece]: ...
    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token."""
        ...

    def cancel(self) -> None:
        """End the answer at the next token; safe from any thread, and more than once."""
        ...


@runtime_checkable
class ReplayableEngine(Protocol):
    """An engine that can take up settings at a given token: what making an answer again needs."""

    def stream_with_changes(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, changes: Mapping[int, Sampling], adapter: str | None = None
    ) -> Stream:
        """Begin an answer that uses each of these settings once so many tokens have been made; else as Engine.stream."""
        ...


class Engine(Protocol):
    """Owns a model and generates for any number of callers at once."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def stream(self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None) -> Stream:
        """Begin an answer. ValueError for ids outside the vocabulary, a prompt that leaves no room, or an unknown adapter."""
        ...

    def close(self) -> None:
        """Cancel what is running; nothing can be begun afterwards."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """An engine that takes and lets go of adapters while it runs; `info.adapters` names those it has."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Keep an adapter beside the base. ModelError if the name is taken, or it does not fit base, engine or memory."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for it; answers being written go on. ModelError if there is none of that name."""
        ...


def open_engine(settings: ModelSettings, notify: Notify, where: EngineSettings | None = None) -> Engine:
    """Start the in-process engine on the model that the settings name, or go to the servers that run it.

    ModelError or EngineError says what is in the way.
    """
    if where and where.urls:
        from qlora_chat.engines.remote.engine import open_remote

        return open_remote(settings, where, notify)
    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.models import open_model

    return LocalEngine(lambda: open_model(settings, notify), settings.slots, notify, settings.kv_cache_dtype)
