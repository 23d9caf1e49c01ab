"""Types of fields that several request bodies share.

Scope: types are strict, null means the default, and a text is valid Unicode. Knows no route.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def refuse_surrogates(text: str) -> str:
    """ValueError for half a character, which JSON can express and no tokenizer or response can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds a lone surrogate, which is half a character") from None
    return text


Text = Annotated[str, AfterValidator(refuse_surrogates)]


def without_nulls(value: Any) -> Any:
    """An object without its null fields, which then take their defaults; anything else as it is."""
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


def _allow_nulls(schema: JsonSchemaValue) -> None:
    """Let the optional fields of an object's JSON schema be null."""
    for name, field in schema.get("properties", {}).items():
        if name in schema.get("required", ()):
            continue
        kinds = field.pop("anyOf", None) or [
            {key: field.pop(key) for key in [*field] if key not in ("title", "description", "default")}
        ]
        if kinds != [{}]:  # which is any value
            field["anyOf"] = [*(each for each in kinds if each != {"type": "null"}), {"type": "null"}]


def only_kinds(what: str, *kinds: str) -> Any:
    """Validator of an object whose `type` is one of `kinds`, or no text at all; it names another one."""

    def refuse_others(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            name = kind if kind.isidentifier() and kind.isascii() else "such"
            raise ValueError(f"{name[:40]} {what} are not supported here; send {kinds[0]} {what} only")
        return value

    return model_validator(mode="before")(refuse_others)


WRONG_JSON_TYPE = "wrong_json_type"


class TypeOf(Discriminator):
    """Discriminator of a field that takes several types, described as any of them."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        schema["anyOf"] = schema.pop("oneOf")
        return schema


def by_json_type(words: str) -> TypeOf:
    """Discriminator of a field that takes several types, tagged "text", "list" or "object"; `words` are for any other."""
    return TypeOf(lambda value: {str: "text", list: "list", dict: "object"}.get(type(value)), WRONG_JSON_TYPE, words)


PART_WORDS = 'must be a text, or a list of text parts such as {"type": "text", "text": "Hello"}'


class NullableFields(BaseModel):
    """An object in which null means the default; further fields are ignored."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return without_nulls(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        _allow_nulls(handler.resolve_ref_schema(schema))
        return schema
