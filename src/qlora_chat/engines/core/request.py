"""One answer in the making: what was asked, what has been generated, and how its caller hears of it.

Scope: per-chat state and the handle that callers hold. Knows no model and no batch; the scheduler moves it on.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue

import torch

from qlora_chat.engines import EngineError, Finish, OutOfMemory, Piece
from qlora_chat.engines.core.detokenizer import Detokenizer
from qlora_chat.engines.core.kv_cache import Slot
from qlora_chat.engines.core.pieces import Pieces, handed_out
from qlora_chat.engines.core.prompt_lookup import NOTHING, Proposal, Speculator
from qlora_chat.engines.core.sampler import NO_LOGPROBS, SamplerInput, TokenLogprobs
from qlora_chat.messages import FinishReason
from qlora_chat.prompt import Tokenizer
from qlora_chat.settings import Sampling
from qlora_chat.stopping import StopOnTokens, Stops, TextStops


class Request:
    """State of one answer. `sampling` and `cancelled` may be set by any thread; the rest belongs to the engine's."""

    def __init__(
        self,
        prompt: tuple[int, ...],
        sampling: Sampling,
        stops: Stops,
        window: int,
        tokenizer: Tokenizer,
        due: Mapping[int, Sampling] | None = None,
    ) -> None:
        """`due` are settings to take up once so many tokens have been made."""
        self.ids = list(prompt)
        """Prompt and answer."""
        self.sampling = sampling
        self.cancelled = False
        self.adapter: object = None
        """What is applied besides the base; set before the request is submitted."""
        self.slot: Slot | None = None
        self.pieces: Pieces = SimpleQueue()
        self._prompt_tokens = len(prompt)
        self._cached_tokens = 0
        self._window = window
        self._stop_on_tokens = StopOnTokens(stops.token_ids)
        self._text_stops = TextStops(stops.texts)
        self._detokenizer = Detokenizer(tokenizer)
        self.seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        self._random = random.Random(self.seed)
        self._due = dict(due or {})
        self._used = sampling
        """What the newest token was chosen with."""
        self._changes: list[tuple[int, Sampling]] = []
        self._draws: deque[float] = deque()
        """Drawn for tokens to come. Each token takes one, guessed or not: guessing changes no answer."""
        self._speculator: Speculator | None = None
        self._seen: torch.Tensor | None = None
        self._began = time.perf_counter()
        self._first_token_at = self._last_token_at = 0.0

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self._prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not in the cache yet: 1 while decoding, more while the prompt is read."""
        return len(self.ids) - (len(self.slot.ids) if self.slot else 0)

    def start_in(self, slot: Slot) -> None:
        """Take a place in the cache; what it already holds of the prompt is not computed again."""
        self.slot, self._cached_tokens = slot, len(slot.ids)

    def propose(self) -> Proposal:
        """What may follow the tokens so far, within what the answer may still have."""
        if self._speculator is None:
            self._speculator = Speculator(self.ids)
        left = min(self.sampling.max_new_tokens - self.generated, self._window - len(self.ids))
        return self._speculator.propose(left - 1) if left > 1 else NOTHING

    def choices(self, drafted: Sequence[int], vocabulary: int, device: torch.device) -> list[SamplerInput]:
        """The settings of this very moment, for the next token and for those after each of the drafted ones."""
        sampling = self.taken_up()
        while len(self._draws) <= len(drafted):
            self._draws.append(self._random.random())
        if sampling.repetition_penalty == 1.0:
            return [SamplerInput(sampling, None, self._draws[index]) for index in range(len(drafted) + 1)]
        seen = self._seen_tokens(vocabulary, device)
        found = [SamplerInput(sampling, seen, self._draws[0])]
        for index, token in enumerate(drafted, 1):
            seen = seen.clone()
            seen[token] = True
            found.append(SamplerInput(sampling, seen, self._draws[index]))
        return found

    def keeps(self, sampling: Sampling, ahead: int = 0) -> bool:
        """Whether the next token, or the one so many after it, is to be chosen with these settings still."""
        return self.sampling is sampling and self.generated + ahead not in self._due

    def taken_up(self) -> Sampling:
        """The settings for the next token, noted where they are others than the last one's."""
        if self.generated in self._due:
            self.sampling = self._due.pop(self.generated)
        sampling = self.sampling
        if sampling != self._used:
            self._used = sampling
            self._changes.append((self.generated, sampling))
        return sampling

    def _seen_tokens(self, vocabulary: int, device: torch.device) -> torch.Tensor:
        if self._seen is None:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen[torch.tensor(self.ids, device=device)] = True
        return self._seen

    def accept(self, token_id: int, likely: TokenLogprobs = NO_LOGPROBS) -> bool:
        """Take a token, tell the caller, and return whether the answer ends with it."""
        self._note_time()
        self.ids.append(token_id)
        if self._draws:
            self._draws.popleft()
        if self._speculator is not None:
            self._speculator.push(token_id)
        if self._seen is not None:
            self._seen[token_id] = True
        if self._stop_on_tokens([[token_id]])[0]:
            self._end("stop", self._rest())
            return True
        text = self._text_stops.push(self._detokenizer.push(token_id))
        if self._text_stops.stopped:
            self._end("stop", text, token_id, likely)
            return True
        if self.generated >= self._used.max_new_tokens or len(self.ids) >= self._window:
            self._end("length", text, token_id, likely)
            return True
        self.pieces.put(Piece(text, token_id, None, likely.logprob, likely.top))
        return False

    def end_cancelled(self) -> None:
        """Tell the caller that the answer ends here because it was asked to."""
        self._end("cancelled", "")

    def fail(self, problem: BaseException) -> None:
        """Raise the problem in the caller's hands, and in no other's."""
        error = problem if isinstance(problem, EngineError) else _explained(problem)
        error.__cause__ = None if error is problem else problem
        self.pieces.put(error)

    def _rest(self) -> str:
        """Held-back text, where the model itself has ended: then no stop can come of it. An answer that is cut off goes
        without, since what is held back may be half a marker or half a character."""
        shown = self._text_stops.push(self._detokenizer.flush())
        return shown if self._text_stops.stopped else shown + self._text_stops.flush()

    def _note_time(self) -> None:
        self._last_token_at = time.perf_counter()
        if not self._first_token_at:
            self._first_token_at = self._last_token_at

    def _end(self, reason: FinishReason, text: str, token_id: int | None = None, likely: TokenLogprobs = NO_LOGPROBS) -> None:
        count, elapsed = self.generated, self._last_token_at - self._first_token_at
        finish = Finish(
            reason,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=count,
            ttft_ms=(self._first_token_at - self._began) * 1000 if count else None,
            tokens_per_s=(count - 1) / elapsed if count > 1 and elapsed > 0 else None,
            changes=tuple(self._changes),
        )
        self.pieces.put(Piece(text, token_id, finish, likely.logprob, likely.top))


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether memory was short; not all who run out of it say so by their type."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    # torch on a CPU; the CUDA driver, for what it allocates by itself; cuBLAS
    signs = "can't allocate memory", "out of memory", "ALLOC_FAILED"
    return isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in signs)


def _explained(problem: BaseException) -> EngineError:
    if is_out_of_memory(problem):
        return OutOfMemory(
            "not enough memory for this answer; shorten the conversation, or start with fewer slots or --precision nf4"
        )
    return EngineError(f"generation failed: {type(problem).__name__}: {problem}")


class LocalStream:
    """The caller's handle on a request."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they come; the last one has `finish`. EngineError if generation fails."""
        return handed_out(self._request.pieces)

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token; the seed stays the one it began with."""
        self._request.sampling = sampling

    def cancel(self) -> None:
        """End the answer at the next token; safe from any thread, and more than once."""
        self._request.cancelled = True
