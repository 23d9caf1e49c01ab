"""Request bodies, checked by pydantic; /openapi.json is generated from the same classes.

Scope: fields and ranges. Types are strict: no text or boolean for a number. Null means the default, as OpenAI's clients expect.
Fields of other servers that would change an answer are refused, not dropped; all other unknown fields (clients send many) are
ignored and listed in a response header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from qlora_chat.api.errors import invalid
from qlora_chat.api.field_errors import invalid_field
from qlora_chat.api.request_fields import PART_WORDS, WRONG_JSON_TYPE, NullableFields, Text, TypeOf, by_json_type, only_kinds
from qlora_chat.api.structured import (
    MAX_TOOLS,
    AnswerForm,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolChoice,
    form_of_call,
    form_of_format,
)
from qlora_chat.settings import LOGITS_PROCESSORS, MAX_STOP_LENGTH, MAX_STOP_TEXTS, SAMPLING_SETTINGS

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOP_IDS = 64
MAX_NAME_LENGTH = 256
MAX_METADATA, MAX_KEY_LENGTH, MAX_VALUE_LENGTH = 16, 64, 512
"""OpenAI's limits."""
DEFAULT_COMPLETION_TOKENS = 16
"""Default of OpenAI and vLLM for /v1/completions."""

NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "functions": ([],), "function_call": ("none", "auto"), "modalities": (["text"],), "audio": (), "prediction": (),
    "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,), "min_tokens": (0,),
    "length_penalty": (1,), "typical_p": (1,), "use_beam_search": (False,), "best_of": (1,), "echo": (False,), "suffix": ("",),
    "bad_words": ([],), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "structured_outputs": (), "logits_processors": ([],), "prompt_logprobs": (0,), "truncate_prompt_tokens": (),
    "chat_template": (), "chat_template_kwargs": ({},), "documents": ([],),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "web_search_options": (),
}  # fmt: skip
"""Fields of other servers that this one lacks, with the values that have no effect (as null has none)."""
_JSON_SCHEMA = "send response_format with a json_schema"
HINTS = {
    "functions": "send tools and tool_choice, their newer form",
    "function_call": "send tools and tool_choice, their newer form",
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), _JSON_SCHEMA),
    "echo": "put the prompt before the answer yourself",
    "best_of": "ask for several with n",
}
"""Advice for those who send one of them."""


def _within(name: str) -> Any:
    setting = SAMPLING_SETTINGS[name]
    if setting.whole:
        return Field(ge=int(setting.minimum), le=int(setting.maximum))
    return Field(ge=setting.minimum, le=setting.maximum, allow_inf_nan=False)


def _sampling_field(name: str) -> Any:
    """Type and pydantic field of a sampling setting."""
    setting = SAMPLING_SETTINGS[name]
    kind: Any = int if setting.whole else float
    return Annotated[kind, _within(name)], Field(setting.default, description=setting.help)


MaxTokens = Annotated[int, _within("max_new_tokens")]
LogprobCount = Annotated[int, _within("logprobs")]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


Metadata = TypeAdapter(
    Annotated[
        dict[
            Annotated[Text, Field(min_length=1, max_length=MAX_KEY_LENGTH)], Annotated[Text, Field(max_length=MAX_VALUE_LENGTH)]
        ],
        Field(max_length=MAX_METADATA),
    ],
    config=ConfigDict(strict=True),
)


def check_metadata(metadata: Any) -> None:
    """ApiError 400 for metadata beyond OpenAI's limits."""
    try:
        Metadata.validate_python(metadata)
    except ValidationError as problem:
        raise invalid_field(problem.errors(), metadata, "metadata") from None


def _without_nulls_inside(value: Any) -> Any:
    """A value without the null fields of its objects; an object of nulls alone is {}."""
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls_inside(each) for name, each in value.items() if each is not None}


