"""Tokenizer and description of a model whose weights are on another machine.

Scope: the names that locate.py understands, down to the small files alone. Imports no torch. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import normalize

from qlora_chat.models import ModelError, ModelInfo, Notify
from qlora_chat.models.cache import Cache
from qlora_chat.models.chat_format import FormatSources
from qlora_chat.models.folders import ModelConfigs
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import (
    ADAPTER_WITHOUT_WEIGHTS,
    BASE_WITHOUT_WEIGHTS,
    GUANACO,
    GUANACO_ADAPTER,
    GUANACO_BASE,
    local_base,
    locate_part,
)
from qlora_chat.models.part import ModelPart
from qlora_chat.models.plan import LocatedModel
from qlora_chat.models.resolve import demo, smollm2_with_adapter
from qlora_chat.models.smollm2 import SMOLLM2
from qlora_chat.models.tokenizer.sentencepiece import tokenizer_folder
from qlora_chat.models.tokenizer.special_tokens import special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.settings import ModelSettings, cache_folder, hub_cache_folder, hub_is_offline


@dataclass(frozen=True)
class Identity:
    """All that prompts and stops need to know of a model that runs elsewhere."""

    tokenizer: ModelTokenizer
    info: ModelInfo
    bos_text: str
    """BOS as text, for a server that takes text only; "" without BOS."""

    def without_special_tokens(self, text: str) -> str:
        """Text in which another tokenizer finds no special token: a typed "</s>" becomes "< /s>"."""
        for name in self.tokenizer.special_names:
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return text

    def special_token(self, ids: Sequence[int]) -> str | None:
        """The first special token of a prompt besides BOS, by its name."""
        names = self.tokenizer.special_tokens()
        return next((names[each] for each in ids if each in names and each != self.tokenizer.bos_id), None)

    def prompt_as_text(self, text: str, ids: Sequence[int]) -> str:
        """A prompt's text in which another tokenizer finds the special tokens of its ids, and none that was typed.

        `text` is without BOS. ModelError where the ids do not tell which of two it is.
        """
        names, tokenizer = self.tokenizer.special_tokens(), self.tokenizer
        rest = ids[1:] if ids and ids[0] == tokenizer.bos_id else ids
        written, between, at = "", list[int](), 0
        for number in rest:
            if number not in names:
                between.append(number)
                continue
            name = names[number]
            begin = _position(text, name, at, tokenizer.decode(between))
            if begin is None:
                raise ModelError(
                    f"the server takes text only, and {name} of the chat template cannot be told there from the same text in a "
                    "message; use a server that takes token ids (vLLM, llama.cpp), or name a format without such tokens"
                )
            written += self.without_special_tokens(text[at:begin]) + name
            between, at = [], begin + len(name)
        return written + self.without_special_tokens(text[at:])


def _position(text: str, name: str, start: int, between: str) -> int | None:
    """Position of `name` in a text after exactly `between`; white space in front of that may be the tokenizer's own."""
    expected = normalize("NFC", between).strip()
    found = text.find(name, start)
    while found >= 0 and normalize("NFC", text[start:found]).strip() != expected:
        found = text.find(name, found + 1)
    return None if found < 0 else found


def identify(settings: ModelSettings, notify: Notify) -> Identity:
    """Tokenizer and description of the model that the settings name; ModelError for `auto` and for missing files."""
    cache = Cache(cache_folder(), notify)
    located = _locate(settings, Hub(hub_cache_folder(), hub_is_offline()), cache, notify)
    base, folder = located.base, located.base.existing_folder()
    configs = ModelConfigs.read(folder)
    tokenizer = ModelTokenizer.read(tokenizer_folder(base.name, folder, cache), None)
    special = special_ids(base.name, configs, tokenizer)
    tokenizer.bos_id = special.bos
    adapter = located.adapter
    names = (adapter.name, base.name) if adapter else (base.name,)
    chosen = FormatSources(folder, configs, adapter.folder if adapter else None, names).choose(settings.prompt_format)
    info = ModelInfo(
        name=located.name,
        base=base.name,
        adapter=located.adapter.name if located.adapter else None,
        precision="remote",
        device="another machine",
        window=configs.shape(folder).window,
        prompt_format=chosen.name,
        format=chosen,
        stop_token_ids=special.stops,
        notices=(*located.notices, *special.notices),
    )
    return Identity(tokenizer, info, tokenizer.written_bos())


def _locate(settings: ModelSettings, hub: Hub, cache: Cache, notify: Notify) -> LocatedModel:
    if settings.model == "demo" and not settings.base:
        return demo()
    known = {GUANACO: (GUANACO_BASE, GUANACO_ADAPTER), SMOLLM2: (SMOLLM2, None)}
    text, adapter_text = (settings.base, settings.adapter) if settings.base else known.get(settings.model, (None, None))
    if text is None:
        raise ModelError("the server's model is not known: name it with --base, or --model demo, smollm2 or guanaco-7b")
    found = local_base(text, BASE_WITHOUT_WEIGHTS, hub, cache, notify)
    base = hub.fetch(found, BASE_WITHOUT_WEIGHTS.select, notify) if isinstance(found, str) else found
    if settings.model == SMOLLM2 and not settings.base:
        return smollm2_with_adapter(base)
    adapter = _adapter(adapter_text, hub, notify) if adapter_text else None
    return LocatedModel((adapter or base).name, base, adapter)


def _adapter(text: str, hub: Hub, notify: Notify) -> ModelPart:
    """Name and record of an adapter; its weights are the server's business."""
    if text == GUANACO_ADAPTER:
        return ModelPart(text, None)
    return locate_part("--adapter", text, ADAPTER_WITHOUT_WEIGHTS, hub, notify)
