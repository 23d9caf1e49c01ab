"""The FastAPI app around the routes, and its /openapi.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qlora_chat import __version__
from qlora_chat.api.errors import ApiError, api_error, error_body
from qlora_chat.api.routes import routes
from qlora_chat.api.state import ServerState
from qlora_chat.engines import EngineError

OPENAPI = "/openapi.json"


def build_api(state: ServerState, others: Sequence[APIRouter] = ()) -> FastAPI:
    """App of the API and of other routers; a page can be mounted into it afterwards."""
    app = FastAPI(title="QLoRA Chat", version=__version__, openapi_url=OPENAPI, docs_url=None, redoc_url=None)
    for router in (routes(state), *others):
        app.include_router(router)

    @app.exception_handler(HTTPException)
    async def http(request: Request, problem: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(problem.status_code, str(problem.detail)), problem.status_code, problem.headers)

    @app.exception_handler(Exception)
    @app.exception_handler(ApiError)
    @app.exception_handler(EngineError)
    @app.exception_handler(ValueError)
    @app.exception_handler(RequestValidationError)
    async def failed(request: Request, problem: Exception) -> JSONResponse:
        return api_error(problem).response()

    app.openapi = lambda: _description(app)
    return app


def _description(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI description without its 422, which is a 400 here."""
    if app.openapi_schema:
        return app.openapi_schema
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path in description["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        description.get("components", {}).get("schemas", {}).pop(unused, None)
    app.openapi_schema = description
    return description