class StreamOptions(NullableFields):
    """Options of a streamed answer."""

    include_usage: bool = Field(False, description="end with a chunk that has the token counts")


_SamplingFields = create_model(
    "_SamplingFields",
    __base__=NullableFields,
    **{name: _sampling_field(name) for name in (*LOGITS_PROCESSORS, "seed")},
)


class GenerationRequest(_SamplingFields):
    """Fields that all requests for answers share."""

    model_config = ConfigDict(extra="allow")
    no_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = NO_EFFECT
    """Unsupported fields, with the values that have no effect."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Fields of other routes, with their name on this one."""

    model: Annotated[Text, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
    stop: Annotated[
        Annotated[Stop, Tag("text")] | Annotated[list[Stop], Field(max_length=MAX_STOP_TEXTS), Tag("list")],
        by_json_type("must be a text of 1 to 256 characters, or a list of up to 16 of them"),
    ] = Field([])
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_STOP_IDS)] = Field(
        [], description="ids that end the answer, besides the model's own"
    )
    ignore_eos: bool = Field(False, description="ignore stop tokens and go on to max_tokens; for measurements")
    stream: bool = False
    user: Annotated[Text, Field(max_length=MAX_NAME_LENGTH)] = ""

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Any:
        extra = self.model_extra or {}
        for name in self.renamed.keys() & extra.keys():
            raise invalid(f"{name} is not a field of this route; send {self.renamed[name]}", name, "unsupported_parameter")
        for name, without_effect in self.no_effect.items():  # in this order: tools before tool_choice
            if name in extra and _without_nulls_inside(extra[name]) not in without_effect:
                hint = HINTS.get(name, "leave it out")
                raise invalid(f"{name} is not supported by this server; {hint}", name, "unsupported_parameter")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def ignored(self) -> list[str]:
        """Names of unknown fields."""
        return [name for name in self.model_extra or {} if name not in self.no_effect]


class _Request(GenerationRequest):
    """Fields that chats and completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    response_format: ResponseFormat = Field(None, description="JSON, and the schema that it has to match")  # type: ignore[assignment]
    stream_options: StreamOptions = Field(None)  # type: ignore[assignment]

    @model_validator(mode="after")
    def _check_stream_options(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options needs stream to be true", "stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        """True if a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def form(self) -> AnswerForm | None:
        """Form of the answer; None for text."""
        return form_of_format(self.response_format, "response_format")


