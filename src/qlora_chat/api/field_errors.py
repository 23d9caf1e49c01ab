"""Invalid fields of a request, explained in words with the name of the field.

Scope: pydantic's findings to one error. Names of validators and types stay out of it; values are described, not quoted, since
they may be part of a conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from qlora_chat.api.errors import ApiError, invalid
from qlora_chat.api.request_fields import WRONG_JSON_TYPE

JSON = "application/json"
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
    WRONG_JSON_TYPE: "{words}",
}
JSON_NAMES = {str: "a text", list: "a list", dict: "an object", bytes: "not an object of JSON"}


Path = tuple[str | int, ...]


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


def unreadable_body(cause: BaseException | None) -> ApiError | None:
    """Error of a body that FastAPI could not even parse; None for other causes."""
    if isinstance(cause, UnicodeDecodeError):
        return invalid(f"the request's body is not valid JSON: it is not UTF-8 at byte {cause.start + 1:,}")
    if isinstance(cause, RecursionError):
        return invalid("the request's body is nested too deeply")
    return None


def _json_problem(error: Mapping[str, Any]) -> str:
    position = next((each for each in error.get("loc", ()) if isinstance(each, int)), None)
    reason = str(error.get("ctx", {}).get("error", "it cannot be read")).encode("ascii", "replace").decode()[:200]
    return reason if position is None else f"{reason}, at character {position + 1:,}"


def invalid_field(errors: Sequence[Mapping[str, Any]], body: Any, prefix: str = "") -> ApiError:
    """Error 400 for the first invalid field. `prefix` is the path of `body` in the request."""
    path = _path(errors[0], body)
    if path[:1] == ("prompt",) and isinstance(body["prompt"], list) and errors[0]["type"] in (*WRONG_TYPE, WRONG_JSON_TYPE):
        path, value, words = _prompt_problem(body["prompt"])
        return invalid(f"{_dotted(path, prefix)} {_arrived(value)}: it {words}", _dotted(path, prefix))
    return _error(path, errors[0], prefix)


def _path(error: Mapping[str, Any], body: Any) -> Path:
    """The path of an error, without the parts of pydantic's location that name types and not what was sent."""
    location = [each for each in error.get("loc", ()) if each not in ("body", "query", "path")]
    path: list[str | int] = []
    value = body
    for index, part in enumerate(location):
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]  # type: ignore[index]
            path.append(part)
        elif index == len(location) - 1 and error.get("type") == "missing":
            path.append(part)
    return tuple(path)


def _prompt_problem(prompt: Sequence[Any]) -> tuple[Path, Any, str]:
    """Path, value and words for the first element of a wrong type: the first of all says which kind of list was meant."""
    expected = {str: "a text", int: "a token id, which is a whole number", list: "a list of token ids"}
    kind = type(prompt[0])
    if kind not in expected:
        return ("prompt", 0), prompt[0], "must be a text, a token id or a list of token ids"
    for outer, each in enumerate(prompt):
        if type(each) is not kind:
            return ("prompt", outer), each, f"must be {expected[kind]}, as the first is"
    inside = ((outer, inner) for outer, each in enumerate(prompt) for inner, part in enumerate(each) if type(part) is not int)
    outer, inner = next(inside)
    return ("prompt", outer, inner), prompt[outer][inner], f"must be {expected[int]}"


def _error(path: Sequence[str | int], error: Mapping[str, Any], prefix: str) -> ApiError:
    param = _dotted(path, prefix) or None
    kind, name = error.get("type"), param or "the request"
    if kind == "missing":
        return invalid(f"{param} is missing" if param else "the request has no body", param)
    reason = REASONS.get(str(kind), "is not valid").format_map({"min_length": 1, **error.get("ctx", {}), "words": error["msg"]})
    if kind in ("value_error", "literal_error"):
        return invalid(f"{name}{':' if kind == 'value_error' else ''} {reason}", param)
    value = error.get("input")
    if isinstance(value, str):  # pydantic counts entries where a text has been checked in another way before
        reason = reason.replace(" entries", " characters")
    if reason.endswith((" 1 characters", " 1 entries")):
        reason = reason.replace("characters", "character").replace("entries", "entry")
    return invalid(f"{name} {_arrived(value)}: it {reason}", param)


def _dotted(path: Sequence[str | int], prefix: str) -> str:
    plain = (str(each).encode("ascii", "replace").decode()[:64] or "''" for each in path)
    return ".".join([*([prefix] if prefix else []), *plain])


def _arrived(value: Any) -> str:
    """Description of a value; only numbers are shown."""
    if value is None or isinstance(value, bool):
        return f"is {'null' if value is None else str(value).lower()}"
    if isinstance(value, int | float):
        return f"is {value!r}"[:60]
    size = f" of {len(value):,} character{'' if len(value) == 1 else 's'}" if isinstance(value, str) else ""
    return f"is {JSON_NAMES.get(type(value), 'something else')}{size}"
