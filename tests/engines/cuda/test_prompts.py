"""Attention over a prompt of which a part was read before, on any build of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from qlora_chat.engines.cuda.prompts import _causal


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_a_build_without_flash_attention_reads_on_after_what_is_cached(heads: int, kv_heads: int) -> None:
    """Some for Windows, and every one on this test's processor."""
    count, seen, dim = 5, 12, 64
    queries = torch.randn(1, heads, count, dim)
    keys, values = (torch.randn(1, kv_heads, seen, dim) for _ in range(2))
    found = _causal(queries, keys, values)
    for at in range(count):
        known = slice(seen - count + at + 1)
        alone = scaled_dot_product_attention(
            queries[:, :, at : at + 1], keys[:, :, known], values[:, :, known], enable_gqa=True
        )
        assert torch.allclose(found[:, :, at : at + 1], alone, atol=1e-5)
