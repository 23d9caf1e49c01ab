"""Words for requests to routes that do not exist: what was probably meant, the base URL, and the routes that there are.

Scope: paths to messages. A client with a wrong base URL adds a right path to it, so that most mistakes can be recognised.
"""

from __future__ import annotations

ROUTES = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
}
"""Routes that OpenAI's clients use, with their methods."""
_NAMED_LIKE_THEIR_ROUTES = (
    "assistants", "batches", "containers", "conversations", "embeddings", "evals", "files", "images", "moderations", "skills",
    "threads", "uploads", "videos",
)  # fmt: skip
UNSUPPORTED = {each: each.capitalize() for each in _NAMED_LIKE_THEIR_ROUTES} | {
    "audio": "Audio routes",
    "fine_tuning": "Fine-tuning jobs",
    "messages": "Anthropic's Messages",
    "realtime": "Realtime sessions",
    "rerank": "Rerankings",
    "vector_stores": "Vector stores",
}
"""First parts of routes that OpenAI or Anthropic has and this server lacks, with words for them."""


def unknown_route(path: str, base_url: str) -> tuple[str, str]:
    """Message and code for a path without a route. `base_url` is that of the API, as this client reaches it."""
    parts = [each for each in path.split("/") if each]
    while parts and parts[0].lower() in ("v1", "openai", "api"):
        parts = parts[1:]
    ending = next((each for each in ROUTES if f"/{'/'.join(parts)}".endswith(each.removeprefix("/v1"))), None)
    meant = ending or f"/v1/{'/'.join(parts)}"
    listed = ", ".join(f"{method} {route}" for route, method in ROUTES.items())
    there_is = f"The API's base URL is {base_url}; it has {listed}. /openapi.json describes them."
    if meant in ROUTES or (meant.startswith("/v1/models/") and meant != path):
        return f"There is no route {_shown(path)}: did you mean {_shown(meant)}? {there_is}", "unknown_route"
    if parts and parts[0] in UNSUPPORTED:
        return f"{UNSUPPORTED[parts[0]]} are not supported by this server. {there_is}", "unsupported_route"
    if meant.startswith("/v1/responses/"):
        what = "Earlier responses can be continued with previous_response_id, but not fetched, changed or deleted."
        return f"{what} {there_is}", "unsupported_route"
    if meant.startswith("/v1/chat/completions/"):
        return f"Stored chat completions cannot be fetched, changed or deleted here. {there_is}", "unsupported_route"
    return f"There is no route {_shown(path)}. {there_is}", "unknown_route"


def _shown(path: str) -> str:
    """A path as part of a message."""
    text = path if path.isprintable() else ascii(path)
    return text if len(text) <= 100 else f"{text[:100]}..."
