"""The remote engine: our prompts and stops, the servers' arithmetic.

Scope: finds out which models the servers have, and hands answers to its event loop. Picking a server is in pool.py, one
answer in answer.py. Needs no torch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qlora_chat.engines import EngineError, SchemaError, Stream, check_prompt
from qlora_chat.engines.remote.answer import RemoteAnswer, RemoteRequest, RemoteStream
from qlora_chat.engines.remote.capabilities import RESPONSE_FORMAT
from qlora_chat.engines.remote.pool import Pool
from qlora_chat.engines.remote.reasons import ServerError
from qlora_chat.engines.remote.server import ModelCard, Server, Timeouts
from qlora_chat.messages import AnswerSchema
from qlora_chat.models import ModelInfo, Notify
from qlora_chat.models.folders import has_tokenizer
from qlora_chat.models.hub import is_hub_id
from qlora_chat.models.identity import Identity, identify
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import Prompt
from qlora_chat.settings import EngineSettings, ModelSettings, Sampling
from qlora_chat.stopping import Stops

Result = TypeVar("Result")
Listings = dict[Server, list[ModelCard]]
"""Models that each reachable server lists."""


def open_remote(
    settings: ModelSettings, servers: EngineSettings, notify: Notify, timeouts: Timeouts | None = None
) -> RemoteEngine:
    """Connect to the servers, probe their models and capabilities, and read the model's tokenizer; no weight is loaded.

    EngineError where no server answers or the model is ambiguous; ModelError where its tokenizer is not on this machine.
    """
    timeouts = timeouts or Timeouts()
    loop = Loop()
    try:
        pool = Pool([Server(url, servers, timeouts) for url in servers.urls], timeouts)
        listings = loop.run(_connect(pool, notify))
        name = _served_name(servers, listings)
        identity = identify(_with_served_base(settings, listings, name), notify)
        identity = replace(identity, info=_with_server_info(identity.info, servers, listings, name))
        notices = loop.run(_probe(list(listings), name, identity, notify))
        identity = replace(identity, info=replace(identity.info, notices=(*identity.info.notices, *notices)))
        for line in identity.info.notices:
            notify(line)
        return RemoteEngine(loop, pool, identity, name, listings, timeouts)
    except BaseException:
        loop.close()
        raise


class RemoteEngine:
    """Generates on other machines; see the Engine protocol."""

    def __init__(self, loop: Loop, pool: Pool, identity: Identity, model: str, listings: Listings, timeouts: Timeouts) -> None:
        self.info: ModelInfo = identity.info
        self.tokenizer: ModelTokenizer = identity.tokenizer
        self.pool = pool
        self._loop, self._identity, self._model, self._timeouts = loop, identity, model, timeouts
        self._models: set[str] = {model}
        self._answers: set[RemoteAnswer] = set()
        self._closed = False
        self._note(listings)
        loop.call(pool.watch, self._refresh_models)

    def stream(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None, schema: AnswerSchema | None = None
    ) -> Stream:
        """Start an answer on the least busy server; `adapter`: any name that the servers list. ValueError as Engine.stream."""
        model = self._model if adapter in (None, self.info.adapter) else self._listed(str(adapter))
        check_prompt(prompt.ids, self.info.window, self.tokenizer.size)
        if self._closed:
            raise EngineError("the engine is closed")
        adapters = {**{each: each for each in self._models}, self._model: self.info.adapter}
        request = RemoteRequest(prompt, stops, model, self.info.window, adapters, schema)
        answer = RemoteAnswer(request, sampling, self._identity, self.pool, self._timeouts)
        self._loop.call(self._start, answer)
        return RemoteStream(answer, self._loop.call)

    def check_schema(self, schema: AnswerSchema) -> None:
        """SchemaError where no server that can be reached holds its answers to a schema. Each judges the schema itself."""
        enforcing, failures = self._loop.run(
            _request_all(self.pool.servers, lambda each: each.enforces_schemas(self._model, self._identity))
        )
        if not any(enforcing.values()) and (enforcing or not failures):
            raise SchemaError(f"the engine's servers do not keep to {RESPONSE_FORMAT}; leave it out, or use another server")

    def close(self) -> None:
        """Cancel running answers, close their requests, and end the thread."""
        if self._closed:
            return
        self._closed = True
        self._loop.run(self._end())
        self._loop.close()

    def _start(self, answer: RemoteAnswer) -> None:
        self._answers.add(answer)
        task = asyncio.get_running_loop().create_task(answer.run())
        task.add_done_callback(lambda _: self._answers.discard(answer))

    async def _end(self) -> None:
        for answer in tuple(self._answers):
            answer.cancel()
        while self._answers:
            await asyncio.sleep(0.005)
        await self.pool.close()

    def _note(self, listings: Listings) -> None:
        """Record the listed models: any can be requested by name, and those tuned from our model's base are offered."""
        listed = {card.name: card for cards in listings.values() for card in cards}
        self._models = {self._model, *listed}
        own = listed.get(self._model)
        base = own.parent if own and own.parent else self._model
        related = [name for name, card in listed.items() if name == base or card.parent == base]
        own_names = (self._model, self.info.name)  # the page lists its own model by either name already
        self.info = replace(self.info, adapters=tuple(name for name in related if name not in own_names))

    async def _refresh_models(self) -> None:
        """Adapters come and go while servers run."""
        listings, _ = await _request_all(self.pool.servers, Server.models)
        if listings:
            self._note(listings)

    def _listed(self, name: str) -> str:
        if name not in self._models:  # it may have been loaded since
            self._loop.run(self._refresh_models())
        if name not in self._models:
            raise ValueError(f"adapter {name!r} is not loaded; the servers have: {_listing(sorted(self._models))}")
        return name


