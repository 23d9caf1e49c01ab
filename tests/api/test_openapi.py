"""/openapi.json is accurate: generated requests, valid and invalid, get the responses that it describes, and no 5xx."""

from __future__ import annotations

from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.web.serving import Served

FEW, MANY = 6, 500
"""Requests a route and kind (valid and invalid): in every run, and in the slow one."""
ROUTES = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/{model}", "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter", "/health", "/ready", "/metrics",
]  # fmt: skip
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def operations_of(served: Served) -> dict[str, Any]:
    """What the description offers, by path; a part of it that cannot be read is an error."""
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations: list[Any] = [each.ok() for each in cast(Any, described.get_all_operations())]
    return {operation.path: operation for operation in operations}


def drive(served: Served, route: str, mode: schemathesis.GenerationMode, cases: int) -> None:
    """Send generated requests to a route and compare the responses with the description."""
    operation = operations_of(served)[route]

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=cast(Any, [*HealthCheck])
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "scripted"  # a random name would never get further than 404
            messages = case.body.get("messages")
            for each in messages if isinstance(messages, list) else ():
                if isinstance(each, dict) and each.get("role") == "tool":
                    each["role"] = "user"  # it would need a call before it
        case.call_and_validate(checks=CHECKS, timeout=60)

    send()


def modes_of(route: str) -> list[schemathesis.GenerationMode]:
    """A route without input has nothing that could be invalid."""
    posts = route.endswith(("completions", "responses", "adapter"))
    return [schemathesis.GenerationMode.POSITIVE, *([schemathesis.GenerationMode.NEGATIVE] if posts else [])]


@pytest.mark.parametrize("route", ROUTES)
def test_generated_requests_get_what_is_described(scripted: Served, route: str) -> None:
    for mode in modes_of(route):
        drive(scripted, route, mode, FEW)
    assert not route.endswith(("completions", "responses")) or scripted.engine.streams, "some of them were answered"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("route", ROUTES)
def test_a_thousand_generated_requests_get_what_is_described(scripted: Served, route: str) -> None:
    for mode in modes_of(route):
        drive(scripted, route, mode, 2 * MANY // len(modes_of(route)))


def test_the_description_names_every_route_and_no_other(scripted: Served) -> None:
    assert set(operations_of(scripted)) == set(ROUTES)
