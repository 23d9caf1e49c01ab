"""Body of POST /v1/responses.

Scope: fields, and what becomes of OpenAI's that this server lacks: refused by name, or accepted with the values that change
nothing. SDKs send many of those by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from qlora_chat.api.errors import invalid
from qlora_chat.api.request_fields import PART_WORDS, NullableFields, Text, by_json_type, only_kinds
from qlora_chat.api.request_schemas import GenerationRequest, MaxTokens, check_metadata
from qlora_chat.api.structured import (
    MAX_TOOLS,
    AnswerForm,
    FunctionTool,
    FunctionToolChoice,
    TextFormat,
    form_of_call,
    form_of_format,
)

NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (), "prompt": (), "truncation": ("disabled",), "top_logprobs": (0,), "n": (1,), "reasoning": ({},),
    "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,), "response_format": ({"type": "text"},),
    "context_management": ([],), "modalities": (["text"],), "multi_agent": (), "moderation": (),
}  # fmt: skip
"""Unsupported fields, with the values that have no effect."""
WITHOUT_EFFECT_HERE = (
    "max_tool_calls", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "stream_options",
)  # fmt: skip
"""Fields about bills and caches of OpenAI's own service. They cannot change an answer of this server."""
RENAMED = {"messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
NEEDED = {
    "message": ("role", "content"), "item_reference": ("id",),
    "function_call": ("arguments",), "function_call_output": ("output",),
}  # fmt: skip
"""Kinds of items, with the fields that each needs."""


class InputPart(NullableFields):
    """Text of a message."""

    type: str = Field(description="input_text, output_text or text")
    text: Text
    _kinds = only_kinds("parts", "input_text", "output_text", "text")


TextOrParts = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[InputPart], Field(max_length=256), Tag("list")], by_json_type(PART_WORDS)
]


class InputItem(NullableFields):
    """A message, a reference to one by its id, a function call, or its output; further fields are ignored."""

    type: str = Field("message", description="message, item_reference, function_call or function_call_output")
    role: Literal["system", "developer", "user", "assistant"] = Field(None)  # type: ignore[assignment]
    content: TextOrParts = Field(None)  # type: ignore[assignment]
    id: Annotated[Text, Field(max_length=256)] = Field("", description="of an item_reference: an earlier answer's item id")
    arguments: Text = Field(None, description="of a function_call, as JSON")  # type: ignore[assignment]
    output: TextOrParts = Field(None, description="of a function_call_output")  # type: ignore[assignment]
    _kinds = only_kinds("items", *NEEDED)

    @model_validator(mode="after")
    def _check_fields(self) -> Any:
        for name in NEEDED[self.type]:
            value = getattr(self, name)
            if value is None or (name == "id" and not value):
                raise ValueError(f"{name} is missing")
        return self

    @property
    def text(self) -> str:
        """All parts as one text; of a function call its arguments."""
        if self.type == "function_call":
            return self.arguments
        content = self.output if self.type == "function_call_output" else self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)

    @property
    def speaker(self) -> Literal["system", "developer", "user", "assistant"]:
        """Role of the message that the item is: a function's output is read as the user's."""
        return {"function_call": "assistant", "function_call_output": "user"}.get(self.type, self.role)  # type: ignore[return-value]


class TextOptions(NullableFields):
    """Options of the answer's text."""

    format: TextFormat = Field(None, description="JSON, and the schema that it has to match")  # type: ignore[assignment]
    verbosity: Literal["medium"] = Field("medium", description="other values are not supported")


class ResponsesRequest(GenerationRequest):
    """POST /v1/responses"""

    no_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = NO_EFFECT
    renamed: ClassVar[Mapping[str, str]] = RENAMED
    reported_logprobs: ClassVar[None] = None
    """This format has no log probabilities here."""
    include_usage: ClassVar[bool] = True
    """The last event always has the token counts."""

    input: Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[InputItem], Field(min_length=1, max_length=4096), Tag("list")],
        by_json_type("must be a text, or a list of messages"),
    ]
    instructions: Text = Field(None, description="system text of this answer alone")  # type: ignore[assignment]
    previous_response_id: Annotated[Text, Field(max_length=256)] = Field(None, description="answer that this request continues")  # type: ignore[assignment]
    max_output_tokens: MaxTokens = Field(None, description="default: the rest of the window")  # type: ignore[assignment]
    store: bool = Field(
        None,
        description="true: store the turn in the history and send it to the log, as the page's are; false: remember nothing; "
        "left out: the history has it, or without one the server's memory for a while, for previous_response_id",
    )  # type: ignore[assignment]
    text: TextOptions = Field(default_factory=TextOptions, description="form of the answer")  # type: ignore[arg-type]
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] = Field([], description="functions; see tool_choice")
    tool_choice: FunctionToolChoice = Field(None, description="a function to call; required with a single tool; none")  # type: ignore[assignment]
    parallel_tool_calls: bool = Field(True, description="without effect: an answer has one call")
    metadata: Any = Field({}, description="up to 16 texts by name, returned with the answer; with store, stored as tags")
    include: list[str] = Field([], description="nothing of it exists here; log probabilities are refused")

    @model_validator(mode="after")
    def _check_dependent_fields(self) -> Any:
        check_metadata(self.metadata)
        if any("logprobs" in each for each in self.include):
            text = "log probabilities are not supported on this route; /v1/chat/completions reports them"
            raise invalid(text, "include", "unsupported_parameter")
        return self

    @property
    def ignored(self) -> list[str]:
        """Names of unknown fields."""
        return [name for name in super().ignored if name not in WITHOUT_EFFECT_HERE]

    @property
    def answer_limit(self) -> int | None:
        """Longest answer requested, in tokens; None for the rest of the window."""
        return self.max_output_tokens

    @property
    def form(self) -> AnswerForm | None:
        """Form of the answer; None for text. A function that has to be called goes before text.format."""
        call = form_of_call(self.tools, self.tool_choice, "tools.{}.parameters")
        return call or form_of_format(self.text.format, "text.format")
