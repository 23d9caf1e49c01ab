"""One answer in progress: its tokens and settings, and what its caller does with it.

Scope: per-chat state. Knows no model and no batch; a scheduler moves it on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch

from qlora_chat.engines import NO_LOGPROBS, AnsweredBy, EngineError, OutOfMemory, Piece, TokenLogprobs
from qlora_chat.engines.core.answer_builder import AnswerBuilder, PieceQueue, iterate
from qlora_chat.engines.core.grammar import AnswerGrammar
from qlora_chat.engines.core.kv_cache import Slot
from qlora_chat.engines.core.prompt_lookup import NO_DRAFT, Draft, Speculator
from qlora_chat.engines.core.sampler import Sampler, SamplerInput, sample, sample_from
from qlora_chat.prompt import Tokenizer
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops


class Request:
    """State of one answer, and the Stream of its caller, who may iterate, `update` and `cancel` from any thread. The rest
    belongs to the engine's thread."""

    def __init__(
        self,
        prompt: tuple[int, ...],
        sampling: Sampling,
        stops: Stops,
        window: int,
        tokenizer: Tokenizer,
        pending_sampling: Mapping[int, Sampling] | None = None,
        adapter: object = None,
        answered_by: AnsweredBy | None = None,
        grammar: AnswerGrammar | None = None,
    ) -> None:
        """`pending_sampling`: settings that apply once that many tokens have been generated; `adapter`: as Slot.adapter;
        `answered_by`: its name; `grammar`: what the answer has to match, at its beginning."""
        self.ids = list(prompt)
        """Prompt and answer."""
        self.sampling = sampling
        self.cancelled = False
        self.adapter, self.grammar = adapter, grammar
        self.slot: Slot | None = None
        self.seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        self._answer = AnswerBuilder(tokenizer, stops, len(prompt))
        self._answer.answered_by = answered_by
        self._prompt_tokens, self._window = len(prompt), window
        self._pending_sampling = dict(pending_sampling or {})
        self._used = sampling
        """Settings of the newest token."""
        self._random = random.Random(self.seed)
        self._draws: deque[float] = deque()
        """Random numbers of the next tokens. Each token uses one, drafted or not: drafts change no answer."""
        self._speculator: Speculator | None = None
        self._seen: torch.Tensor | None = None

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they are generated; the last one has `finish`. EngineError if generation fails."""
        return iterate(self.pieces)

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token; the seed stays the one that the answer began with."""
        self.sampling = sampling

    def cancel(self) -> None:
        """End the answer at the next token. Safe more than once."""
        self.cancelled = True

    @property
    def pieces(self) -> PieceQueue:
        """Queue that the caller reads the answer from."""
        return self._answer.pieces

    @property
    def running_slot(self) -> Slot:
        """Slot of a running request."""
        assert self.slot is not None, "a running request has a slot"
        return self.slot

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self._prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not in the cache yet: 1 during decode, more during prefill."""
        return len(self.ids) - (len(self.slot.ids) if self.slot else 0)

    def assign(self, slot: Slot) -> None:
        """Run in this slot; the part of the prompt that it already holds is not computed again."""
        self.slot, self._answer.cached_tokens = slot, len(slot.ids)

    def report_prefill(self) -> None:
        """Tell the caller how much of the prompt has been read, while more than its last token is left to read."""
        if self.pending > 1 and not self.generated:
            self._answer.report_prefill(len(self.running_slot.ids))

    def draft(self) -> Draft:
        """Tokens that may follow, at most as many as the answer may still have; none where a grammar rules most out."""
        if self.grammar is not None:
            return NO_DRAFT
        if self._speculator is None:
            self._speculator = Speculator(self.ids)
        left = self._limit(self.sampling) - self.generated
        return self._speculator.draft(left - 1) if left > 1 else NO_DRAFT

    def sampler_inputs(self, draft: Sequence[int], vocabulary: int, device: torch.device) -> list[SamplerInput]:
        """Sampler inputs for the next token and for the one after each drafted token, with the current settings."""
        sampling = self.apply_pending_sampling()
        while len(self._draws) <= len(draft):
            self._draws.append(self._random.random())
        if sampling.repetition_penalty == 1.0:
            return [SamplerInput(sampling, None, self._draws[index]) for index in range(len(draft) + 1)]
        seen = self._seen_tokens(vocabulary, device)
        inputs = [SamplerInput(sampling, seen, self._draws[0])]
        for index, token in enumerate(draft, 1):
            seen = seen.clone()
            seen[token] = True
            inputs.append(SamplerInput(sampling, seen, self._draws[index]))
        return inputs

    def sample_within_grammar(self, logits: torch.Tensor, sample: Sampler = sample) -> int:
        """Next token, of those that the grammar allows, from logits (V,). EngineError as AnswerGrammar.allowed."""
        assert self.grammar is not None, "the request has a grammar"
        (row,) = self.sampler_inputs((), len(logits), torch.device("cpu"))
        return sample_from(self.grammar.allowed(), logits, row, sample)

    def sampling_unchanged(self, sampling: Sampling, ahead: int = 0) -> bool:
        """True if these settings still apply to the token that is `ahead` of the next one."""
        return self.sampling is sampling and self.generated + ahead not in self._pending_sampling

    def apply_pending_sampling(self) -> Sampling:
        """Settings for the next token; a change since the last token is recorded for the finish."""
        if self.generated in self._pending_sampling:
            self.sampling = self._pending_sampling.pop(self.generated)
        sampling = self.sampling
        if sampling != self._used:
            self._used = sampling
            self._answer.changes.append((self.generated, sampling))
        return sampling

    def accept(self, token_id: int, logprobs: TokenLogprobs = NO_LOGPROBS) -> bool:
        """Append a token and hand it to the caller; returns True if the answer ends with it."""
        self.ids.append(token_id)
        if self._draws:
            self._draws.popleft()
        if self._speculator is not None:
            self._speculator.push(token_id)
        if self._seen is not None:
            self._seen[token_id] = True
        if self.grammar is None:
            return self._answer.push_token(token_id, self._limit(self._used), logprobs)
        self.grammar.accept(token_id)
        complete = self.grammar.complete  # and so not cut off, even with its last token
        ended = self._answer.push_token(token_id, self._limit(self._used) + complete, logprobs)
        if complete:
            self._answer.end("stop")
        return ended or complete

    def end_cancelled(self) -> None:
        """End the answer here because its caller cancelled it."""
        self._answer.end("cancelled")

    def fail(self, problem: BaseException) -> None:
        """Raise the problem for this request's caller only."""
        error = problem if isinstance(problem, EngineError) else _user_error(problem)
        error.__cause__ = None if error is problem else problem
        self.pieces.put(error)

    def _limit(self, sampling: Sampling) -> int:
        """Most tokens that the answer may have with these settings."""
        return min(sampling.max_new_tokens, self._window - self._prompt_tokens)

    def _seen_tokens(self, vocabulary: int, device: torch.device) -> torch.Tensor:
        if self._seen is None:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen[torch.tensor(self.ids, device=device)] = True
        return self._seen


def is_out_of_memory(problem: BaseException) -> bool:
    """True if memory ran out; some libraries report that by message only."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    # torch on a CPU; the CUDA driver, for its own allocations; cuBLAS
    signs = "can't allocate memory", "out of memory", "ALLOC_FAILED"
    return isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in signs)


def _user_error(problem: BaseException) -> EngineError:
    if is_out_of_memory(problem):
        return OutOfMemory(
            "not enough memory for this answer; shorten the conversation, or start with fewer slots or --precision nf4"
        )
    return EngineError(f"generation failed: {type(problem).__name__}: {problem}")
