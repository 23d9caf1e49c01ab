"""The protocol between the chat and an engine: token ids in, pieces of text out.

Scope: the interface that the in-process engine (core, eager, cpu, cuda) and the remote one share, and the values that cross
it. An engine knows ids, sampling and stops; it knows no roles, pages or history. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from qlora_chat.errors import UserError
from qlora_chat.messages import AnswerSchema, FinishReason
from qlora_chat.models import ModelInfo
from qlora_chat.prompt import Prompt, Tokenizer
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

COMPILED = "compiled"
"""Prefix of ModelInfo.computed_by for the compiled CPU pass, whose numbers do not depend on what shares the batch."""


class TokenLogprobs(NamedTuple):
    """Log probabilities of one token and its alternatives; empty unless the sampling asks for logprobs."""

    logprob: float | None = None
    """Natural logarithm of the token's probability under the model itself, before penalty and temperature."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability) of the most probable tokens, best first; as many as the sampling asks for."""


NO_LOGPROBS = TokenLogprobs()


class AnsweredBy(NamedTuple):
    """The weights that an answer was computed with, as the engine itself knows them."""

    adapter: str | None
    """None for the model without an adapter."""


@dataclass(frozen=True)
class Finish:
    """Reason, token counts and timing of a finished answer."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were reused from the cache."""
    completion_tokens: int
    ttft_ms: float | None
    """From the call to the first token; None without any token."""
    tokens_per_s: float | None
    """Decode rate after the first token; None below two tokens."""
    changes: tuple[tuple[int, Sampling], ...] | None = None
    """Sampling changes during the answer, as (tokens generated before, new settings); None where an engine cannot tell."""
    answered_by: AnsweredBy | None = None
    """None where an engine cannot tell."""


class PrefillProgress(NamedTuple):
    """Tokens of a prompt that are in the KV cache, of all its tokens."""

    read: int
    """Tokens that were cached before count as read."""
    total: int


@dataclass(frozen=True)
class Piece:
    """One token's share of an answer. Only the last piece has `finish`.

    While a long prompt is prefilled, pieces without text report the progress; they come before the first token only.
    """

    text: str
    """May be empty: text is held back until its characters are complete and cannot begin a stop text."""
    token_id: int | None = None
    finish: Finish | None = None
    logprob: float | None = None
    """As in TokenLogprobs."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    prefill: PrefillProgress | None = None


class EngineError(UserError, RuntimeError):
    """Generation failed; the message is meant for the user."""


class OutOfMemory(EngineError):
    """Memory ran out for this answer; other answers continue, and the next one may fit."""


class SchemaError(UserError, ValueError):
    """An engine cannot hold its answers to this schema; the message says why."""


class Stream(Protocol):
    """One answer being generated. Iterating raises EngineError if generation fails."""

    def __iter__(self) -> Iterator[Piece]: ...
    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token."""
        ...

    def cancel(self) -> None:
        """End the answer at the next token. Safe from any thread and more than once."""
        ...


class Engine(Protocol):
    """A model that generates answers for any number of callers at once."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def stream(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None, schema: AnswerSchema | None = None
    ) -> Stream:
        """Start an answer, which matches the schema if there is one. ValueError for ids outside the vocabulary, a prompt that
        fills the window, or an unknown adapter; SchemaError as check_schema."""
        ...

    def check_schema(self, schema: AnswerSchema) -> None:
        """SchemaError if answers cannot be held to it."""
        ...

    def close(self) -> None:
        """Cancel running answers; no answer can be started afterwards."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """An engine that loads and unloads adapters while it runs; `info.adapters` names the loaded ones."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an unmerged adapter. ModelError if the name is in use, or it does not fit base, engine or memory."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Accept no more requests for an adapter; running answers finish. ModelError if none of that name is loaded."""
        ...


@runtime_checkable
class LocalModel(Engine, Protocol):
    """An engine that computes in this process: its memory can be measured, and an answer be computed again as it was."""

    def stream(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None, schema: AnswerSchema | None = None,
        changes: Mapping[int, Sampling] | None = None,
    ) -> Stream:  # fmt: skip
        """Start an answer that switches to each of `changes` after that many generated tokens; otherwise as Engine.stream."""
        ...

    @property
    def slots(self) -> int: ...
    @property
    def token_bytes(self) -> int: ...
    def memory_in_use(self) -> int:
        """Bytes on the card that this process has taken; on a CPU, bytes of this process as a whole."""
        ...


def check_prompt(ids: Sequence[int], window: int, vocabulary: int) -> None:
    """ValueError for a prompt that is empty, fills the window, or has ids outside the vocabulary."""
    if not ids:
        raise ValueError("the prompt is empty")
    if len(ids) >= window:
        raise ValueError(f"the prompt has {len(ids):,} tokens, which leaves no room in a window of {window:,}")
    wrong = next((each for each in ids if not 0 <= each < vocabulary), None)
    if wrong is not None:
        raise ValueError(f"the prompt has token {wrong}, but the vocabulary ends at {vocabulary - 1}")
