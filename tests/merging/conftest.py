"""Folders of their own and small random models, as in tests/models."""

from tests.models.conftest import make_adapter, make_base, own_folders, said, tiny_nf4_base, transformers

__all__ = ["make_adapter", "make_base", "own_folders", "said", "tiny_nf4_base", "transformers"]
