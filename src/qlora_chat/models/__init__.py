"""From names to weights ready to run: resolve, download, merge, cache, load.

Scope: the values that leave this package, and open_model, which does all of it. Importing this module imports no
torch. Knows nothing of prompts' rendering, sampling or pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_chat.errors import UserError
from qlora_chat.settings import ModelSettings

if TYPE_CHECKING:
    from qlora_chat.models.folders import Base
    from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
    from qlora_chat.models.weights.llama import LlamaWeights

Notify = Callable[[str], None]
"""Receives one line for the person who started the program."""


class ModelError(UserError, RuntimeError):
    """A model cannot be used; the message says what arrived, what was expected, and what to do next."""


@dataclass(frozen=True)
class ModelInfo:
    """What is being talked to, in words and numbers for pages, terminals and logs."""

    name: str
    base: str
    adapter: str | None
    precision: str
    """bf16 (merged), nf4 (merged and requantised), nf4+adapter (unmerged); fp32 in tests."""
    device: str
    window: int
    """Most tokens that prompt and answer may have together."""
    prompt_format: str
    stop_token_ids: frozenset[int]
    """Every id that tokenizer and generation config name as an end."""
    notices: tuple[str, ...] = ()
    """Lines a user must see: that it is a toy, what quantising cost, what was repaired."""
    base_sha256: str | None = None
    """Of the weights; None where they are not on this machine, or too big to be read for it."""
    adapter_sha256: str | None = None
    computed_by: str | None = None
    """Which forward pass answers, since each rounds in its own way; None where it is another machine's."""
    adapters: tuple[str, ...] = ()
    """Adapters beside the model, unmerged, that a request can name."""


@dataclass(frozen=True)
class LoadedModel:
    """Weights on their device with what is needed to use them."""

    weights: LlamaWeights
    tokenizer: ModelTokenizer
    info: ModelInfo
    base: Base | None = None
    """The config that the weights go by; None for weights made in memory."""
    beside: tuple[tuple[str, Path], ...] = ()
    """Adapters to keep beside the weights, unmerged: (name, folder)."""


def open_model(settings: ModelSettings, notify: Notify) -> LoadedModel:
    """Find, fetch, merge and load the model that the settings name. ModelError says what is in the way.

    The first start goes through Transformers and PEFT; its result is cached, and later starts read that alone.
    """
    from qlora_chat.models.load import load

    return load(settings, notify)


def find_adapter(text: str, notify: Notify) -> Path:
    """The folder of an adapter by Hub id or path, fetched or converted where that is needed. ModelError as open_model."""
    from qlora_chat.models.load import adapter_folder

    return adapter_folder(text, notify)
