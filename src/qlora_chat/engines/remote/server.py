"""One OpenAI-compatible server: its address, its health, its capabilities, and one request to it.

Scope: HTTP. All of it runs on the remote engine's event loop. Knows no chat and no other server.
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

from qlora_chat.engines.remote.capabilities import RESPONSE_FORMAT, Capabilities, response_format
from qlora_chat.engines.remote.reasons import ServerError, failure_text, status_text
from qlora_chat.engines.remote.sse import Chunk, error_text, read_chunks
from qlora_chat.messages import AnswerSchema
from qlora_chat.models.identity import Identity
from qlora_chat.settings import EngineSettings, Sampling
from qlora_chat.stopping import Stops

KEEPALIVE_SECONDS = 4.0
"""Time for which an idle connection is reused: uvicorn, under vLLM and most others, closes them after 5 s."""
MAX_ERROR_BYTES = 64 * 1024
MAX_LISTING_BYTES = 2 * 2**20
"""Bytes of a list of models; a thousand of vLLM's have half as many."""
MAX_MODELS, MAX_NAME = 1000, 256
"""Models of a list, and characters of a name, an id or a folder."""
MAX_PROBE_CHUNKS = 64
"""Chunks of an answer of PROBE_TOKENS tokens."""
PROBE_TOKENS = 4
PROBE_ANSWER = {"probe": 7}
PROBE_SCHEMA = AnswerSchema(
    json.dumps({
        "type": "object", "properties": {"probe": {"enum": [7]}}, "required": ["probe"], "additionalProperties": False,
    })
)  # fmt: skip
"""Only PROBE_ANSWER matches it."""
PROBE_SCHEMA_TOKENS = 32
"""With white space between its tokens."""
BUSY_STATUSES = frozenset({429, 502, 503, 504})
"""Statuses of a server that may accept the same request later."""
PROBE = "one, two, three, four,"
"""Any model continues this with a word, and so with a space."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for the stages of an answer."""

    connect: float = 5.0
    first: float = 120.0
    """For the first token: a busy server prefills other prompts first."""
    following: float = 60.0
    busy: float = 15.0
    """In total, for servers that report being busy."""
    health: float = 3.0
    """Between two health checks of a server, and for its reply."""


@dataclass(frozen=True)
class ModelCard:
    """A model that a server lists."""

    name: str
    root: str | None = None
    """Hub id or folder that it was loaded from."""
    parent: str | None = None
    """Base of an adapter."""
    window: int | None = None


