"""The app around the routes, and /openapi.json made from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qlora_chat import __version__
from qlora_chat.api.errors import ApiError, api_error, error_body, from_validation
from qlora_chat.api.routes import routes
from qlora_chat.api.state import Serving
from qlora_chat.engines import EngineError

OPENAPI = "/openapi.json"


def build_api(serving: Serving, others: Sequence[APIRouter] = ()) -> FastAPI:
    """The API with other routers beside it; a page can be mounted into it afterwards."""
    app = FastAPI(title="QLoRA Chat", version=__version__, openapi_url=OPENAPI, docs_url=None, redoc_url=None)
    for router in (routes(serving), *others):
        app.include_router(router)

    @app.exception_handler(ApiError)
    async def refused(request: Request, problem: ApiError) -> JSONResponse:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        return from_validation(cast(list[Any], problem.errors())).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, problem: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(problem.status_code, str(problem.detail)), problem.status_code, problem.headers)

    @app.exception_handler(Exception)
    @app.exception_handler(EngineError)
    @app.exception_handler(ValueError)
    async def not_answered(request: Request, problem: Exception) -> JSONResponse:
        return api_error(problem).response()

    app.openapi = lambda: _described(app)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI as FastAPI writes it, without the 422 that is a 400 here."""
    if app.openapi_schema:
        return app.openapi_schema
    described = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        described.get("components", {}).get("schemas", {}).pop(unused, None)
    app.openapi_schema = described
    return described
