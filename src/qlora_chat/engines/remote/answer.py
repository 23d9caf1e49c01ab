"""One remote answer across all the requests that it takes: started, moved to another server, restarted with new settings.

Scope: the requests of one answer, one after the other. Runs on the remote engine's event loop, except for RemoteStream,
which callers hold. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qlora_chat.engines import NO_LOGPROBS, AnsweredBy, EngineError, Piece, TokenLogprobs
from qlora_chat.engines.core.answer_builder import AnswerBuilder, PieceQueue, iterate
from qlora_chat.engines.remote.capabilities import RESPONSE_FORMAT, Capabilities, response_format
from qlora_chat.engines.remote.pool import Pool
from qlora_chat.engines.remote.reasons import ServerError
from qlora_chat.engines.remote.server import Server, Timeouts
from qlora_chat.engines.remote.sse import Chunk
from qlora_chat.messages import AnswerSchema
from qlora_chat.models import ModelError
from qlora_chat.models.identity import Identity
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

DEBOUNCE_SECONDS = 0.1
"""A slider that is dragged sends many updates; the answer continues once none has come for this long."""
AFFINITY_TOKENS = 16
"""First tokens of a prompt, which identify a conversation when a server is picked."""
TOKEN_CHARACTERS = 1024
"""Most characters of an answer's text for each of its tokens, on average: the longest tokens have a few hundred."""


@dataclass(frozen=True)
class RemoteRequest:
    """Everything about an answer that stays the same across its requests."""

    prompt: Prompt
    stops: Stops
    model: str
    window: int
    adapters: Mapping[str, str | None] = field(default_factory=dict)
    """By the name of a model on the servers, the adapter that it is for us."""
    schema: AnswerSchema | None = None