class Server:
    """Address of the server, and our requests that are running there."""

    def __init__(self, url: str, settings: EngineSettings, timeouts: Timeouts) -> None:
        self.url = url
        self.up = True
        self.running = 0
        """Our requests that it is working on."""
        self.waiting: set[asyncio.Task[None]] = set()
        """Those of them without a first token: they move to another server when it stops answering."""
        self._timeouts = timeouts
        self._capabilities: Capabilities | None = None
        self._enforces_schemas: bool | None = None
        self._probing = asyncio.Lock()
        authority = ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else True
        self._client = httpx.AsyncClient(
            base_url=url + "/",
            headers={"accept-encoding": "identity", **({"authorization": f"Bearer {settings.key}"} if settings.key else {})},
            timeout=httpx.Timeout(None, connect=timeouts.connect, write=30.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEPALIVE_SECONDS),
            verify=authority,
            trust_env=False,  # a proxy or netrc that happens to be set must not come between
            follow_redirects=False,  # a redirect would send the conversation to another host
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def models(self) -> list[ModelCard]:
        """Models that it lists; [] where it answers without a list. ServerError if it cannot be reached, or lists too much."""
        status, content = await self._get("models", MAX_LISTING_BYTES)
        if status in (401, 403):
            raise ServerError(status_text(status, ""))
        if len(content) > MAX_LISTING_BYTES:
            raise ServerError(f"lists its models in more than {MAX_LISTING_BYTES:,} bytes, which were not read further")
        try:
            listed = json.loads(content)["data"] if 200 <= status < 300 else []
            cards = [_model_card(each) for each in listed if isinstance(each, dict) and isinstance(each.get("id"), str)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
        if len(cards) > MAX_MODELS:
            raise ServerError(f"lists {len(cards):,} models; up to {MAX_MODELS:,} are read: start it with fewer")
        return cards

    async def is_healthy(self) -> bool:
        """True if it answers /health next to its /v1; any answer counts where it has no such route."""
        with contextlib.suppress(ServerError):
            health = httpx.URL(self.url).copy_with(path="/health")
            status, _ = await self._get(health, MAX_ERROR_BYTES, self._timeouts.health)
            return status < 500
        return False

    async def _get(self, path: str | httpx.URL, max_bytes: int, seconds: float = 10.0) -> tuple[int, bytes]:
        """Status, and the body up to a little more than `max_bytes`. ServerError if it does not reply in time."""
        content = bytearray()
        try:
            async with asyncio.timeout(seconds), self._client.stream("GET", path) as response:
                await _read_up_to(response, max_bytes, content)
        except TimeoutError:
            raise ServerError(f"did not reply within {seconds:g} s") from None
        except httpx.HTTPError as problem:
            raise ServerError(failure_text(problem)) from problem
        return response.status_code, bytes(content)

    # --- one request ---------------------------------------------------------------------------------------------------

    async def chunks(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Chunks of one request's answer as they arrive; closing the iterator closes the request. ServerError if it fails."""
        try:
            async with contextlib.aclosing(await self._send(body)) as response:
                if not response.is_success:
                    raise await self._refusal(response)
                kind = response.headers.get("content-type", "")
                if not kind.startswith("text/event-stream"):
                    raise ServerError(f"answered with {kind[:60] or 'no content type'} instead of a stream")
                async with contextlib.aclosing(_with_timeouts(response.aiter_raw(), self._timeouts)) as parts:
                    async for chunk in read_chunks(parts):
                        yield chunk
        except httpx.HTTPError as problem:
            unreachable = isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout)
            raise ServerError(failure_text(problem), unreachable=unreachable) from problem

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        """Send the request and wait for the headers; retried once, since an idle connection may have been closed meanwhile."""
        request = self._client.build_request("POST", "completions", json=body)
        try:
            async with asyncio.timeout(self._timeouts.first):
                try:
                    return await self._client.send(request, stream=True)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    return await self._client.send(request, stream=True)
        except TimeoutError:
            raise ServerError(f"did not begin to answer within {self._timeouts.first:g} s") from None

    async def _refusal(self, response: httpx.Response) -> ServerError:
        content = bytearray()
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(5.0):
                await _read_up_to(response, MAX_ERROR_BYTES, content)
        status = response.status_code
        retry_after = _retry_after(response.headers.get("retry-after")) if status in BUSY_STATUSES else None
        text = status_text(status, _error_message(bytes(content)))
        return ServerError(text, refused=status in (400, 422, 500), retry_after=retry_after)

    # --- capabilities --------------------------------------------------------------------------------------------------

    async def capabilities(self, model: str, identity: Identity) -> Capabilities:
        """Capabilities, probed once with a few tokens. ServerError if it answers no known form of request."""
        async with self._probing:
            if self._capabilities is None:
                self._capabilities = await self._probe_all(model, identity)
            return self._capabilities

    async def enforces_schemas(self, model: str, identity: Identity) -> bool:
        """True if it holds an answer to a JSON Schema, probed once with a short one. ServerError if it does not answer."""
        capabilities = await self.capabilities(model, identity)
        async with self._probing:
            if self._enforces_schemas is None:
                self._enforces_schemas = await self._probe_schema(capabilities, model, identity)
            return self._enforces_schemas

    def reset_capabilities(self) -> None:
        """Probe again before the next request: the server refused one, so it may have been replaced."""
        self._capabilities = self._enforces_schemas = None

    async def _probe_schema(self, capabilities: Capabilities, model: str, identity: Identity) -> bool:
        chunks = await self._probe_unless_refused(capabilities, model, identity, PROBE_SCHEMA)
        with contextlib.suppress(ValueError):
            return json.loads("".join(chunk.text for chunk in chunks or ())) == PROBE_ANSWER
        return False

    async def _probe_all(self, model: str, identity: Identity) -> Capabilities:
        capabilities: Capabilities | None = Capabilities()
        while True:
            try:
                chunks = await self._probe(capabilities, model, identity)
                break
            except ServerError as problem:
                fewer = capabilities.without(str(problem)) if problem.refused else None
                if fewer is None:
                    raise
                capabilities = fewer
        returns_ids = capabilities.takes_ids and any(chunk.ids for chunk in chunks)
        capabilities = replace(capabilities, returns_ids=returns_ids)
        if "top_k" not in capabilities.fields:  # it may take Transformers' own settings instead of those that it refused
            nested = replace(capabilities, nested=True)
            if await self._probe_unless_refused(nested, model, identity) is not None:
                capabilities = nested
        return capabilities if capabilities.takes_ids else await self._probe_text(capabilities, model, identity)

    async def _probe_text(self, capabilities: Capabilities, model: str, identity: Identity) -> Capabilities:
        """Probe whether it prepends BOS to text, seen from its token count, and whether an answer loses its first space."""
        chunks = await self._probe(capabilities, model, identity)
        count = next((chunk.prompt_tokens for chunk in chunks if chunk.prompt_tokens is not None), None)
        without_bos = count is not None and count <= len(identity.tokenizer.encode(PROBE))
        text = "".join(chunk.text for chunk in chunks)
        reads = await self._reads_special_tokens(capabilities, model, identity, count)
        strips = bool(text) and not text[0].isspace()
        return replace(capabilities, adds_bos=not without_bos, strips_space=strips, reads_special_tokens=reads)

    async def _reads_special_tokens(
        self, capabilities: Capabilities, model: str, identity: Identity, count: int | None
    ) -> bool:
        """Probe whether a special token in a text is one token more; True where the server counts none."""
        name = next(iter(identity.tokenizer.special_names), None)
        if name is None or count is None:
            return True
        chunks = await self._probe(capabilities, model, identity, text=PROBE + name)
        longer = next((chunk.prompt_tokens for chunk in chunks if chunk.prompt_tokens is not None), None)
        return longer is None or longer <= count + 1

    async def _probe_unless_refused(
        self, capabilities: Capabilities, model: str, identity: Identity, schema: AnswerSchema | None = None
    ) -> list[Chunk] | None:
        try:
            return await self._probe(capabilities, model, identity, schema)
        except ServerError as problem:
            if not problem.refused:
                raise
            return None

    async def _probe(
        self, capabilities: Capabilities, model: str, identity: Identity, schema: AnswerSchema | None = None, text: str = PROBE
    ) -> list[Chunk]:
        ids = identity.tokenizer.encode(PROBE)
        bos = [] if identity.tokenizer.bos_id is None else [identity.tokenizer.bos_id]
        prompt = [*bos, *ids] if capabilities.takes_ids else text
        tokens = PROBE_SCHEMA_TOKENS if schema else PROBE_TOKENS
        stops = Stops(identity.info.stop_token_ids)  # some servers refuse any but an empty list
        body = capabilities.body(model, prompt, Sampling(temperature=0.0, logprobs=0), stops, tokens, 0)
        if schema:
            body[RESPONSE_FORMAT] = response_format(schema)
        answer: list[Chunk] = []
        async with contextlib.aclosing(self.chunks(body)) as chunks:
            async for chunk in chunks:
                answer.append(chunk)
                if len(answer) > MAX_PROBE_CHUNKS:
                    raise ServerError(f"does not end an answer after {tokens} tokens")
        return answer


async def _read_up_to(response: httpx.Response, max_bytes: int, content: bytearray) -> None:
    """Append a body to `content`, as it was sent, until there are more than `max_bytes`. Nothing is decompressed: a few bytes
    could become any number."""
    async for part in response.aiter_raw():
        content += part
        if len(content) > max_bytes:
            return


async def _with_timeouts(parts: AsyncIterator[bytes], timeouts: Timeouts) -> AsyncGenerator[bytes, None]:
    """The same bytes. ServerError where the next ones do not arrive in time."""
    seconds = timeouts.first
    while True:
        try:
            async with asyncio.timeout(seconds):
                part = await anext(parts, None)
        except TimeoutError:
            raise ServerError(f"sent nothing for {seconds:g} s") from None
        if part is None:
            return
        yield part
        seconds = timeouts.following


def _model_card(value: dict[str, Any]) -> ModelCard:
    """The model. ServerError for a name that no terminal should print."""
    name, window = value["id"], value.get("max_model_len")
    if not _is_name(name):
        raise ServerError(f"lists a model whose name is not {MAX_NAME} characters at most, all printable: {name[:40]!a}")
    root, parent = (value.get(key) if _is_name(value.get(key)) else None for key in ("root", "parent"))
    return ModelCard(name, root, parent, window if type(window) is int and 0 < window < 2**31 else None)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= MAX_NAME


def _error_message(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    try:
        return error_text(json.loads(text))
    except (ValueError, RecursionError):
        return error_text(text)


def _retry_after(header: str | None) -> float:
    """Seconds of a Retry-After header; half a second without a valid one."""
    try:
        return max(0.0, float(header or 0.5))
    except ValueError:
        return 0.5
