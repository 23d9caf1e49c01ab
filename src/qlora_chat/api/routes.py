"""The routes under /v1, and what their description says of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from qlora_chat.api.errors import ApiError, ErrorBody, invalid
from qlora_chat.api.parsing import ParsedRequest, parse_chat_request, parse_completion_request
from qlora_chat.api.reading import Reading
from qlora_chat.api.request_schemas import ChatRequest, CompletionRequest, LoadAdapter, UnloadAdapter
from qlora_chat.api.response_schemas import ChatAnswer, CompletionAnswer, Done, ModelCard, ModelList, Usage
from qlora_chat.api.serializers import AnswerSerializer, ChatSerializer, CompletionSerializer
from qlora_chat.api.state import Serving
from qlora_chat.api.stored_turns import StoredTurnWriter, StoreOptions, owner_of
from qlora_chat.api.streaming import Answer, EventStream, ResponseOptions
from qlora_chat.chat import Chat
from qlora_chat.models import ModelError, find_adapter
from qlora_chat.serving.request_log import caller_of, note
from qlora_chat.settings import is_loopback

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "a field is missing, wrong or not supported, or the context is too long"},
    401: {"model": ErrorBody, "description": "a token is needed"},
    403: {"model": ErrorBody, "description": "from another site, or with a token that does not allow it"},
    404: {"model": ErrorBody, "description": "there is no such model"},
    409: {"model": ErrorBody, "description": "the stored conversation was changed by another request meanwhile"},
    405: {"model": ErrorBody, "description": "not with this method"},
    408: {"model": ErrorBody, "description": "the body took too long to arrive"},
    413: {"model": ErrorBody, "description": "the body is too large"},
    421: {"model": ErrorBody, "description": "not this server's host name"},
    429: {"model": ErrorBody, "description": "the queue is full; Retry-After says when to come back"},
    503: {"model": ErrorBody, "description": "loading, shutting down, or out of memory for this answer"},
}
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}, "description": "one event"}
"""Its data is a chunk as JSON, and [DONE] at the end."""
STREAM = {"text/event-stream": {"schema": EVENT}}
Body = TypeVar("Body", ChatRequest, CompletionRequest)
LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def routes(serving: Serving) -> APIRouter:
    """Models, chats and completions."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    @router.get("/models")
    async def list_models() -> ModelList:
        """The models that a request can name."""
        return ModelList(data=_cards(serving))

    @router.get("/models/{model:path}")
    async def get_model(model: str) -> ModelCard:
        """One model."""
        card = next((card for card in _cards(serving) if card.id == model), None)
        if card is None:
            raise _unknown(serving)
        return card

    @router.post("/chat/completions", response_model=ChatAnswer, responses={200: {"content": STREAM}})
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation's last message."""
        return await _answer(serving, request, body, parse_chat_request, ChatSerializer(body.model))

    @router.post("/completions", response_model=CompletionAnswer, responses={200: {"content": STREAM}})
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on from a text, or from token ids."""
        return await _answer(serving, request, body, parse_completion_request, CompletionSerializer(body.model))

    @router.post("/load_lora_adapter", response_model=Done)
    async def load_adapter(body: LoadAdapter) -> Done:
        """Keep one more LoRA beside the base; from then on requests can name it. Needs the page's own token."""
        await asyncio.to_thread(_load, serving, body)
        return Done(message=f"adapter {body.lora_name} is loaded")

    @router.post("/unload_lora_adapter", response_model=Done)
    async def unload_adapter(body: UnloadAdapter) -> Done:
        """Take no more requests for a LoRA; answers being written go on. Needs the page's own token."""
        if body.lora_name not in serving.chat.engine.info.adapters:
            raise _unknown(serving)
        await asyncio.to_thread(serving.adapters.unload_adapter, body.lora_name)
        return Done(message=f"adapter {body.lora_name} is unloaded")

    return router


def _load(serving: Serving, body: LoadAdapter) -> None:
    try:
        serving.adapters.load_adapter(body.lora_name, find_adapter(body.lora_path, lambda line: None))
    except ModelError as problem:
        raise invalid(str(problem), "lora_path", "adapter_not_loaded") from None


def _cards(serving: Serving) -> list[ModelCard]:
    info = serving.chat.engine.info

    def card(name: str, root: str, parent: str | None) -> ModelCard:
        return ModelCard(id=name, created=serving.started, root=root, parent=parent, max_model_len=info.window)

    return [card(info.name, info.base, None), *(card(name, name, info.name) for name in info.adapters)]


def _unknown(serving: Serving) -> ApiError:
    known = ", ".join(card.id for card in _cards(serving))
    return ApiError(404, f"There is no such model here. There is: {known}", "model_not_found", "model")


def _adapter(serving: Serving, model: str) -> str | None:
    """The adapter that a model's name stands for; None for the model as it was opened."""
    info = serving.chat.engine.info
    if model in info.adapters:
        return model
    if model != info.name:
        raise _unknown(serving)
    return None


def _named(serving: Serving, request: Request, body: Body) -> tuple[StoreOptions, str | None] | None:
    """The conversation that the turn is to be kept in, and whose it is; None where it is not to be kept."""
    if not isinstance(body, ChatRequest) or not body.store:
        return None
    if not serving.keeps_turns:
        text = "this server keeps no turns: start it with --history or LOGGING_URL, or leave store out"
        raise invalid(text, "store", "unsupported_parameter")
    shared = not is_loopback(serving.settings.host)
    owner = owner_of(request.headers.get("authorization", "")) if shared else None
    return StoreOptions.of(body.metadata, owner), owner


async def _answer(
    serving: Serving,
    request: Request,
    body: Body,
    ask: Callable[[Body, Chat, str | None, int | None], ParsedRequest],
    shape: AnswerSerializer,
) -> Response:
    chat, adapter = serving.chat, _adapter(serving, body.model)
    engine = serving.engine(caller_of(request.scope))
    named = _named(serving, request, body)

    def begin() -> tuple[ParsedRequest, list[Any]]:
        asked = ask(body, chat, adapter, serving.settings.most_tokens)
        if named is None or asked.said is None:
            return asked, asked.begin(lambda prompt, sampling: engine.stream(prompt, sampling, asked.stops, adapter))
        keeper = StoredTurnWriter(replace(chat, engine=engine), asked.said, *named, asked.stops, adapter)
        return asked, asked.begin(keeper.begin)

    asked, streams = await asyncio.to_thread(begin)
    reading = Reading(streams, request.receive, serving.settings.request_seconds)

    def ended(usage: Usage, reasons: str) -> None:
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        note(request.scope, model=body.model, stream=body.stream, finish=reasons, **counts)

    wanted = ResponseOptions(shape, asked.choices, body.alternatives is not None, body.include_usage, ended)
    names = {token_id: token for token in chat.form.stop_tokens if (token_id := engine.tokenizer.token_id(token)) is not None}
    answer = Answer(reading, len(streams), engine.tokenizer, names, wanted)
    response = EventStream(answer, await answer.begun()) if body.stream else await answer.whole()
    if named:
        response.headers["x-conversation-id"] = named[0].name.encode("ascii", "replace").decode()
    if ignored := [name for name in body.ignored if LABEL.fullmatch(name)][:20]:
        response.headers["x-ignored-fields"] = ", ".join(ignored)
    return response
