"""Folders of their own and small random models, as in tests/models."""

from tests.merging.conftest import compiled_kernels
from tests.models.conftest import make_adapter, make_base, notices, own_folders

__all__ = ["compiled_kernels", "make_adapter", "make_base", "notices", "own_folders"]
