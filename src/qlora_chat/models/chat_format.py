"""The prompt format of a base and an adapter, from their records and chat templates.

Scope: the order in which these count, and the two files that may hold a template. Runs no template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qlora_chat.chat_templates.known import TEMPLATE, UNDECLARED, FormatChoice, format_of_name, named_format
from qlora_chat.chat_templates.renderer import MAX_TEMPLATE, TemplateSource
from qlora_chat.models import ModelError
from qlora_chat.models.folders import RECORD, Base, ModelConfigs, token_text, tokenizer_config
from qlora_chat.models.part import ModelPart
from qlora_chat.models.trust import own_file, read_json
from qlora_chat.settings import DEFAULT_PROMPT_FORMAT

TEMPLATE_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""Of a LLaMA tokenizer whose config names none, as Transformers has them."""


@dataclass(frozen=True)
class FormatSources:
    """Folders and names that a format is chosen by."""

    base: Path
    configs: ModelConfigs
    """Of the base, already read."""
    adapter: Path | None = None
    names: tuple[str, ...] = ()
    """Of adapter and base."""
    adapter_record: Mapping[str, Any] | None = None
    """qlora_chat.json of the adapter, if it has been read."""

    def choose(self, named: str | None) -> FormatChoice:
        """The format: by --format, the adapter's record, its template, the base's record and template, a known name.

        SettingsError for an unknown name; ModelError for a template that cannot be read or is not there.
        """
        if named:
            choice = self._template("--format") if named == TEMPLATE else named_format(named, "--format")
        else:
            choice = next(self._declared(), None) or self._by_name()
        return choice.with_variables(self._variables())

    def _folders(self) -> Iterator[tuple[Path, Mapping[str, Any], str]]:
        """(folder, tokenizer_config.json, whose) of the adapter and of the base."""
        if self.adapter:
            yield self.adapter, self._adapter_config, "the adapter's"
        yield self.base, self.configs.tokenizer, "the base's"

    @cached_property
    def _adapter_config(self) -> Mapping[str, Any]:
        return tokenizer_config(self.adapter) if self.adapter and (self.adapter / _CONFIG).is_file() else {}

    def _declared(self) -> Iterator[FormatChoice]:
        for folder, config, whose in self._folders():
            known = self.adapter_record if folder is self.adapter else None
            recorded = (read_json(folder / RECORD) if known is None else known).get("prompt_format")
            if recorded == TEMPLATE:
                yield self._template(f"{whose} record")
            elif isinstance(recorded, str):
                yield named_format(recorded, f"{whose} record")
            if source := read_template(folder, config):
                yield FormatChoice(TEMPLATE, f"{whose} own", source)

    def _template(self, reason: str) -> FormatChoice:
        for folder, config, whose in self._folders():
            if source := read_template(folder, config):
                return FormatChoice(TEMPLATE, f"{reason}; it is {whose}", source)
        raise ModelError(
            f"the format is a chat template ({reason}), but neither adapter nor base holds one in {TEMPLATE_FILE} or "
            f"{_CONFIG}; name another with --format"
        )

    def _by_name(self) -> FormatChoice:
        if known := format_of_name(*self.names):
            return named_format(known, f"the model's name; {UNDECLARED}")
        return named_format(DEFAULT_PROMPT_FORMAT, f"the default; {UNDECLARED}")

    def _variables(self) -> dict[str, str]:
        """Special tokens as text, by the names that templates use."""
        config = self._adapter_config or self.configs.tokenizer
        found = {name: token_text(config.get(name)) for name in _SPECIAL_NAMES}
        is_llama = self.configs.model.get("model_type") in ("llama", "mistral")
        named = config.get("tokenizer_class") or ("LlamaTokenizer" if is_llama else None)
        if named in ("LlamaTokenizer", "LlamaTokenizerFast"):
            found = {name: text or _LLAMA_TOKENS.get(name, "") for name, text in found.items()}
        return {name: text for name, text in found.items() if text}


def format_sources(
    base: ModelPart, config: Base, adapter: ModelPart | None, record: Mapping[str, Any] | None = None
) -> FormatSources:
    """Folders and names of a model; `config` is the base's, or that of what was made of it, `record` the adapter's."""
    names = (adapter.name, base.name) if adapter else (base.name,)
    return FormatSources(config.folder, config.configs, adapter.folder if adapter else None, names, record)


def read_template(folder: Path, config: Mapping[str, Any]) -> TemplateSource | None:
    """The folder's chat template, None without one: chat_template.jinja, else what its tokenizer_config.json holds.

    ModelError for one that is no text.
    """
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            with own_file(path).open(encoding="utf-8") as file:
                return TemplateSource(file.read(MAX_TEMPLATE + 1), str(path))
        except (OSError, UnicodeDecodeError) as problem:
            raise ModelError(f"{path} cannot be read as text ({problem}); name a format with --format") from problem
    stored = config.get("chat_template")
    if stored is None:
        return None
    return TemplateSource(_default(stored, folder / _CONFIG), str(folder / _CONFIG))


def _default(stored: Any, path: Path) -> str:
    """The template, or of several with names the one called default."""
    if isinstance(stored, str):
        return stored
    if isinstance(stored, list) and all(isinstance(each, dict) for each in stored):
        stored = {each.get("name"): each.get("template") for each in stored}
    if isinstance(stored, dict) and isinstance(stored.get("default"), str):
        return stored["default"]
    names = f"templates {', '.join(map(str, stored))}" if isinstance(stored, dict) else f"a {type(stored).__name__}"
    raise ModelError(f"{path} has {names} as chat_template, and none is called default; name a format with --format")