class Loop:
    """An event loop on a thread of its own, on which all waiting for servers happens."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qlora-chat-remote", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Result of the coroutine, or its exception; blocks the calling thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call the function on the loop, soon; does nothing after the end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


# --- models of the servers -------------------------------------------------------------------------------------------


async def _request_all(
    servers: Sequence[Server], request: Callable[[Server], Awaitable[Result]]
) -> tuple[dict[Server, Result], dict[Server, ServerError]]:
    """Results of the servers that answer, and the errors of the others."""
    responses = await asyncio.gather(*map(request, servers), return_exceptions=True)
    results: dict[Server, Result] = {}
    errors: dict[Server, ServerError] = {}
    for server, response in zip(servers, responses, strict=True):
        if isinstance(response, ServerError):
            errors[server] = response
        elif isinstance(response, BaseException):
            raise response
        else:
            results[server] = response
    return results, errors


async def _connect(pool: Pool, notify: Notify) -> Listings:
    """Models that each server lists; an unreachable one is reported, and used once it is up. EngineError if none answers."""
    listings, errors = await _request_all(pool.servers, Server.models)
    problems = [f"{server.url} {error}" for server, error in errors.items()]
    if not listings:
        raise EngineError(f"{'; '.join(problems)}. Start it, correct --engine, or leave --engine out to answer from here")
    for server, line in zip(errors, problems, strict=True):
        server.up = False
        notify(f"{line}; it is used as soon as it answers")
    return listings


async def _probe(servers: Sequence[Server], model: str, identity: Identity, notify: Notify) -> tuple[str, ...]:
    """Notices about missing capabilities of the servers. EngineError if none answers."""
    capabilities, errors = await _request_all(servers, lambda server: server.capabilities(model, identity))
    problems = [f"{server.url} {error}" for server, error in errors.items()]
    if not capabilities:
        raise EngineError("; ".join(problems))
    for line in problems:
        notify(line)
    return tuple(f"{server.url} {notice}" for server, each in capabilities.items() for notice in each.notices())


def _listing(names: Sequence[str]) -> str:
    """The first 20 names, and the number of the others."""
    more = [f"and {len(names) - 20:,} more"] if len(names) > 20 else []
    return ", ".join([*names[:20], *more])


def _served_name(servers: EngineSettings, listings: Listings) -> str:
    """Model name to request. EngineError where the servers have several models, none, or not the one in the settings."""
    names = list(dict.fromkeys(card.name for cards in listings.values() for card in cards))
    if servers.model:
        if names and servers.model not in names:
            raise EngineError(f"--engine-model is {servers.model!r}, but the servers have: {_listing(names)}")
        return servers.model
    if len(names) == 1:
        return names[0]
    if not names:
        raise EngineError(f"{servers.urls[0]} does not say which models it has: name one with --engine-model")
    raise EngineError(f"the servers have several models ({_listing(names)}): choose one with --engine-model")


def _with_served_base(settings: ModelSettings, listings: Listings, name: str) -> ModelSettings:
    """The settings, completed with the base that the server reports where they name none and it can be found here."""
    if settings.base or settings.model != "auto":
        return settings
    by_name = {card.name: card for cards in listings.values() for card in cards}
    card = by_name.get(name)
    base = by_name.get(card.parent or name, card) if card else None
    root = base.root if base else None
    if root and (is_hub_id(root) or has_tokenizer(Path(root))):
        return replace(settings, base=root, model="auto")
    raise EngineError(
        f"the servers run {name!r}, whose tokenizer is needed here to write prompts: "
        "name its base with --base (a folder or Hub id), or --model demo, smollm2 or guanaco-7b"
    )


def _with_server_info(info: ModelInfo, servers: EngineSettings, listings: Listings, name: str) -> ModelInfo:
    """Model info with the servers' address, the smaller of the two windows, and a notice for each unencrypted address."""
    windows = [card.window for cards in listings.values() for card in cards if card.name == name and card.window]
    unencrypted = [
        f"Conversations go to {url} unencrypted: use https unless the network is yours" for url in servers.unencrypted
    ]
    device = servers.urls[0].split("//")[1].split("/")[0] if len(servers.urls) == 1 else f"{len(servers.urls)} servers"
    return replace(info, window=min([info.window, *windows]), device=device, notices=(*info.notices, *unencrypted))
