"""From a request to what the engine takes: prompts with room for their answers, sampling, stops.

Scope: OpenAI's messages become a conversation, rendered by the same prompt code as the page's, so a client brings no
template and a role marker in its text is no turn. Nothing is dropped in silence: what does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_chat.api.errors import ApiError, invalid
from qlora_chat.api.request_schemas import ChatMessage, ChatRequest, CompletionRequest
from qlora_chat.chat import Chat
from qlora_chat.engines import Stream
from qlora_chat.messages import Conversation, Message
from qlora_chat.prompt import Prompt, render
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

BETWEEN_MERGED = "\n\n"


@dataclass(frozen=True)
class ParsedRequest:
    """What one request asks of the engine: `choices` answers to each of the prompts."""

    prompts: Sequence[Prompt]
    choices: int
    sampling: Sampling
    stops: Stops
    adapter: str | None
    said: Conversation | None = None
    """What the prompt was rendered from; None for text that is completed."""

    def begin(self, one: Callable[[Prompt, Sampling], Stream]) -> list[Stream]:
        """All the streams, or none: what was begun is ended again where one cannot be."""
        streams: list[Stream] = []
        try:
            for index, prompt in enumerate(each for each in self.prompts for _ in range(self.choices)):
                streams.append(one(prompt, self._seeded(index)))
        except BaseException:
            for stream in streams:
                stream.cancel()
                list(stream)
            raise
        return streams

    def _seeded(self, index: int) -> Sampling:
        """A seed gives each of n answers its own draw, and all of them the same ones again."""
        seed = self.sampling.seed
        return self.sampling if seed is None or not index else self.sampling.changed(seed=(seed + index) % 2**63)


def parse_chat_request(request: ChatRequest, chat: Chat, adapter: str | None, most_tokens: int | None) -> ParsedRequest:
    """ApiError 400 for messages that are no conversation or leave no room for an answer."""
    said = conversation(request.messages)
    prompt = render(said, chat.form, chat.engine.tokenizer)
    stops = Stops() if request.ignore_eos else chat.stops
    room = _room([prompt], request.most_tokens, chat.engine.info.window, most_tokens, "messages")
    return ParsedRequest([prompt], request.n, _sampling(request, room), _and(stops, request.stops), adapter, said)


def parse_completion_request(
    request: CompletionRequest, chat: Chat, adapter: str | None, most_tokens: int | None
) -> ParsedRequest:
    """ApiError 400 for ids outside the vocabulary or prompts that leave no room. Stops are the model's and the client's
    only: text that is completed is no chat."""
    prompts = [_plain(each, chat) for each in request.prompts]
    stops = Stops() if request.ignore_eos else Stops(chat.stops.token_ids)
    room = _room(prompts, request.most_tokens, chat.engine.info.window, most_tokens, "prompt")
    return ParsedRequest(prompts, request.n, _sampling(request, room), _and(stops, request.stops), adapter)


def conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """OpenAI's messages as turns that alternate. System text leads; neighbours of one role are read as one message, and a
    conversation that the assistant opens gets an empty question before it. ApiError where that is impossible."""
    leading = next((index for index, each in enumerate(messages) if each.role in ("user", "assistant")), len(messages))
    turns = messages[leading:]
    late = next((index for index, each in enumerate(turns) if each.role not in ("user", "assistant")), None)
    if late is not None:
        raise invalid("system and developer messages must come before all others", f"messages.{leading + late}.role")
    if not turns or turns[-1].role != "user":
        raise invalid("the last message must be the user's: it is what gets an answer", "messages")
    merged: list[Message] = [] if turns[0].role == "user" else [Message("user", "")]
    for each in turns:
        if merged and merged[-1].role == each.role:
            merged[-1] = Message(merged[-1].role, merged[-1].content + BETWEEN_MERGED + each.text)
        else:
            merged.append(Message("user" if each.role == "user" else "assistant", each.text))
    system = BETWEEN_MERGED.join(each.text for each in messages[:leading]) if leading else None
    return Conversation(messages=tuple(merged), system=system)


def _plain(prompt: str | list[int], chat: Chat) -> Prompt:
    tokenizer = chat.engine.tokenizer
    if isinstance(prompt, str):
        beginning = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        ids = (*beginning, *tokenizer.encode(prompt))
        if not ids:
            raise invalid("prompt is empty", "prompt")
        return Prompt(prompt, ids)
    return Prompt("", tuple(prompt))


def _room(prompts: Sequence[Prompt], asked: int | None, window: int, limit: int | None, param: str) -> int:
    """Tokens that the answer may take."""
    if limit is not None and asked is not None and asked > limit:
        raise invalid(f"max_tokens is {asked:,}, and this server gives at most {limit:,} a request", "max_tokens")
    longest = max(len(prompt.ids) for prompt in prompts)
    left = window - longest
    if left < 1 or (asked or 1) > left:
        wanted = f" and max_tokens asks for {asked:,} more" if asked else ", which leaves no room for an answer"
        raise ApiError(
            400,
            f"This model's maximum context length is {window:,} tokens; the {param} takes {longest:,}{wanted}. "
            f"Shorten the {param}" + (" or ask for fewer tokens." if asked else "."),
            "context_length_exceeded",
            param,
        )
    return asked or min(left, limit or left)


def _sampling(request: ChatRequest | CompletionRequest, max_new_tokens: int) -> Sampling:
    return Sampling(
        request.temperature, request.top_p, request.top_k, request.repetition_penalty, max_new_tokens, request.seed,
        request.alternatives,
    )  # fmt: skip


def _and(stops: Stops, texts: tuple[str, ...]) -> Stops:
    return Stops(stops.token_ids, (*stops.texts, *texts))
