"""Requests parsed into the engine's input: prompts with room for their answers, sampling, stops.

Scope: OpenAI's messages become a conversation, rendered by the same prompt code as the page's, so a client brings no
template and a role marker in its text is no turn. Nothing is dropped silently: what does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qlora_chat.api.errors import ApiError, invalid
from qlora_chat.api.request_schemas import ChatMessage, ChatRequest, CompletionRequest
from qlora_chat.api.responses.request_schema import ResponsesRequest
from qlora_chat.api.structured import AnswerForm
from qlora_chat.chat import Chat
from qlora_chat.context import fewest_tokens
from qlora_chat.engines import SchemaError, Stream
from qlora_chat.messages import AnswerSchema, Conversation, Message, Role
from qlora_chat.prompt import Prompt, Tokenizer, render
from qlora_chat.settings import LOGITS_PROCESSORS, Sampling
from qlora_chat.stopping import Stops

SEPARATOR = "\n\n"
TURN_ROLES = ("user", "assistant", "tool")
"""Others come before the conversation."""
AnyRequest = ChatRequest | CompletionRequest | ResponsesRequest


@dataclass(frozen=True)
class ParsedRequest:
    """The engine's input of one request: `choices` answers to each of the prompts."""

    prompts: Sequence[Prompt]
    choices: int
    sampling: Sampling
    stops: Stops
    conversation: Conversation | None = None
    """As the client sent it; None for a text completion."""
    schema: AnswerSchema | None = None

    @property
    def continues(self) -> bool:
        """True if the client has the beginning of the answer."""
        return self.conversation is not None and self.conversation.messages[-1].role == "assistant"

    def start(self, start_stream: Callable[[Prompt, Sampling], Stream]) -> list[Stream]:
        """Start all streams, or none: if one cannot be started, the others are cancelled."""
        streams: list[Stream] = []
        try:
            for index, prompt in enumerate(each for each in self.prompts for _ in range(self.choices)):
                streams.append(start_stream(prompt, self._seeded(index)))
        except BaseException:
            for stream in streams:
                stream.cancel()
                list(stream)
            raise
        return streams

    def _seeded(self, index: int) -> Sampling:
        """Sampling of one of n answers: each has its own seed, derived from the request's."""
        seed = self.sampling.seed
        return self.sampling if seed is None or not index else self.sampling.changed(seed=(seed + index) % 2**63)


def parse_chat_request(request: ChatRequest, chat: Chat, max_tokens: int | None) -> ParsedRequest:
    """ApiError 400 for messages that are no conversation or leave no room for an answer.

    `max_tokens` is the server's limit for one answer.
    """
    conversation = to_conversation(request.messages, continue_final=request.continue_final_message)
    parsed = parse_conversation(conversation, request, chat, max_tokens, "messages", "max_tokens")
    return replace(parsed, choices=request.n)


def parse_conversation(
    conversation: Conversation,
    request: ChatRequest | ResponsesRequest,
    chat: Chat,
    max_tokens: int | None,
    param: str,
    limit_param: str,
) -> ParsedRequest:
    """One answer to a conversation, or the rest of the answer that it ends with. `param` and `limit_param` are the fields that
    it and the answer's limit come from."""
    window, form = chat.engine.info.window, request.form
    schema = _checked_schema(form, chat)
    told = form.tell(conversation) if form else conversation
    _refuse_by_length(fewest_tokens(told, chat.engine.tokenizer), window, param)
    continue_final = conversation.messages[-1].role == "assistant"
    if form and continue_final:
        text = f"{form.param}: an answer that goes on with another cannot be held to a schema"
        raise invalid(text, form.param, "unsupported_parameter")
    prompt = render(told, chat.prompt_format, chat.engine.tokenizer, continue_final=continue_final)
    stops = Stops() if request.ignore_eos else chat.stops_within(schema)
    room = _room([prompt], request.answer_limit, window, max_tokens, param, limit_param)
    return ParsedRequest([prompt], 1, _sampling(request, room), _with_clients(stops, request), conversation, schema)


def _checked_schema(form: AnswerForm | None, chat: Chat) -> AnswerSchema | None:
    """Schema of the answer. ApiError 400 if the engine cannot enforce it."""
    if form is None:
        return None
    try:
        chat.engine.check_schema(form.schema)
    except SchemaError as problem:
        raise invalid(f"{form.param}: {problem}", form.param, "unsupported_schema") from None
    return form.schema


