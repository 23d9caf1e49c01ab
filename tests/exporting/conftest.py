"""The mark of tests that need a vLLM."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """vLLM lives in an environment of its own, so `make test` leaves these out."""
    config.addinivalue_line("markers", "vllm: needs a real vLLM in an environment of its own; run by `make test-vllm`")
