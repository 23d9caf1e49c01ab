"""Models, from names to weights in memory: resolve, download, merge, cache, load.

Scope: the values that leave this package, and open_model, which does all of it. Importing this module imports no
torch. Knows nothing of prompts' rendering, sampling or pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_chat.errors import UserError
from qlora_chat.settings import BaseForm, ModelSettings, cache_folder, hub_cache_folder, hub_is_offline

if TYPE_CHECKING:
    from qlora_chat.chat_templates.known import FormatChoice
    from qlora_chat.models.adapter.folder import AdapterFolder
    from qlora_chat.models.folders import Base
    from qlora_chat.models.merge_record import MergeRecord
    from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
    from qlora_chat.models.weights.llama import LlamaWeights

Notify = Callable[[str], None]
"""Receives one line for the person who started the program."""


class ModelError(UserError, RuntimeError):
    """A model cannot be used; the message says what arrived, what was expected, and what to do next."""


@dataclass(frozen=True)
class ModelInfo:
    """Names and figures of a model, for pages, terminals and logs."""

    name: str
    base: str
    adapter: str | None
    precision: str
    """bf16 (merged), nf4 (merged and requantized), nf4+adapter (unmerged); fp32 in tests."""
    device: str
    window: int
    """Most tokens that prompt and answer may have together."""
    prompt_format: str
    stop_token_ids: frozenset[int]
    """Every id that tokenizer and generation config name as an end."""
    notices: tuple[str, ...] = ()
    """Lines a user must see: that it is a toy, the cost of quantization, repairs."""
    base_sha256: str | None = None
    """Hash of the weights; None if they are not on this machine, or too big to be hashed."""
    adapter_sha256: str | None = None
    computed_by: str | None = None
    """Forward pass of the answers, since each rounds in its own way; None for another machine's."""
    format: FormatChoice | None = None
    """Choice of the prompt format; None is the named one of prompt.py."""
    adapters: tuple[str, ...] = ()
    """Unmerged adapters that a request can name."""
    base_form: BaseForm | None = None
    """Form of the base under the adapters; None without any, and for another machine's."""
    predicted_bytes: int | None = None
    """Predicted need: weights, one chat's KV cache over the whole window, and overhead; None for another machine's."""
    merge: MergeRecord | None = None
    """None where weights are read as they were published."""


@dataclass(frozen=True)
class LoadedModel:
    """Weights on their device, with tokenizer and description."""

    weights: LlamaWeights
    tokenizer: ModelTokenizer
    info: ModelInfo
    base: Base | None = None
    """The config of the weights; None for weights made in memory."""
    unmerged_adapters: tuple[tuple[str, AdapterFolder], ...] = ()
    """Adapters to apply unmerged, for requests that name them: (name, folder)."""
    end_id: int | None = None
    """The end that training puts after a dialogue: the tokenizer's, or else the first that the configs name."""


def open_model(settings: ModelSettings, notify: Notify) -> LoadedModel:
    """Find, fetch, merge and load the model of the settings. ModelError with the remedy if that is not possible.

    The first start goes through Transformers and PEFT; its result is cached, and later starts read that alone.
    """
    from qlora_chat.models.load import load

    return load(settings, notify)


def find_adapter(text: str, notify: Notify) -> Path:
    """Folder of an adapter by Hub id or path, fetched or converted if necessary. Raises the errors of open_model."""
    from qlora_chat.models.cache import Cache
    from qlora_chat.models.hub import Hub
    from qlora_chat.models.locate import locate_adapter

    hub, cache = Hub(hub_cache_folder(), hub_is_offline()), Cache(cache_folder(), notify)
    return locate_adapter(text, hub, cache, notify).existing_folder()
