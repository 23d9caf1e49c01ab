"""Folders of their own and small random models, as in tests/models."""

from tests.models.conftest import local_hub, make_adapter, make_base, own_folders

__all__ = ["local_hub", "make_adapter", "make_base", "own_folders"]
