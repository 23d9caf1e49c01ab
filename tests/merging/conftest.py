"""Folders of their own and small random models, as in tests/models."""

from tests.models.conftest import make_adapter, make_base, own_folders, said, tiny_nf4_base, transformers
from tests.training.conftest import small_disk

__all__ = ["make_adapter", "make_base", "own_folders", "said", "small_disk", "tiny_nf4_base", "transformers"]
