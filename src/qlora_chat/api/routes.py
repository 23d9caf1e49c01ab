"""Routes under /v1, the FastAPI app around them, and its /openapi.json."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qlora_chat import __version__
from qlora_chat.api.choices import Choice
from qlora_chat.api.errors import ApiError, ErrorBody, api_error, error_body, invalid
from qlora_chat.api.field_errors import invalid_request, unreadable_body
from qlora_chat.api.parsing import ParsedRequest, parse_chat_request, parse_completion_request
from qlora_chat.api.request_schemas import ChatRequest, CompletionRequest, LoadAdapter, UnloadAdapter
from qlora_chat.api.response_schemas import ChatAnswer, CompletionAnswer, Done, ModelCard, ModelList, Usage
from qlora_chat.api.responses.exchange import Exchange
from qlora_chat.api.responses.request_schema import ResponsesRequest
from qlora_chat.api.responses.response_schema import ResponseObject
from qlora_chat.api.responses.serializer import ResponsesSerializer
from qlora_chat.api.serializers import AnswerSerializer, ChatSerializer, CompletionSerializer
from qlora_chat.api.state import ServerState
from qlora_chat.api.stored_turns import NAME_KEY, StoredTurnWriter, StoreOptions, owner_of
from qlora_chat.api.streaming import Answer
from qlora_chat.chat import Chat
from qlora_chat.engines import EngineError, Stream
from qlora_chat.history import HistoryUnavailable
from qlora_chat.models import ModelError, find_adapter
from qlora_chat.serving.request_log import API_TOKEN, add_log_fields, caller_of
from qlora_chat.serving.stream_reader import StreamReader
from qlora_chat.settings import is_shared

OPENAPI = "/openapi.json"
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "a field is missing, wrong or not supported, or the context is too long"},
    401: {"model": ErrorBody, "description": "a token is needed"},
    403: {"model": ErrorBody, "description": "from another site, or with a token that does not allow it"},
    404: {"model": ErrorBody, "description": "there is no such model"},
    409: {"model": ErrorBody, "description": "the stored conversation was changed by another request meanwhile"},
    405: {"model": ErrorBody, "description": "not with this method"},
    408: {"model": ErrorBody, "description": "the body took too long to arrive"},
    413: {"model": ErrorBody, "description": "the body is too large"},
    415: {"model": ErrorBody, "description": "the body is no JSON by its Content-Type, or compressed in another way than gzip"},
    421: {"model": ErrorBody, "description": "not this server's host name"},
    429: {"model": ErrorBody, "description": "the queue is full; Retry-After says when to come back"},
    503: {"model": ErrorBody, "description": "loading, shutting down, or out of memory for this answer"},
}
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}, "description": "one event"}
"""Data of an event: a chunk as JSON, and [DONE] at the end."""
STREAM = {"text/event-stream": {"schema": EVENT}}
Body = TypeVar("Body", ChatRequest, CompletionRequest, ResponsesRequest)
FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
UNSENDABLE = re.compile(r"[^ -~]")
"""Characters that a response's header does not carry as they are."""


def routes(state: ServerState) -> APIRouter:
    """Router of models, chats, completions and adapters."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    @router.get("/models")
    async def list_models() -> ModelList:
        """List the models that requests can use."""
        return ModelList(data=_cards(state))

    @router.get("/models/{model:path}")
    async def get_model(model: str) -> ModelCard:
        """Get one model."""
        card = next((card for card in _cards(state) if card.id == model), None)
        if card is None:
            raise _unknown(state)
        return card

    @router.post("/chat/completions", response_model=ChatAnswer, responses={200: {"content": STREAM}})
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation's last message."""
        return await _answer(state, request, body, parse_chat_request, ChatSerializer(body.model, body.form))

    @router.post("/completions", response_model=CompletionAnswer, responses={200: {"content": STREAM}})
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue a text, or token ids."""
        return await _answer(state, request, body, parse_completion_request, CompletionSerializer(body.model))

    @router.post("/responses", response_model=ResponseObject, responses={200: {"content": STREAM}})
    async def responses(request: Request, body: ResponsesRequest) -> Response:
        """Answer the last message of an input, or of a response that it continues."""
        exchange = Exchange(body, state.remembered, _owner(state, request), history_on=state.history_on)
        return await _answer(state, request, body, exchange.parse, ResponsesSerializer(exchange), exchange.name)

    @router.post("/load_lora_adapter", response_model=Done)
    async def load_adapter(body: LoadAdapter) -> Done:
        """Load a LoRA adapter, which requests can use from then on. Needs the operator's token."""
        await asyncio.to_thread(_load, state, body)
        return Done(message=f"adapter {body.lora_name} is loaded")

    @router.post("/unload_lora_adapter", response_model=Done)
    async def unload_adapter(body: UnloadAdapter) -> Done:
        """Unload a LoRA adapter; running answers go on. Needs the operator's token."""
        if body.lora_name not in state.chat.engine.info.adapters:
            raise _unknown(state)
        await asyncio.to_thread(state.adapters.unload_adapter, body.lora_name)
        return Done(message=f"adapter {body.lora_name} is unloaded")

    return router


def _load(state: ServerState, body: LoadAdapter) -> None:
    try:
        state.adapters.load_adapter(body.lora_name, find_adapter(body.lora_path, lambda line: None))
    except ModelError as problem:
        raise invalid(str(problem), "lora_path", "adapter_not_loaded") from None


