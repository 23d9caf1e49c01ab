"""One OpenAI-compatible server: its address, what it takes, whether it is well, and one request to it.

Scope: HTTP. Everything here runs on the remote engine's event loop. Knows no chat and no other server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx

from qlora_chat.engines.remote.capabilities import Capabilities
from qlora_chat.engines.remote.sse import Chunk, WireError, error_text, read_chunks
from qlora_chat.models.identity import Identity
from qlora_chat.settings import EngineSettings, Sampling
from qlora_chat.stopping import Stops

KEPT_SECONDS = 4.0
"""How long an idle connection is used again: uvicorn, under vLLM and most others, closes them after 5 s."""
LONGEST_REFUSAL = 64 * 1024
BUSY = frozenset({429, 502, 503, 504})
"""Statuses of a server that may well take the same request later."""
PROBE = "one, two, three, four,"
"""Any model goes on with a word, and so with a space."""


@dataclass(frozen=True)
class Patience:
    """Seconds to wait for the stages of an answer."""

    connect: float = 5.0
    first: float = 120.0
    """For the first token: a busy server reads other prompts first."""
    following: float = 60.0
    busy: float = 15.0
    """In all, for servers that say they are busy."""
    health: float = 3.0
    """Between two looks at a server, and for its reply."""


class ServerProblem(Exception):
    """A server could not give an answer; the message says why."""

    def __init__(self, said: str, *, refused: bool = False, busy_for: float | None = None, gone: bool = False) -> None:
        super().__init__(said)
        self.gone = gone
        """There was no connection: it is down until it has been seen again."""
        self.refused = refused
        """It understood the request and does not want it: another dialect may do."""
        self.busy_for = busy_for
        """Seconds after which it may take the request; None where waiting does not help."""


@dataclass(frozen=True)
class Card:
    """A model that a server lists."""

    name: str
    root: str | None = None
    """Hub id or folder that it was loaded from."""
    parent: str | None = None
    """The model that it is an adapter of."""
    window: int | None = None


class Server:
    """Where requests go, and how many are under way there."""

    def __init__(self, url: str, settings: EngineSettings, patience: Patience) -> None:
        self.url = url
        self.up = True
        self.running = 0
        """Requests of ours that it is working on."""
        self.waiting: set[asyncio.Task[None]] = set()
        """Those of them without a first token: they go elsewhere when it stops answering."""
        self._patience = patience
        self._dialect: Capabilities | None = None
        self._learning = asyncio.Lock()
        authority = ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else True
        self._client = httpx.AsyncClient(
            base_url=url + "/",
            headers={"accept-encoding": "identity", **({"authorization": f"Bearer {settings.key}"} if settings.key else {})},
            timeout=httpx.Timeout(None, connect=patience.connect, write=30.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEPT_SECONDS),
            verify=authority,
            trust_env=False,  # a proxy or netrc that happens to be set must not come between
            follow_redirects=False,  # a redirect would hand the conversation to another host
        )

    async def close(self) -> None:
        """Let go of every connection."""
        await self._client.aclose()

    async def cards(self) -> list[Card]:
        """The models that it lists; [] where it is there but cannot tell. ServerProblem if it cannot be reached."""
        response = await self._get("models")
        if response.status_code in (401, 403):
            raise ServerProblem(_status_text(response.status_code, ""))
        try:
            listed = response.json()["data"] if response.is_success else []
            return [_card(each) for each in listed if isinstance(each, dict) and isinstance(each.get("id"), str)]
        except (ValueError, KeyError, TypeError):
            return []

    async def is_well(self) -> bool:
        """Whether it answers /health beside its /v1, or, where it has no such page, at all."""
        with contextlib.suppress(ServerProblem):
            response = await self._get(httpx.URL(self.url).copy_with(path="/health"), self._patience.health)
            return response.status_code < 500
        return False

    async def _get(self, path: str | httpx.URL, seconds: float = 10.0) -> httpx.Response:
        try:
            async with asyncio.timeout(seconds):
                return await self._client.get(path)
        except TimeoutError:
            raise ServerProblem(f"did not reply within {seconds:g} s") from None
        except httpx.HTTPError as problem:
            raise ServerProblem(_reason(problem)) from problem

    # --- one request ---------------------------------------------------------------------------------------------------

    async def chunks(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """One request's answer as it comes; closing the iterator closes the request. ServerProblem if there is none."""
        try:
            async with contextlib.aclosing(self._stream(body)) as stream:
                async for chunk in stream:
                    yield chunk
        except WireError as problem:
            raise ServerProblem(str(problem)) from problem
        except httpx.HTTPError as problem:
            raise ServerProblem(
                _reason(problem), gone=isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout)
            ) from problem

    async def _stream(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        async with contextlib.AsyncExitStack() as stack:
            response = await stack.enter_async_context(await self._send(body))
            if not response.is_success:
                raise await self._refusal(response)
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise ServerProblem(f"answered with {kind[:60] or 'no content type'} instead of a stream")
            parts = _patient(response.aiter_raw(), self._patience)
            async for chunk in read_chunks(await stack.enter_async_context(contextlib.aclosing(parts))):
                yield chunk

    async def _send(self, body: dict[str, Any]) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        """The response's beginning, or a second try where a kept connection turns out to have been closed meanwhile."""
        request = self._client.build_request("POST", "completions", json=body)
        try:
            async with asyncio.timeout(self._patience.first):
                try:
                    response = await self._client.send(request, stream=True)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    response = await self._client.send(request, stream=True)
        except TimeoutError:
            raise ServerProblem(f"did not begin to answer within {self._patience.first:g} s") from None
        return contextlib.aclosing(response)

    async def _refusal(self, response: httpx.Response) -> ServerProblem:
        said = b""
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(5.0):
                async for part in response.aiter_raw():
                    said += part
                    if len(said) > LONGEST_REFUSAL:
                        break
        text, status = _said(said), response.status_code
        busy = _retry_after(response.headers.get("retry-after")) if status in BUSY else None
        return ServerProblem(_status_text(status, text), refused=status in (400, 422, 500), busy_for=busy)

    # --- what it takes -------------------------------------------------------------------------------------------------

    async def dialect(self, model: str, identity: Identity) -> Capabilities:
        """What it takes, found once by asking for a few tokens. ServerProblem if it does not answer in any way known."""
        async with self._learning:
            if self._dialect is None:
                self._dialect = await self._learn(model, identity)
            return self._dialect

    def forget(self) -> None:
        """Ask again before the next request: it refused one, so it may have become another server."""
        self._dialect = None

    async def _learn(self, model: str, identity: Identity) -> Capabilities:
        dialect: Capabilities | None = Capabilities()
        while True:
            try:
                heard = await self._try(dialect, model, identity)
                break
            except ServerProblem as problem:
                smaller = dialect.without(str(problem)) if problem.refused else None
                if smaller is None:
                    raise
                dialect = smaller
        dialect = replace(dialect, gives_ids=dialect.takes_ids and any(chunk.ids for chunk in heard))
        if "top_k" not in dialect.fields:
            dialect = await self._nested(dialect, model, identity)
        return dialect if dialect.takes_ids else await self._in_text(dialect, model, identity)

    async def _nested(self, dialect: Capabilities, model: str, identity: Identity) -> Capabilities:
        """Whether it takes Transformers' own settings instead of those that it refused."""
        nested = replace(dialect, nested=True)
        try:
            await self._try(nested, model, identity)
        except ServerProblem as problem:
            if not problem.refused:
                raise
            return dialect
        return nested

    async def _in_text(self, dialect: Capabilities, model: str, identity: Identity) -> Capabilities:
        """Who begins a text with BOS, seen from the tokens it counts, and whether an answer keeps its first space."""
        heard = await self._try(dialect, model, identity)
        counted = next((chunk.prompt_tokens for chunk in heard if chunk.prompt_tokens is not None), None)
        bare = counted is not None and counted <= len(identity.tokenizer.encode(PROBE))
        text = "".join(chunk.text for chunk in heard)
        return replace(dialect, adds_bos=not bare, strips_space=bool(text) and not text[0].isspace())

    async def _try(self, dialect: Capabilities, model: str, identity: Identity) -> list[Chunk]:
        ids = identity.tokenizer.encode(PROBE)
        start = [] if identity.tokenizer.bos_id is None else [identity.tokenizer.bos_id]
        prompt = [*start, *ids] if dialect.takes_ids else PROBE
        body = dialect.body(model, prompt, Sampling(temperature=0.0, logprobs=0), Stops(), 4, 0)
        async with contextlib.aclosing(self.chunks(body)) as chunks:
            return [chunk async for chunk in chunks]


async def _patient(parts: AsyncIterator[bytes], patience: Patience) -> AsyncGenerator[bytes, None]:
    """The same bytes. ServerProblem where the next do not come in time."""
    seconds = patience.first
    while True:
        try:
            async with asyncio.timeout(seconds):
                part = await anext(parts, None)
        except TimeoutError:
            raise ServerProblem(f"sent nothing for {seconds:g} s") from None
        if part is None:
            return
        yield part
        seconds = patience.following


def _card(value: dict[str, Any]) -> Card:
    root, parent, window = value.get("root"), value.get("parent"), value.get("max_model_len")
    return Card(
        value["id"],
        root if isinstance(root, str) else None,
        parent if isinstance(parent, str) else None,
        window if type(window) is int and window > 0 else None,
    )


def _said(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        return error_text(json.loads(text))
    except (ValueError, RecursionError):
        return error_text(text)


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for; half a second where it does not say."""
    try:
        return max(0.0, float(value or 0.5))
    except ValueError:
        return 0.5


def _status_text(status: int, said: str) -> str:
    if status in (401, 403):
        return "refuses the key: set QLORA_CHAT_ENGINE_KEY to one that it takes"
    if 300 <= status < 400:
        return f"answers with a redirect ({status}), which is never followed: give the address that it leads to"
    return f"answered {status}{f' ({said})' if said else ''}"


def _reason(problem: httpx.HTTPError) -> str:
    """Why there was no answer, in words that name no conversation."""
    if isinstance(problem, httpx.ConnectTimeout):
        return "cannot be reached (no connection within the time)"
    if isinstance(problem, httpx.ConnectError):
        return f"cannot be reached ({str(problem) or 'no connection'})"
    if isinstance(problem, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        return "broke the connection off"
    return f"could not be asked ({type(problem).__name__})"
