"""What a client may send, checked by pydantic; /openapi.json is made from the same classes.

Scope: shapes and ranges. Values are taken as they are: no text for a number, no boolean for one, no null for a field that
can be left out. Fields of other servers that would change an answer are refused, not dropped; all other unknown fields
(clients send many) are let through and named in a response header.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from qlora_chat.api.errors import invalid
from qlora_chat.settings import SAMPLING_RANGES

MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_STOPS = 16
LONGEST_STOP = 256
LONGEST_NAME = 256
MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
"""As OpenAI limits them."""
DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI and vLLM generate for /v1/completions where nothing is said."""

NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,), "min_p": (0,), "min_tokens": (0,),
    "length_penalty": (1,), "typical_p": (1,), "use_beam_search": (False,), "best_of": (1,), "echo": (False,), "suffix": ("",),
    "bad_words": ([],), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "structured_outputs": (), "logits_processors": ([],), "prompt_logprobs": (0,), "truncate_prompt_tokens": (),
    "stop_token_ids": ([],), "chat_template": (), "chat_template_kwargs": ({},), "documents": ([],),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "web_search_options": (),
}  # fmt: skip
"""Fields that other servers know and this one does not, with the values that ask for nothing (null is another)."""


def _within(name: str) -> Any:
    allowed = SAMPLING_RANGES[name]
    if allowed.integer:
        return Field(ge=int(allowed.minimum), le=int(allowed.maximum))
    return Field(ge=allowed.minimum, le=allowed.maximum, allow_inf_nan=False)


def _sayable(text: str) -> str:
    """JSON can spell half a character, which no tokenizer reads and no answer could carry back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds a lone surrogate, which is half a character") from None
    return text


Text = Annotated[str, AfterValidator(_sayable)]
Temperature = Annotated[float, _within("temperature")]
TopP = Annotated[float, _within("top_p")]
TopK = Annotated[int, _within("top_k")]
RepetitionPenalty = Annotated[float, _within("repetition_penalty")]
Seed = Annotated[int, _within("seed")]
MaxTokens = Annotated[int, _within("max_new_tokens")]
Alternatives = Annotated[int, _within("logprobs")]
Stop = Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


Metadata = TypeAdapter(
    Annotated[
        dict[Annotated[Text, Field(min_length=1, max_length=LONGEST_KEY)], Annotated[Text, Field(max_length=LONGEST_VALUE)]],
        Field(max_length=MOST_METADATA),
    ],
    config=ConfigDict(strict=True),
)


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = Field(False, description="end with a chunk that holds the token counts")


class _Request(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Annotated[Text, Field(min_length=1, max_length=LONGEST_NAME)]
    temperature: Temperature = Field(SAMPLING_RANGES["temperature"].default, description="0 always takes the likeliest token")
    top_p: TopP = SAMPLING_RANGES["top_p"].default
    top_k: TopK = Field(0, description="0 is off")
    repetition_penalty: RepetitionPenalty = 1.0
    seed: Seed = Field(None, description="same seed, same prompt, same device: same answer")  # type: ignore[assignment]
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] = Field([])
    ignore_eos: bool = Field(False, description="go on to max_tokens whatever the model says; for measurements")
    stream: bool = False
    stream_options: StreamOptions = Field(None)  # type: ignore[assignment]
    user: Annotated[Text, Field(max_length=LONGEST_NAME)] = ""

    @model_validator(mode="after")
    def _refuse_what_would_be_dropped(self) -> Any:
        for name, value in (self.model_extra or {}).items():
            if name in NO_EFFECT and value is not None and value not in NO_EFFECT[name]:
                raise invalid(f"{name} is not supported by this server; leave it out", name, "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options needs stream to be true", "stream_options")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts, one or many."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def ignored(self) -> list[str]:
        """Names of fields that nothing here knows."""
        return [name for name in self.model_extra or {} if name not in NO_EFFECT]


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One message; what else a client puts into it is not read."""

    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]

    @property
    def text(self) -> str:
        """The parts as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Request):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: MaxTokens = Field(None, description="older name of max_completion_tokens")  # type: ignore[assignment]
    max_completion_tokens: MaxTokens = Field(None, description="default: what is left of the window")  # type: ignore[assignment]
    store: bool = Field(False, description="keep the turn in the history, and send it where turns are sent, as the page's are")
    metadata: Any = Field(
        {},
        description="with store: up to 16 texts by name, kept as tags; conversation_id says which one the turn goes on with",
    )
    logprobs: bool = False
    top_logprobs: Alternatives = Field(0, description="needs logprobs to be true")

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Any:
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
        return self

    @model_validator(mode="after")
    def _what_is_kept_can_be(self) -> Any:
        """Without store nobody reads the metadata, and clients put what they like into it (Open WebUI: nested objects)."""
        if not self.store:
            return self
        try:
            Metadata.validate_python(self.metadata)
        except ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(["metadata", *map(str, first["loc"])])
            raise invalid(f"{where}: {first['msg']}", where) from None
        return self

    @property
    def ignored(self) -> list[str]:
        """Names of fields that nothing here reads."""
        return [*super().ignored, *(["metadata"] if self.metadata and not self.store else [])]

    @property
    def most_tokens(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens to report beside each; None for no log probabilities at all."""
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(_Request):
    """POST /v1/completions"""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)]
    ) = Field(description="text, or token ids with their BOS; or several of either")
    max_tokens: MaxTokens = DEFAULT_COMPLETION_TOKENS
    logprobs: Alternatives = Field(None, description="likeliest tokens to report")  # type: ignore[assignment]

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or many, each a text or its ids."""
        several = isinstance(self.prompt, list) and isinstance(self.prompt[0], str | list)
        return self.prompt if several else [self.prompt]  # type: ignore[return-value]

    @property
    def most_tokens(self) -> int:
        """Longest answer asked for."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens to report beside each."""
        return self.logprobs


AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class LoadAdapter(BaseModel):
    """POST /v1/load_lora_adapter, as vLLM has it."""

    model_config = ConfigDict(strict=True)
    lora_name: AdapterName = Field(description="the name that requests give as their model")
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)] = Field(description="a folder on the server, or a Hub id")


class UnloadAdapter(BaseModel):
    """POST /v1/unload_lora_adapter"""

    model_config = ConfigDict(strict=True)
    lora_name: AdapterName