def _cards(state: ServerState) -> list[ModelCard]:
    info = state.chat.engine.info
    prompt_format = info.format.summary if info.format else info.prompt_format

    def card(name: str, root: str, parent: str | None) -> ModelCard:
        return ModelCard(
            id=name, created=state.started, root=root, parent=parent, max_model_len=info.window, prompt_format=prompt_format
        )

    return [card(info.name, info.base, None), *(card(name, name, info.name) for name in info.adapters)]


def _unknown(state: ServerState) -> ApiError:
    known = ", ".join(card.id for card in _cards(state))
    return ApiError(404, f"There is no such model here. There is: {known}", "model_not_found", "model")


def _adapter(state: ServerState, model: str) -> str | None:
    """Adapter of a model's name; None for the model as it was opened. ApiError 404 for an unknown name."""
    info = state.chat.engine.info
    if model in info.adapters:
        return model
    if model != info.name:
        raise _unknown(state)
    return None


def _owner(state: ServerState, request: Request) -> str | None:
    """Owner of what a client stores: its token, or in a browser its login.

    On a server that only this machine reaches, None unless the client has one of the API's own tokens.
    """
    if not is_shared(state.settings) and not caller_of(request.scope).startswith(API_TOKEN):
        return None
    return owner_of(request.headers.get("authorization") or request.headers.get("cookie", ""))


def _store_options(state: ServerState, request: Request, body: Body, name: str | None) -> StoreOptions | None:
    """Conversation to store the turn in, under `name` or the client's name; None if it is not stored.

    As with OpenAI, responses are stored unless the client says no, where there is a history.
    """
    if isinstance(body, CompletionRequest):
        return None
    requested = bool(body.store)
    if requested and not state.can_store:
        text = "this server stores no turns: start it with --history or LOGGING_URL, or leave store out"
        raise invalid(text, "store", "unsupported_parameter")
    if not requested and not (isinstance(body, ResponsesRequest) and body.store is None and state.history_on):
        return None
    metadata = body.metadata if name is None else {**body.metadata, NAME_KEY: name}
    return StoreOptions.of(metadata, _owner(state, request), requested=requested)


async def _answer(
    state: ServerState,
    request: Request,
    body: Body,
    parse: Callable[[Body, Chat, int | None], ParsedRequest],
    serializer: AnswerSerializer,
    conversation_name: str | None = None,
) -> Response:
    chat, adapter = state.chat, _adapter(state, body.model)
    engine = state.engine(caller_of(request.scope))
    store = _store_options(state, request, body, conversation_name)

    def start() -> tuple[ParsedRequest, Sequence[Stream]]:
        parsed = parse(body, chat, state.settings.most_tokens)
        if store and parsed.conversation:
            with suppress(*(() if store.requested else (HistoryUnavailable,))):
                behind_gate, stops = replace(chat, engine=engine), parsed.stops
                writer = StoredTurnWriter(behind_gate, parsed.conversation, store, stops, adapter, parsed.schema)
                return parsed, parsed.start(writer.start)
        return parsed, parsed.start(
            lambda prompt, sampling: engine.stream(prompt, sampling, parsed.stops, adapter, parsed.schema)
        )

    def on_end(usage: Usage, reasons: str) -> None:
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        add_log_fields(request.scope, model=body.model, stream=body.stream, finish=reasons, **counts)

    parsed, streams = await asyncio.to_thread(start)
    serializer.started(streams)
    reader = StreamReader(streams, request.receive, state.settings.request_seconds)
    tokenizer = engine.tokenizer
    stop_ids = {tokenizer.token_id(token): token for token in chat.prompt_format.stop_tokens}
    special_tokens = {token_id: token for token_id, token in stop_ids.items() if token_id is not None}
    choices = [
        Choice(index, tokenizer, special_tokens, trimmed=serializer.trimmed, continues=parsed.continues)
        for index in range(len(streams))
    ]
    reports_logprobs = body.reported_logprobs is not None
    answer = Answer(reader, choices, serializer, parsed.choices, reports_logprobs, body.include_usage, on_end)
    response = await answer.event_stream() if body.stream else await answer.whole()
    if store:
        response.headers["x-conversation-id"] = UNSENDABLE.sub("?", store.name)
    if ignored := [name for name in body.ignored if FIELD_NAME.fullmatch(name)][:20]:
        response.headers["x-ignored-fields"] = ", ".join(ignored)
    return response


def build_api(state: ServerState, others: Sequence[APIRouter] = ()) -> FastAPI:
    """App of the API and of other routers; a page can be mounted into it afterwards."""
    app = FastAPI(title="QLoRA Chat", version=__version__, openapi_url=OPENAPI, docs_url=None, redoc_url=None)
    for router in (routes(state), *others):
        app.include_router(router)

    @app.exception_handler(HTTPException)
    async def http(request: Request, problem: HTTPException) -> JSONResponse:
        if cause := unreadable_body(problem.__cause__):
            return cause.response()
        return JSONResponse(error_body(problem.status_code, str(problem.detail)), problem.status_code, problem.headers)

    @app.exception_handler(Exception)
    @app.exception_handler(ApiError)
    @app.exception_handler(EngineError)
    @app.exception_handler(ValueError)
    async def failed(request: Request, problem: Exception) -> JSONResponse:
        return api_error(problem).response()

    @app.exception_handler(RequestValidationError)
    async def invalid_body(request: Request, problem: RequestValidationError) -> JSONResponse:
        return invalid_request(problem, request.headers.get("content-type")).response()

    app.openapi = lambda: _description(app)
    return app


def _description(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI description without its 422, which is a 400 here."""
    if app.openapi_schema:
        return app.openapi_schema
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path in description["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        description.get("components", {}).get("schemas", {}).pop(unused, None)
    app.openapi_schema = description
    return description
