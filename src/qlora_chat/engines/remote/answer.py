"""One answer, from whichever servers it takes: begun, moved to another one, begun again when a slider moves.

Scope: the requests of one answer, one after the other. Runs on the remote engine's event loop, except for what a
caller holds (RemoteStream). Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue

from qlora_chat.engines import EngineError, Piece
from qlora_chat.engines.core.pieces import Pieces, handed_out
from qlora_chat.engines.remote.capabilities import Capabilities
from qlora_chat.engines.remote.pool import Pool
from qlora_chat.engines.remote.server import Patience, Server, ServerProblem
from qlora_chat.engines.remote.sse import Chunk
from qlora_chat.engines.remote.writer import Writer
from qlora_chat.models.identity import Identity
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

SETTLE_SECONDS = 0.1
"""A slider that is dragged moves many times; the answer goes on when it has been still for this long."""
TOLD_APART_BY = 16
"""First ids of a prompt, by which a conversation finds the server that knows it."""


@dataclass(frozen=True)
class RemoteRequest:
    """What an answer is to be the answer to."""

    prompt: Prompt
    stops: Stops
    model: str
    window: int


class RemoteAnswer:
    """State of one answer, and the task that writes it."""

    def __init__(self, asked: RemoteRequest, sampling: Sampling, identity: Identity, pool: Pool, patience: Patience) -> None:
        self.pieces: Pieces = SimpleQueue()
        self._asked, self._identity, self._pool, self._patience = asked, identity, pool, patience
        self._sampling, self._seed = sampling, sampling.seed
        self._writer = Writer(identity.tokenizer, asked.stops, len(asked.prompt.ids), self.pieces.put)
        self._conversation = str(asked.prompt.ids[:TOLD_APART_BY]).encode()
        self._reading: asyncio.Task[None] | None = None
        self._cancelled = self._changed = False
        self._by_words = False
        """Whether the server in use can only be interrupted between two words, for its decoder eats a space there."""
        self._failed: dict[Server, ServerProblem] = {}
        self._waited = 0.0

    def update(self, sampling: Sampling) -> None:
        """Go on with these settings from the tokens so far; the seed stays the one it began with."""
        if sampling == self._sampling:
            return
        self._sampling, self._changed = sampling, True
        if self._reading and not (self._by_words and self._writer.count):
            self._reading.cancel()

    def cancel(self) -> None:
        """End here; the request to the server is closed."""
        self._cancelled = True
        if self._reading:
            self._reading.cancel()

    async def write(self) -> None:
        """Write the whole answer; whatever goes wrong is raised in its caller's hands."""
        try:
            await self._write()
        except Exception as problem:
            error = problem if isinstance(problem, EngineError) else EngineError(f"generation failed: {type(problem).__name__}")
            error.__cause__ = None if error is problem else problem
            self.pieces.put(error)

    async def _write(self) -> None:
        while not self._writer.ended:
            if self._cancelled:
                self._writer.end("cancelled")
            elif self._writer.count >= self._most:
                self._writer.end("length")
            elif (server := self._pool.choose(self._conversation, self._failed)) is None:
                await self._wait_or_fail()
            else:
                await self._go_on(server)

    @property
    def _most(self) -> int:
        """Tokens that the answer may have."""
        return min(self._sampling.max_new_tokens, self._asked.window - len(self._asked.prompt.ids))

    async def _go_on(self, server: Server) -> None:
        """Read from one server until the answer ends, the server fails, or something is wanted otherwise."""
        self._reading = reading = asyncio.create_task(self._read(server))
        server.running += 1
        server.waiting.add(reading)
        try:
            await reading
        except asyncio.CancelledError:
            if not (self._cancelled or self._changed or server.up):
                self._failed[server] = ServerProblem("stopped answering")
        except ServerProblem as problem:
            self._note_failure(server, problem)
        finally:
            server.waiting.discard(reading)
            server.running -= 1
            self._reading = None
        if self._changed and not self._cancelled:
            await self._settle()

    async def _settle(self) -> None:
        while self._changed and not self._cancelled:
            self._changed = False
            await asyncio.sleep(SETTLE_SECONDS)
        self._writer.changes.append((self._writer.count, self._sampling))

    def _note_failure(self, server: Server, problem: ServerProblem) -> None:
        self._failed[server] = problem
        if problem.refused:
            server.forget()
        if problem.gone:
            self._pool.mark_down(server)

    async def _wait_or_fail(self) -> None:
        """Wait for those that said they are busy, within reason. EngineError where that is no use."""
        busy = {server: problem.busy_for for server, problem in self._failed.items() if problem.busy_for is not None}
        left = self._patience.busy - self._waited
        if not busy or min(busy.values()) > left or left <= 0:
            raise EngineError(self._explained())
        pause = max(min(busy.values()), 0.05 + 0.2 * self._waited)
        self._waited += pause
        await asyncio.sleep(min(pause, left))
        for server in busy:
            del self._failed[server]

    def _explained(self) -> str:
        reasons = [f"{server.url} {problem}" for server, problem in self._failed.items()]
        if self._writer.count:
            return f"the answer broke off after {self._writer.count} tokens: {'; '.join(reasons)}. Retry asks again"
        return "; ".join(reasons)

    async def _read(self, server: Server) -> None:
        dialect = await server.dialect(self._asked.model, self._identity)
        before, most = self._writer.count, self._most
        sampling = self._sampling
        seed = None if self._seed is None else (self._seed + before) % 2**63
        body = dialect.body(self._asked.model, self._prompt(dialect), sampling, self._asked.stops, most - before, seed)
        self._by_words, begins = dialect.strips_space, True
        async with contextlib.aclosing(server.chunks(body)) as chunks:
            async for chunk in chunks:
                if self._reading:
                    server.waiting.discard(self._reading)
                if self._changed and chunk.text[:1].isspace():
                    return  # only where _by_words; others are interrupted at once
                if dialect.strips_space and begins and chunk.text:
                    chunk = replace(chunk, text=self._with_space(chunk.text))
                begins = begins and not chunk.text
                self._take(chunk, before, most)
                if self._writer.ended:
                    return
        raise ServerProblem("broke the answer off")

    def _take(self, chunk: Chunk, before: int, most: int) -> None:
        writer = self._writer
        writer.cached_tokens = writer.cached_tokens or chunk.cached_tokens
        if chunk.ids:
            asked = self._sampling.logprobs
            writer.take_ids(chunk.ids, most, [(chosen, others[:asked]) for chosen, others in chunk.scores])
        elif chunk.text:
            writer.take_text(chunk.text, most)
        if chunk.completion_tokens is not None and not writer.ended and chunk.ids is None:
            writer.count_as(before + chunk.completion_tokens)
        if chunk.finish is None:
            return
        if chunk.finish not in ("stop", "length"):
            raise ServerProblem(f"ended the answer with {chunk.finish[:40]!r}")
        writer.end(chunk.finish)

    def _prompt(self, dialect: Capabilities) -> str | list[int]:
        """The prompt and the answer so far, as ids or as text with exactly one BOS."""
        prompt, writer, tokenizer = self._asked.prompt, self._writer, self._identity.tokenizer
        if dialect.takes_ids:
            known = writer.ids if len(writer.ids) == writer.count else tokenizer.encode_continuation(writer.text)
            return [*prompt.ids, *known]
        text = self._identity.harmless(prompt.text + writer.text)
        return text if dialect.adds_bos else self._identity.bos_text + text

    def _with_space(self, text: str) -> str:
        """The text with the space that its server's decoder took from the front, where there must have been one: at the very
        beginning of an answer (formats end at a colon), and before a word where an answer goes on between two words."""
        goes_on = text[0].isalnum() or text[0] in "([\"'"
        return text if text[0].isspace() or (self._writer.text and not goes_on) else " " + text


class RemoteStream:
    """The caller's handle on an answer; safe from any thread."""

    def __init__(self, answer: RemoteAnswer, on_loop: Callable[..., None]) -> None:
        self._answer, self._on_loop = answer, on_loop

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they come; the last one has `finish`. EngineError if generation fails."""
        return handed_out(self._answer.pieces)

    def update(self, sampling: Sampling) -> None:
        """Go on with these settings from the tokens so far."""
        self._on_loop(self._answer.update, sampling)

    def cancel(self) -> None:
        """End the answer and close the request; safe from any thread, and more than once."""
        self._on_loop(self._answer.cancel)
