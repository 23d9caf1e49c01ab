"""Prompt formats by name, the choice of one for a model, and its opening.

Scope: guanaco's formats of prompt.py, and others as chat templates written here. Knows no folders: models/chat_format.py reads
them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from qlora_chat.chat_templates.renderer import TemplateSource
from qlora_chat.prompt import FORMATS, ChatFormat
from qlora_chat.settings import SettingsError

TEMPLATE = "template"
"""Name of the format that a base or an adapter brings as a chat template."""
UNDECLARED = "nothing declares one"

_SYSTEM = "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content, messages[1:] %}{% endif %}"
KNOWN: Mapping[str, str] = {
    "alpaca": (
        _SYSTEM + "{{ bos_token }}{{ system if system is defined else 'Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.' }}{{ '\n\n' }}"
        "{% for message in messages %}{% if message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + message.content + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "vicuna": (
        _SYSTEM
        + "{{ bos_token }}{{ system if system is defined else 'A chat between a curious user and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' }}{{ ' ' }}"
        "{% for message in messages %}{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "llama-2": (
        _SYSTEM + "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token + '[INST] ' }}"
        "{% if loop.first and system is defined %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
        "{{ message.content | trim + ' [/INST]' }}{% else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' "
        "+ message.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "mistral": (
        _SYSTEM + "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' }}"
        "{% if loop.first and system is defined %}{{ system + '\n\n' }}{% endif %}{{ message.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}{% endfor %}"
    ),
}
"""Formats that are chat templates, written here."""
FORMAT_NAMES = (*FORMATS, *KNOWN, TEMPLATE)
_MODEL_NAMES: Mapping[str, str] = {
    "guanaco": r"\bguanaco\b",
    "alpaca": r"\balpaca\b",
    "vicuna": r"\bvicuna\b",
    "zephyr": r"\bzephyr\b|\btinyllama\b.*\bchat\b",
    "llama-2": r"\bllama-?2\b.*\bchat\b",
    "llama-3": r"\bllama-?3\b.*\binstruct\b",
    "chatml": r"\bchatml\b|\bqwen.*\b(chat|instruct)\b|\bhermes\b",
    "mistral": r"\bmistral\b.*\binstruct\b",
}
"""Patterns of the names of models that a format belongs to."""


class DescribedTokenizer(Protocol):
    """A tokenizer that can be read again elsewhere."""

    @property
    def tokenizer_json(self) -> str:
        """Contents of a tokenizer.json."""
        ...

    @property
    def embeddings(self) -> int | None:
        """Number of the model's embeddings; None where it is not known."""
        ...


@dataclass(frozen=True)
class FormatChoice:
    """The format of a model, and the reason for it."""

    name: str
    reason: str
    source: TemplateSource | None = None
    """None for a format of prompt.py."""

    @property
    def is_declared(self) -> bool:
        """False where nothing but the model's name, or not even that, speaks for the format."""
        return not self.reason.endswith(UNDECLARED)

    @property
    def summary(self) -> str:
        """Name and reason, for people at other machines: without paths."""
        return f"{'chat template' if self.name == TEMPLATE else self.name} ({self.reason})"

    @property
    def line(self) -> str:
        """One line for the person who started the program."""
        if self.source and self.name == TEMPLATE:
            return f"prompt format: the chat template in {self.source.origin} ({self.reason})"
        return f"prompt format: {self.summary}"

    def with_variables(self, variables: Mapping[str, str]) -> FormatChoice:
        """The choice with the texts of special tokens that a template may use."""
        return replace(self, source=replace(self.source, variables=variables)) if self.source else self


def check_format_name(name: str) -> None:
    """SettingsError for an unknown name, with the known ones."""
    if name not in FORMAT_NAMES:
        raise SettingsError(f"unknown prompt format {name!r}; known: {', '.join(FORMAT_NAMES)}")


def named_format(name: str, reason: str) -> FormatChoice:
    """A format by its name, except TEMPLATE, which needs a file. SettingsError for an unknown name."""
    check_format_name(name)
    source = TemplateSource(KNOWN[name], f"the built-in format {name}") if name in KNOWN else None
    return FormatChoice(name, reason, source)


def format_of_name(*names: str) -> str | None:
    """The format that a model's own name speaks of; None for a name that does not."""
    found = (known for name in names for known, each in _MODEL_NAMES.items() if re.search(each, name, re.IGNORECASE))
    return next(found, None)


def open_format(choice: FormatChoice, tokenizer: DescribedTokenizer) -> ChatFormat:
    """The format, ready for conversations. TemplateError for a template that cannot be used."""
    if choice.source is None:
        return FORMATS[choice.name]
    from qlora_chat.chat_templates.format import TemplateFormat
    from qlora_chat.chat_templates.vocabulary import TemplateVocabulary

    opened = TemplateFormat(choice.name, choice.source, TemplateVocabulary(tokenizer.tokenizer_json))
    if tokenizer.embeddings is not None:
        opened.check_ids(tokenizer.embeddings)
    return opened
