"""The remote engine: our prompts and stops, other machines' arithmetic.

Scope: finds out who serves what, and hands answers to its event loop. The choice of a server is in pool.py, one answer
in answer.py. Needs no torch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qlora_chat.engines import EngineError, Stream
from qlora_chat.engines.remote.answer import RemoteAnswer, RemoteRequest, RemoteStream
from qlora_chat.engines.remote.pool import Pool
from qlora_chat.engines.remote.server import Card, Patience, Server, ServerProblem
from qlora_chat.models import ModelInfo, Notify
from qlora_chat.models.folders import has_tokenizer
from qlora_chat.models.hub import is_hub_id
from qlora_chat.models.identity import Identity, identify
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import Prompt
from qlora_chat.settings import EngineSettings, ModelSettings, Sampling
from qlora_chat.stopping import Stops

Result = TypeVar("Result")
Cards = dict[Server, list[Card]]


def open_remote(chosen: ModelSettings, where: EngineSettings, notify: Notify, patience: Patience | None = None) -> RemoteEngine:
    """Reach the servers, find out what they have and take, and read the model's tokenizer; no weight is loaded.

    EngineError where no server answers or which model is meant is not clear; ModelError where its tokenizer is not here.
    """
    patience = patience or Patience()
    loop = Loop()
    try:
        pool = Pool([Server(url, where, patience) for url in where.urls], patience)
        cards = loop.run(_reach(pool, notify))
        name = _served_name(where, cards)
        identity = identify(_what_is_served(chosen, cards, name), notify)
        identity = replace(identity, info=_told(identity.info, where, cards, name))
        lacks = loop.run(_learn(pool, name, identity, notify))
        identity = replace(identity, info=replace(identity.info, notices=(*identity.info.notices, *lacks)))
        for line in identity.info.notices:
            notify(line)
        return RemoteEngine(loop, pool, identity, name, cards, patience)
    except BaseException:
        loop.close()
        raise


class RemoteEngine:
    """Generates on other machines; see the Engine protocol."""

    def __init__(self, loop: Loop, pool: Pool, identity: Identity, model: str, cards: Cards, patience: Patience) -> None:
        self.info: ModelInfo = identity.info
        self.tokenizer: ModelTokenizer = identity.tokenizer
        self.pool = pool
        self._loop, self._identity, self._model, self._patience = loop, identity, model, patience
        self._models: set[str] = {model}
        self._answers: set[RemoteAnswer] = set()
        self._closed = False
        self._note(cards)
        loop.call(pool.watch, self._look_again)

    def stream(self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None) -> Stream:
        """Begin an answer on the least busy server; `adapter` is any name that the servers list.

        ValueError for a prompt or adapter they cannot take.
        """
        model = self._model if adapter in (None, self.info.adapter) else self._listed(str(adapter))
        self._check(prompt.ids)
        if self._closed:
            raise EngineError("the engine is closed")
        asked = RemoteRequest(prompt, stops, model, self.info.window)
        answer = RemoteAnswer(asked, sampling, self._identity, self.pool, self._patience)
        self._loop.call(self._begin, answer)
        return RemoteStream(answer, self._loop.call)

    def close(self) -> None:
        """Cancel what is running, close its requests, and end the thread."""
        if self._closed:
            return
        self._closed = True
        self._loop.run(self._end())
        self._loop.close()

    def _begin(self, answer: RemoteAnswer) -> None:
        self._answers.add(answer)
        task = asyncio.get_running_loop().create_task(answer.write())
        task.add_done_callback(lambda _: self._answers.discard(answer))

    async def _end(self) -> None:
        for answer in tuple(self._answers):
            answer.cancel()
        while self._answers:
            await asyncio.sleep(0.005)
        await self.pool.close()

    def _note(self, cards: Cards) -> None:
        """What servers list: any of it can be named, and what is tuned on our model's base can be chosen."""
        listed = {card.name: card for each in cards.values() for card in each}
        self._models = {self._model, *listed}
        own = listed.get(self._model)
        base = own.parent if own and own.parent else self._model
        kin = [name for name, card in listed.items() if name == base or card.parent == base]
        own_names = (self._model, self.info.name)  # a page that chooses its own model's name means that model
        self.info = replace(self.info, adapters=tuple(name for name in kin if name not in own_names))

    async def _look_again(self) -> None:
        """Adapters come and go while servers run."""
        if cards := await _listings(self.pool):
            self._note(cards)

    def _listed(self, name: str) -> str:
        if name not in self._models:  # it may have been loaded since
            self._loop.run(self._look_again())
        if name not in self._models:
            raise ValueError(f"adapter {name!r} is not loaded; the servers have: {', '.join(sorted(self._models))}")
        return name

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise ValueError("the prompt is empty")
        if len(ids) >= self.info.window:
            raise ValueError(f"the prompt has {len(ids):,} tokens, which leaves no room in a window of {self.info.window:,}")
        wrong = next((each for each in ids if not 0 <= each < self.tokenizer.size), None)
        if wrong is not None:
            raise ValueError(f"the prompt holds token {wrong}, but the vocabulary ends at {self.tokenizer.size - 1}")