def parse_completion_request(request: CompletionRequest, chat: Chat, max_tokens: int | None) -> ParsedRequest:
    """ApiError 400 for prompts that leave no room. Only the model's stop tokens and the client's stops apply, not those of the
    chat format."""
    texts = (len(each) // chat.engine.tokenizer.longest_token for each in request.prompts if isinstance(each, str))
    _refuse_by_length(max(texts, default=0), chat.engine.info.window, "prompt")
    schema = _checked_schema(request.form, chat)
    prompts = [_plain_prompt(each, chat.engine.tokenizer) for each in request.prompts]
    stops = Stops() if request.ignore_eos else Stops(chat.stops.token_ids)
    room = _room(prompts, request.max_tokens, chat.engine.info.window, max_tokens, "prompt", "max_tokens")
    return ParsedRequest(prompts, request.n, _sampling(request, room), _with_clients(stops, request), schema=schema)


def to_conversation(messages: Sequence[ChatMessage], param: str = "messages", *, continue_final: bool = False) -> Conversation:
    """OpenAI's messages as alternating turns. System text comes first; adjacent messages of one role are merged, and a
    conversation that the assistant opens gets an empty question before it. The last one is the user's, with `continue_final`
    the assistant's. ApiError if that is impossible."""
    leading = next((index for index, each in enumerate(messages) if each.role in TURN_ROLES), len(messages))
    turns = messages[leading:]
    late = next((index for index, each in enumerate(turns) if each.role not in TURN_ROLES), None)
    if late is not None:
        raise invalid("system and developer messages must come before all others", f"{param}.{leading + late}.role")
    for index, each in enumerate(turns):
        if each.role == "tool" and (not index or turns[index - 1].role == "user"):
            text = "a tool's message must follow the assistant's that calls the function, or another tool's"
            raise invalid(text, f"{param}.{leading + index}.role")
    if continue_final and (not turns or turns[-1].role != "assistant"):
        raise invalid("with continue_final_message the last message must be the assistant's", param)
    if not continue_final and (not turns or turns[-1].role == "assistant"):
        raise invalid("the last message must be the user's: it is what gets an answer", param)
    merged: list[Message] = [Message("user", "")] if turns[0].role == "assistant" else []
    for each in turns:
        role: Role = "assistant" if each.role == "assistant" else "user"
        if merged and merged[-1].role == role:
            merged[-1] = Message(role, merged[-1].content + SEPARATOR + each.text)
        else:
            merged.append(Message(role, each.text))
    system = SEPARATOR.join(each.text for each in messages[:leading]) if leading else None
    return Conversation(messages=tuple(merged), system=system)


def _plain_prompt(prompt: str | list[int], tokenizer: Tokenizer) -> Prompt:
    if isinstance(prompt, str):
        bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        ids = (*bos, *tokenizer.encode(prompt))
        if not ids:
            raise invalid("prompt is empty", "prompt")
        return Prompt(prompt, ids)
    return Prompt("", tuple(prompt))


def _refuse_by_length(fewest: int, window: int, param: str) -> None:
    """ApiError 400 for a text that cannot fit, before it is tokenised."""
    if fewest > window:
        raise _too_long(window, param, f"at least {fewest:,}, which leaves no room for an answer", "")


def _too_long(window: int, param: str, takes: str, remedy: str) -> ApiError:
    text = f"This model's maximum context length is {window:,} tokens; the {param} takes {takes}. Shorten the {param}{remedy}."
    return invalid(text, param, "context_length_exceeded")


def _room(
    prompts: Sequence[Prompt], requested: int | None, window: int, limit: int | None, param: str, limit_param: str
) -> int:
    """Longest answer in tokens."""
    if limit is not None and requested is not None and requested > limit:
        raise invalid(f"{limit_param} is {requested:,}, and this server allows at most {limit:,} per request", limit_param)
    longest = max(len(prompt.ids) for prompt in prompts)
    room = window - longest
    if room < 1 or (requested or 1) > room:
        excess = f" and {limit_param} needs {requested:,} more" if requested else ", which leaves no room for an answer"
        raise _too_long(window, param, f"{longest:,}{excess}", " or request fewer tokens" if requested else "")
    return requested or min(room, limit or room)


def _sampling(request: AnyRequest, max_new_tokens: int) -> Sampling:
    drawn_with = {name: getattr(request, name) for name in (*LOGITS_PROCESSORS, "seed")}
    return Sampling(**drawn_with, max_new_tokens=max_new_tokens, logprobs=request.reported_logprobs)


def _with_clients(stops: Stops, request: AnyRequest) -> Stops:
    return Stops(stops.token_ids | frozenset(request.stop_token_ids), (*stops.texts, *request.stops))