class RemoteAnswer:
    """State of one answer, and the task that reads it."""

    def __init__(self, request: RemoteRequest, sampling: Sampling, identity: Identity, pool: Pool, timeouts: Timeouts) -> None:
        self._request, self._identity, self._pool, self._timeouts = request, identity, pool, timeouts
        self._sampling, self._seed = sampling, sampling.seed
        self._answer = AnswerBuilder(identity.tokenizer, request.stops, len(request.prompt.ids))
        self._ids: list[int] = []
        """Token ids of the answer, as far as servers returned them."""
        self._affinity = str(request.prompt.ids[:AFFINITY_TOKENS]).encode()
        self._reading: asyncio.Task[None] | None = None
        self._characters = 0
        """Of texts that came without ids."""
        self._cancelled = self._changed = False
        self._between_words_only = False
        """True if the server in use can only be interrupted between two words, because its decoder drops a space there."""
        self._failed: dict[Server, ServerError] = {}
        self._waited = 0.0

    @property
    def pieces(self) -> PieceQueue:
        """Queue that the caller reads the answer from."""
        return self._answer.pieces

    def update(self, sampling: Sampling) -> None:
        """Continue with these settings after the tokens so far; the seed stays the one that the answer began with."""
        if sampling == self._sampling:
            return
        self._sampling, self._changed = sampling, True
        if self._reading and not (self._between_words_only and self._answer.count):
            self._reading.cancel()

    def cancel(self) -> None:
        """End here; the request to the server is closed."""
        self._cancelled = True
        if self._reading:
            self._reading.cancel()

    async def run(self) -> None:
        """Read the whole answer; any error is raised for its caller."""
        try:
            await self._run()
        except Exception as problem:
            error = problem if isinstance(problem, EngineError) else EngineError(f"generation failed: {type(problem).__name__}")
            error.__cause__ = None if error is problem else problem
            self.pieces.put(error)

    async def _run(self) -> None:
        while not self._answer.ended:
            if self._cancelled:
                self._answer.end("cancelled")
            elif self._answer.count >= self._limit:
                self._answer.end("length")
            elif self._request.schema and self._answer.count:
                raise EngineError(self._error_text())  # a server would begin the schema anew in the middle
            elif (server := self._pool.pick(self._affinity, self._failed)) is None:
                await self._wait_or_fail()
            else:
                await self._continue_on(server)

    @property
    def _limit(self) -> int:
        """Most tokens that the answer may have."""
        return min(self._sampling.max_new_tokens, self._request.window - len(self._request.prompt.ids))

    async def _continue_on(self, server: Server) -> None:
        """Read from one server until the answer ends, the server fails, or the answer is cancelled or updated."""
        self._reading = reading = asyncio.create_task(self._read(server))
        server.running += 1
        server.waiting.add(reading)
        try:
            await reading
        except asyncio.CancelledError:
            if not (self._cancelled or self._changed or server.up):
                self._failed[server] = ServerError("stopped answering")
        except ServerError as problem:
            self._note_failure(server, problem)
        finally:
            server.waiting.discard(reading)
            server.running -= 1
            self._reading = None
        if self._changed and not self._cancelled:
            await self._debounce()

    async def _debounce(self) -> None:
        while self._changed and not self._cancelled:
            self._changed = False
            await asyncio.sleep(DEBOUNCE_SECONDS)
        self._answer.changes.append((self._answer.count, self._sampling))

    def _note_failure(self, server: Server, problem: ServerError) -> None:
        self._failed[server] = problem
        if problem.refused:
            server.reset_capabilities()
        if problem.unreachable:
            self._pool.mark_down(server)

    async def _wait_or_fail(self) -> None:
        """Wait for busy servers, within the timeout. EngineError where none may become free in time."""
        busy = {server: problem.retry_after for server, problem in self._failed.items() if problem.retry_after is not None}
        left = self._timeouts.busy - self._waited
        if not busy or min(busy.values()) > left or left <= 0:
            raise EngineError(self._error_text())
        pause = max(min(busy.values()), 0.05 + 0.2 * self._waited)
        self._waited += pause
        await asyncio.sleep(min(pause, left))
        for server in busy:
            del self._failed[server]

    def _error_text(self) -> str:
        reasons = [f"{server.url} {problem}" for server, problem in self._failed.items()]
        if self._answer.count:
            count = "1 token" if self._answer.count == 1 else f"{self._answer.count:,} tokens"
            return f"the answer broke off after {count}: {'; '.join(reasons)}. Retry asks again"
        return "; ".join(reasons)

    async def _read(self, server: Server) -> None:
        capabilities = await server.capabilities(self._request.model, self._identity)
        before, limit = self._answer.count, self._limit
        seed = None if self._seed is None else (self._seed + before) % 2**63
        body = capabilities.body(
            self._request.model, self._prompt(capabilities), self._sampling, self._request.stops, limit - before, seed
        )
        if self._request.schema:
            if not await server.enforces_schemas(self._request.model, self._identity):
                raise ServerError(f"does not keep to {RESPONSE_FORMAT}")
            body[RESPONSE_FORMAT] = response_format(self._request.schema)
        self._between_words_only, at_start = capabilities.strips_space, True
        async with contextlib.aclosing(server.chunks(body)) as chunks:
            async for chunk in chunks:
                if chunk.prefill:
                    self._answer.report_prefill(chunk.prefill.read)
                    continue
                if self._reading:
                    server.waiting.discard(self._reading)
                if self._changed and chunk.text[:1].isspace():
                    return  # only where _between_words_only; others are interrupted at once
                if capabilities.strips_space and at_start and chunk.text:
                    chunk = replace(chunk, text=self._with_space(chunk.text))
                at_start = at_start and not chunk.text
                self._add(chunk, before, limit)
                if self._answer.ended:
                    return
        raise ServerError("broke the answer off")

    def _add(self, chunk: Chunk, before: int, limit: int) -> None:
        answer = self._answer
        answer.cached_tokens = answer.cached_tokens or chunk.cached_tokens
        if chunk.model is not None and chunk.model in self._request.adapters:  # some servers name a file instead
            answer.answered_by = AnsweredBy(self._request.adapters[chunk.model])
        if chunk.ids:
            self._add_tokens(chunk.ids, chunk.logprobs, limit)
        elif chunk.text:
            self._characters += len(chunk.text)
            if self._characters > TOKEN_CHARACTERS * limit:
                raise ServerError(f"sent more text than {limit:,} tokens can have")
            answer.push_text(chunk.text, limit)
        if chunk.completion_tokens is not None and not answer.ended and chunk.ids is None:
            answer.count = before + chunk.completion_tokens
        if chunk.finish is None:
            return
        if chunk.finish not in ("stop", "length"):
            raise ServerError(f"ended the answer with {chunk.finish[:40]!r}")
        answer.end(chunk.finish)

    def _add_tokens(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs], limit: int) -> None:
        trimmed = [each._replace(top=each.top[: self._sampling.logprobs]) for each in logprobs]
        for token_id, each in zip(ids, trimmed or itertools.repeat(NO_LOGPROBS), strict=False):
            self._ids.append(token_id)
            if self._answer.push_token(token_id, limit, each):
                return

    def _prompt(self, capabilities: Capabilities) -> str | list[int]:
        """The prompt and the answer so far, as ids or as text with exactly one BOS."""
        prompt, answer, tokenizer = self._request.prompt, self._answer, self._identity.tokenizer
        if capabilities.takes_ids:
            ids = self._ids if len(self._ids) == answer.count else tokenizer.encode_continuation(answer.text)
            return [*prompt.ids, *ids]
        try:
            written = self._identity.prompt_as_text(prompt.text, prompt.ids)
        except ModelError as problem:
            raise EngineError(str(problem)) from problem
        if not capabilities.reads_special_tokens and (name := self._identity.special_token(prompt.ids)):
            raise EngineError(
                f"the server takes text only, and reads {name} of the chat template as letters; use a server that takes token "
                "ids (vLLM, llama.cpp), or name a format without such tokens"
            )
        text = written + self._identity.without_special_tokens(answer.text)
        return text if capabilities.adds_bos or not capabilities.reads_special_tokens else self._identity.bos_text + text

    def _with_space(self, text: str) -> str:
        """Text with the leading space that the server's decoder dropped, where there must have been one: at the beginning of
        an answer (formats end with a colon), and before a word where an answer continues between two words."""
        continues_text = text[0].isalnum() or text[0] in "([\"'"
        return text if text[0].isspace() or (self._answer.text and not continues_text) else " " + text


class RemoteStream:
    """Handle of an answer's caller; see the Stream protocol. Safe from any thread."""

    def __init__(self, answer: RemoteAnswer, on_loop: Callable[..., None]) -> None:
        self._answer, self._on_loop = answer, on_loop

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they arrive; the last one has `finish`. EngineError if generation fails."""
        return iterate(self._answer.pieces)

    def update(self, sampling: Sampling) -> None:
        """Continue with these settings after the tokens so far."""
        self._on_loop(self._answer.update, sampling)

    def cancel(self) -> None:
        """End the answer and close its request. Safe more than once."""
        self._on_loop(self._answer.cancel)