class TextPart(BaseModel):
    """Text part of a message."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: Text
    _kinds = only_kinds("parts", "text")


class ChatMessage(BaseModel):
    """One message; further fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="a tool's is read as the user's")
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[TextPart], Field(min_length=1, max_length=256), Tag("list")],
        by_json_type(PART_WORDS),
    ]

    @model_validator(mode="before")
    @classmethod
    def _read_tool_calls(cls, value: Any) -> Any:
        """An answer that called a function is the text that the model wrote: the arguments."""
        calls = value.get("tool_calls") if isinstance(value, dict) and value.get("role") == "assistant" else None
        return {**value, "content": _calls_as_text(value.get("content"), calls)} if calls else value

    @property
    def text(self) -> str:
        """All parts as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


def _calls_as_text(content: Any, calls: Any) -> Any:
    """Content with the arguments of the function calls after it; as it is if it is no text."""
    if not isinstance(content, str | None):
        return content
    try:
        arguments = [each["function"]["arguments"] for each in calls]
    except (TypeError, KeyError, IndexError):
        arguments = [None]
    if not all(isinstance(each, str) for each in arguments):
        raise ValueError("tool_calls must be a list of calls, each with a function and its arguments as a text")
    return "\n\n".join(filter(None, (content, *arguments)))


class ChatRequest(_Request):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: MaxTokens = Field(None, description="older name of max_completion_tokens")  # type: ignore[assignment]
    max_completion_tokens: MaxTokens = Field(None, description="default: the rest of the window")  # type: ignore[assignment]
    store: bool = Field(False, description="store the turn in the history and send it to the log, as the page's are")
    metadata: Any = Field(
        {},
        description="with store: up to 16 texts by name, stored as tags; conversation_id is the conversation to continue",
    )
    logprobs: bool = False
    top_logprobs: LogprobCount = Field(0, description="needs logprobs to be true")
    continue_final_message: bool = Field(
        False, description="go on with the last message, the assistant's; needs add_generation_prompt to be false"
    )
    add_generation_prompt: bool = Field(True, description="false only with continue_final_message")
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field([], description="functions; see tool_choice")
    tool_choice: ToolChoice = Field(None, description="a function to call; required with a single tool; none")  # type: ignore[assignment]
    parallel_tool_calls: bool = Field(True, description="without effect: an answer has one call")

    @model_validator(mode="after")
    def _check_dependent_fields(self) -> Any:
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid("continue_final_message needs add_generation_prompt to be false", "continue_final_message")
        if not (self.add_generation_prompt or self.continue_final_message):
            text = "add_generation_prompt can be false only with continue_final_message"
            raise invalid(text, "add_generation_prompt", "unsupported_parameter")
        if self.store:  # nothing reads metadata otherwise, and clients send what they like (Open WebUI: objects)
            check_metadata(self.metadata)
        return self

    @property
    def form(self) -> AnswerForm | None:
        """Form of the answer; None for text. A function that has to be called goes before response_format."""
        choice = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        call = form_of_call([each.function for each in self.tools], choice, "tools.{}.function.parameters")
        return call or super().form

    @property
    def ignored(self) -> list[str]:
        """Names of unknown fields, and metadata without store."""
        return [*super().ignored, *(["metadata"] if self.metadata and not self.store else [])]

    @property
    def answer_limit(self) -> int | None:
        """Longest answer requested, in tokens; None for the rest of the window."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def reported_logprobs(self) -> int | None:
        """Number of most likely tokens to report at each position; None for no log probabilities."""
        return self.top_logprobs if self.logprobs else None


TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
"""Ids of a prompt."""


def _kind_of_prompt(prompt: Any) -> str | None:
    """Tag of a prompt: the first element of a list says which kind of list is meant."""
    if isinstance(prompt, list):
        return {str: "texts", int: "ids", list: "several"}.get(type(prompt[0])) if prompt else "texts"
    return "text" if isinstance(prompt, str) else None


class CompletionRequest(_Request):
    """POST /v1/completions"""

    prompt: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS), Tag("texts")]
        | Annotated[TokenIds, Tag("ids")]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS), Tag("several")],
        TypeOf(_kind_of_prompt, WRONG_JSON_TYPE, "must be a text, a list of token ids, or a list of up to 64 of either"),
    ] = Field(description="text, or token ids with their BOS; or several of either")
    max_tokens: MaxTokens = DEFAULT_COMPLETION_TOKENS
    logprobs: LogprobCount = Field(None, description="number of most likely tokens to report")  # type: ignore[assignment]

    @property
    def prompts(self) -> list[str | list[int]]:
        """Prompts, each a text or its ids."""
        several = isinstance(self.prompt, list) and isinstance(self.prompt[0], str | list)
        return self.prompt if several else [self.prompt]  # type: ignore[return-value]

    @property
    def reported_logprobs(self) -> int | None:
        """Number of most likely tokens to report at each position; None for no log probabilities."""
        return self.logprobs


AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class LoadAdapter(BaseModel):
    """POST /v1/load_lora_adapter, as in vLLM."""

    model_config = ConfigDict(strict=True)
    lora_name: AdapterName = Field(description="the name that requests give as their model")
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)] = Field(description="a folder on the server, or a Hub id")


class UnloadAdapter(BaseModel):
    """POST /v1/unload_lora_adapter"""

    model_config = ConfigDict(strict=True)
    lora_name: AdapterName