class Loop:
    """An event loop on a thread of its own, on which everything that waits for servers runs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qlora-chat-remote", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine returns or raises; blocks the calling thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call it on the loop, soon; after the end nobody is there to call it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


# --- what is served --------------------------------------------------------------------------------------------------


async def _listings(pool: Pool) -> dict[Server, list[Card]]:
    """What each server lists, without those that do not answer."""
    listed = await asyncio.gather(*(server.cards() for server in pool.servers), return_exceptions=True)
    return {server: each for server, each in zip(pool.servers, listed, strict=True) if not isinstance(each, BaseException)}


async def _reach(pool: Pool, notify: Notify) -> Cards:
    """What each server lists; those that cannot be reached are told of and left for later. EngineError if none can."""
    listed = await asyncio.gather(*(server.cards() for server in pool.servers), return_exceptions=True)
    found: Cards = {}
    problems = []
    for server, each in zip(pool.servers, listed, strict=True):
        if isinstance(each, ServerProblem):
            server.up = False
            problems.append(f"{server.url} {each}")
        elif isinstance(each, BaseException):
            raise each
        else:
            found[server] = each
    if not found:
        raise EngineError(f"{'; '.join(problems)}. Start it, correct --engine, or leave --engine out to answer from here")
    for line in problems:
        notify(f"{line}; it is used as soon as it answers")
    return found


async def _learn(pool: Pool, model: str, identity: Identity, notify: Notify) -> tuple[str, ...]:
    """What a person should know that the servers lack. EngineError if none of them can be talked with."""
    up = [server for server in pool.servers if server.up]
    learnt = await asyncio.gather(*(server.dialect(model, identity) for server in up), return_exceptions=True)
    lacks: list[str] = []
    problems = []
    for server, dialect in zip(up, learnt, strict=True):
        if isinstance(dialect, ServerProblem):
            problems.append(f"{server.url} {dialect}")
        elif isinstance(dialect, BaseException):
            raise dialect
        else:
            lacks += [f"{server.url} {each}" for each in dialect.notices()]
    if len(problems) == len(up):
        raise EngineError("; ".join(problems))
    for line in problems:
        notify(line)
    return tuple(lacks)


def _served_name(where: EngineSettings, cards: Cards) -> str:
    """The name to ask for. EngineError where the servers have several, none, or not the one that was named."""
    names = list(dict.fromkeys(card.name for each in cards.values() for card in each))
    if where.model:
        if names and where.model not in names:
            raise EngineError(f"--engine-model is {where.model!r}, but the servers have: {', '.join(names)}")
        return where.model
    if len(names) == 1:
        return names[0]
    if not names:
        raise EngineError(f"{where.urls[0]} does not say which models it has: name one with --engine-model")
    raise EngineError(f"the servers have several models ({', '.join(names)}): choose one with --engine-model")


def _what_is_served(chosen: ModelSettings, cards: Cards, name: str) -> ModelSettings:
    """The settings, with the base that the server says it loaded where none was named and that one can be found here."""
    if chosen.base or chosen.model != "auto":
        return chosen
    by_name = {card.name: card for each in cards.values() for card in each}
    card = by_name.get(name)
    parent = by_name.get(card.parent) if card and card.parent else None
    root = (parent or card).root if card else None
    if root and (is_hub_id(root) or has_tokenizer(Path(root))):
        return replace(chosen, base=root, model="auto")
    raise EngineError(
        f"the servers run {name!r}, whose tokenizer is needed here to write prompts: "
        "name its base with --base (a folder or Hub id), or --model demo or guanaco-7b"
    )


def _told(info: ModelInfo, where: EngineSettings, cards: Cards, name: str) -> ModelInfo:
    """What the page says of the model: the server's name for it, its place, and the smaller of the two windows."""
    windows = [card.window for each in cards.values() for card in each if card.name == name and card.window]
    open_to_all = [f"Conversations go to {url} unencrypted: use https unless the network is yours" for url in where.unencrypted]
    device = where.urls[0].split("//")[1].split("/")[0] if len(where.urls) == 1 else f"{len(where.urls)} servers"
    return replace(info, window=min([info.window, *windows]), device=device, notices=(*info.notices, *open_to_all))
