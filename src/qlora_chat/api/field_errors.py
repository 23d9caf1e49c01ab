"""Invalid fields of a request, explained in words with the name of the field.

Scope: pydantic's findings to one error. Names of validators and types stay out of it; values are described, not quoted, since
they may be part of a conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError

from qlora_chat.api.errors import ApiError, invalid

JSON = "application/json"
UNIONS = {
    "stop": "must be a text of 1 to 256 characters, or a list of up to 16 of them",
    "prompt": "must be a text, a list of token ids, or a list of up to 64 of either",
    "content": 'must be a text, or a list of text parts such as {"type": "text", "text": "Hello"}',
    "input": "must be a text, or a list of messages",
}
"""Fields that take several types."""
WRONG_TYPE = {
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}
REASONS = {
    **WRONG_TYPE,
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_parsing_size": "is too large",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must begin with a letter or digit, and may have letters, digits, dots, hyphens and underscores",
    "string_unicode": "must be valid Unicode",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}
JSON_NAMES = {str: "a text", list: "a list", dict: "an object", bytes: "not an object of JSON"}


@dataclass(frozen=True)
class _Finding:
    """One of pydantic's errors, by the path in what the client sent."""

    path: tuple[str | int, ...]
    union: tuple[str | int, ...] | None
    """Path of the field of several types that it is in, None outside of one."""
    branch: str
    """Pydantic's name of the type that was tried there."""
    error: Mapping[str, Any]

    @property
    def is_wrong_type(self) -> bool:
        """True if the value has another type, so that in a union another type was meant."""
        return self.error.get("type") in WRONG_TYPE


def invalid_request(problem: RequestValidationError, content_type: str | None) -> ApiError:
    """Error of a request whose body is not as its route takes it: 415 for another Content-Type than JSON, else 400."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if isinstance(problem.body, bytes) and kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        sent = f"not {content_type[:80]!a}" if content_type else "which this request lacks"
        return ApiError(415, f"Send the header Content-Type: {JSON}, {sent}.", "unsupported_media_type")
    errors = problem.errors()
    if errors and errors[0].get("type") == "json_invalid":
        return invalid(f"the request's body is not valid JSON: {_json_problem(errors[0])}")
    return invalid_field(errors, problem.body)


def _json_problem(error: Mapping[str, Any]) -> str:
    position = next((each for each in error.get("loc", ()) if isinstance(each, int)), None)
    reason = str(error.get("ctx", {}).get("error", "it cannot be read")).encode("ascii", "replace").decode()[:200]
    return reason if position is None else f"{reason}, at character {position + 1:,}"


def invalid_field(errors: Sequence[Mapping[str, Any]], body: Any, prefix: str = "") -> ApiError:
    """Error 400 for the first invalid field. `prefix` is the path of `body` in the request."""
    findings = [_finding(each, body) for each in errors]
    first = findings[0]
    if first.union is not None:
        return _union_error([each for each in findings if each.union == first.union], body, prefix)
    return _error(first.path, first.error, prefix)


def _finding(error: Mapping[str, Any], body: Any) -> _Finding:
    """The path of an error, without the parts of pydantic's location that name types and not what was sent."""
    location = [each for each in error.get("loc", ()) if each not in ("body", "query", "path")]
    path: list[str | int] = []
    union, branch, value = None, "", body
    for index, part in enumerate(location):
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]  # type: ignore[index]
            path.append(part)
        elif index == len(location) - 1 and error.get("type") == "missing":
            path.append(part)
        elif union is None and path and path[-1] in UNIONS:
            union, branch = tuple(path), str(part)
    return _Finding(tuple(path), union, branch, error)


def _union_error(findings: Sequence[_Finding], body: Any, prefix: str) -> ApiError:
    """Error of the type that was meant; of all types together if none fits better than the others."""
    assert findings[0].union is not None
    fitting = [each for each in findings if not each.is_wrong_type]
    inside = [each for each in findings if len(each.path) > len(findings[0].union)]
    if not fitting and len({each.branch for each in inside}) == 1:
        fitting = inside
    if fitting:
        best = max(fitting, key=lambda each: len(each.path))
        return _error(best.path, best.error, prefix)
    path = findings[0].union
    value = body
    for part in path:
        value = value[part]
    return invalid(f"{_dotted(path, prefix)} {_arrived(value)}: it {UNIONS[str(path[-1])]}", _dotted(path, prefix))


def _error(path: Sequence[str | int], error: Mapping[str, Any], prefix: str) -> ApiError:
    param = _dotted(path, prefix) or None
    kind, name = error.get("type"), param or "the request"
    if kind == "missing":
        return invalid(f"{param} is missing" if param else "the request has no body", param)
    reason = REASONS.get(str(kind), "is not valid").format_map({"min_length": 1, **error.get("ctx", {})})
    if kind == "value_error":
        return invalid(f"{name}: {reason}", param)
    if kind == "literal_error":
        return invalid(f"{name} {reason}", param)
    value = error.get("input")
    if isinstance(value, str):  # pydantic counts entries where a text has been checked in another way before
        reason = reason.replace(" entries", " characters")
    if reason.endswith((" 1 characters", " 1 entries")):
        reason = reason.replace("characters", "character").replace("entries", "entry")
    return invalid(f"{name} {_arrived(value)}: it {reason}", param)


def _dotted(path: Sequence[str | int], prefix: str) -> str:
    plain = (str(each).encode("ascii", "replace").decode()[:64] for each in path)
    return ".".join([*([prefix] if prefix else []), *plain])


def _arrived(value: Any) -> str:
    """Description of a value; only numbers are shown."""
    if value is None or isinstance(value, bool):
        return f"is {'null' if value is None else str(value).lower()}"
    if isinstance(value, int | float):
        return f"is {value!r}"[:60]
    size = f" of {len(value):,} character{'' if len(value) == 1 else 's'}" if isinstance(value, str) else ""
    return f"is {JSON_NAMES.get(type(value), 'something else')}{size}"
