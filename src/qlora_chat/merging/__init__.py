"""Base + adapter -> one merged model, and what the merge cost.

Scope: makes every merge that could be written, measures each against what training saw, writes the best and says why. The
merges themselves are in models/adapter/merge.py and models/weights/quantize.py, which a first start uses too. Knows no pages.
"""

from __future__ import annotations

from qlora_chat.models import ModelError


class MergeRefused(ModelError):
    """Every merge that was asked for strays too far from the unmerged adapter; the message has the figures."""
