"""Structured answers as clients ask for them: `response_format`, `text.format`, and a function that has to be called.

Scope: OpenAI's fields to one schema, and the words that tell the model of it. Engines enforce the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from qlora_chat.api.errors import invalid
from qlora_chat.api.request_fields import NullableFields, Text, by_json_type, only_kinds, refuse_surrogates
from qlora_chat.api.response_schemas import Reason
from qlora_chat.messages import AnswerSchema, Conversation

MAX_SCHEMA = 64 * 1024
"""Characters of a schema as JSON."""
MAX_TOOLS = 128
"""OpenAI's limit."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Description = Annotated[Text, Field(max_length=4096)]
JsonObject = dict[str, Any]
ANY_OBJECT: JsonObject = {"type": "object"}
NO_ARGUMENTS: JsonObject = {"type": "object", "properties": {}, "additionalProperties": False}
CHOOSING = (
    "this server calls a function only if it has to: set tool_choice to "
    '{"type": "function", "function": {"name": "..."}}, or to "required" with a single tool; "none" answers in text'
)


class SchemaFields(NullableFields):
    """A JSON Schema that the answer has to match."""

    name: Name = Field("answer", description="letters, digits, _ and -")
    description: Description = ""
    schema_: JsonObject = Field(ANY_OBJECT, alias="schema", description="JSON Schema, up to 64 KiB")
    strict: bool = Field(False, description="refuse keywords that cannot be enforced, instead of leaving them out")


class ResponseFormat(NullableFields):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFields = Field(None, description="of the type json_schema")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _check_schema(self) -> Any:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError('with type "json_schema", json_schema is needed')
        return self


class TextFormat(SchemaFields):
    """Form of the answer, as /v1/responses has it."""

    type: Literal["text", "json_object", "json_schema"]


class Function(NullableFields):
    """A function that the model can call."""

    name: Name
    description: Description = ""
    parameters: JsonObject = Field(NO_ARGUMENTS, description="JSON Schema of its arguments, up to 64 KiB")
    strict: bool = Field(False, description="refuse keywords that cannot be enforced, instead of leaving them out")


class _OnlyFunctions(NullableFields):
    """A tool that is refused by its name if it is another one than a function."""

    _kinds = only_kinds("tools", "function")


class Tool(_OnlyFunctions):
    """A tool: always a function."""

    type: Literal["function"]
    function: Function


class FunctionName(NullableFields):
    """A function by its name."""

    name: Name


class NamedTool(NullableFields):
    """The tool that has to be called."""

    type: Literal["function"]
    function: FunctionName


class FunctionTool(Function, _OnlyFunctions):
    """A tool, as /v1/responses has it."""

    type: Literal["function"]


class NamedFunctionTool(FunctionName):
    """The tool that has to be called, as /v1/responses has it."""

    type: Literal["function"]


Choice = Literal["none", "auto", "required"]
_CHOICE_WORDS = 'must be "none", "auto", "required", or {"type": "function", "function": {"name": "..."}}'
ToolChoice = Annotated[Annotated[Choice, Tag("text")] | Annotated[NamedTool, Tag("object")], by_json_type(_CHOICE_WORDS)]
FunctionToolChoice = Annotated[
    Annotated[Choice, Tag("text")] | Annotated[NamedFunctionTool, Tag("object")], by_json_type(_CHOICE_WORDS)
]


@dataclass(frozen=True)
class AnswerForm:
    """Form of an answer that is not plain text."""

    schema: AnswerSchema
    instruction: str
    """Told to the model after the newest question."""
    param: str
    """Field of the request that it comes from."""
    function: str | None = None
    """Name of the function whose arguments the answer is."""
    reason: Reason = "stop"
    """OpenAI's finish reason of a complete answer."""

    def tell(self, conversation: Conversation) -> Conversation:
        """The conversation as the model gets it. What is stored stays as the client sent it."""
        messages = list(conversation.messages)
        asked = max(index for index, each in enumerate(messages) if each.role == "user")
        question = messages[asked]
        told = "\n\n".join(filter(None, (question.content, self.instruction)))
        messages[asked] = replace(question, content=told)
        return replace(conversation, messages=tuple(messages))


def form_of_format(form: ResponseFormat | TextFormat | None, param: str) -> AnswerForm | None:
    """Form that the field `param` asks for; None for text. ApiError 400 for a schema that is too large."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return AnswerForm(AnswerSchema(json.dumps(ANY_OBJECT)), "Answer with one JSON object and nothing else.", param)
    if isinstance(form, ResponseFormat):
        return _schema_form(form.json_schema, f"{param}.json_schema.schema")
    return _schema_form(form, f"{param}.schema")


def form_of_call(tools: Sequence[Function], choice: str | FunctionName | None, path: str) -> AnswerForm | None:
    """Form of a call that has to be made; None without tools, or with the choice none.

    `path` is the field of one tool's schema. ApiError 400 where the model would have to choose.
    """
    if choice == "required" and not tools:
        raise invalid("tool_choice is required, but there are no tools", "tool_choice")
    if isinstance(choice, FunctionName):
        index = next((index for index, each in enumerate(tools) if each.name == choice.name), None)
        if index is None:
            raise invalid(f"tool_choice names {choice.name}, which is not among the tools", "tool_choice")
        return _call_form(tools[index], path.format(index), "stop")
    if not tools or choice == "none":
        return None
    if choice != "required":
        param = "tool_choice" if choice else "tools"
        raise invalid(f"{param}: {CHOOSING}", param, "unsupported_parameter")
    if len(tools) > 1:
        text = f"tool_choice is required with {len(tools)} tools, and {CHOOSING}"
        raise invalid(text, "tool_choice", "unsupported_parameter")
    return _call_form(tools[0], path.format(0), "tool_calls")


def _schema_form(fields: SchemaFields, param: str) -> AnswerForm:
    text = _schema_text(fields.schema_, param)
    about = f" ({fields.description})" if fields.description else ""
    instruction = f"Answer with JSON that matches this JSON Schema{about}, and nothing else:\n{text}"
    return AnswerForm(AnswerSchema(text, fields.strict), instruction, param)


def _call_form(function: Function, param: str, reason: Reason) -> AnswerForm:
    text = _schema_text(function.parameters, param)
    about = f" ({function.description})" if function.description else ""
    instruction = (
        f"Call the function {function.name}{about}: answer with its arguments as JSON that matches this JSON Schema, "
        f"and nothing else:\n{text}"
    )
    return AnswerForm(AnswerSchema(text, function.strict), instruction, param, function.name, reason)


def _schema_text(schema: Mapping[str, Any], param: str) -> str:
    try:
        text = refuse_surrogates(json.dumps(schema, ensure_ascii=False))
    except RecursionError:
        raise invalid(f"{param} is nested too deeply; up to 100 levels are supported", param) from None
    except ValueError as problem:
        raise invalid(f"{param}: {problem}", param) from None
    if len(text) > MAX_SCHEMA:
        raise invalid(f"{param} has {len(text):,} characters as JSON; up to {MAX_SCHEMA:,} are supported", param)
    return text
