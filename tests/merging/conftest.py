"""Folders of their own and small random models, as in tests/models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.conftest import make_adapter, make_base, notices, own_folders, tiny_nf4_base, transformers
from tests.training.conftest import small_disk

__all__ = [
    "compiled_kernels",
    "make_adapter",
    "make_base",
    "notices",
    "own_folders",
    "small_disk",
    "tiny_nf4_base",
    "transformers",
]


@pytest.fixture(autouse=True)
def compiled_kernels(own_folders: None, own_cache: Path, tmp_path: Path) -> None:
    """The CPU's kernels in each test's own cache folder are those that the session has compiled."""
    (own_cache / "kernels").mkdir(exist_ok=True)
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "kernels").symlink_to(own_cache / "kernels")
