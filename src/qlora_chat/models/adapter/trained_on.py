"""The form of the base on which an adapter was trained: in NF4, or in 16 bits.

An adapter that QLoRA trained corrects the errors of NF4, and is another model on the original weights.

Scope: our own record, else the traces that trainers leave in JSON files and in PEFT's model card. Pickles (training_args.bin)
are not read. Knows no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_chat.models.folders import RECORD
from qlora_chat.models.trust import SMALL_FILE, own_file, read_json
from qlora_chat.settings import BaseForm

PUBLISHED: Mapping[str, BaseForm] = {"timdettmers/guanaco-7b": "nf4"}
"""Adapters that say nothing themselves and whose paper does (QLoRA, Dettmers 2023)."""
_CARD_LINE = re.compile(r"^\s*- (load_in_4bit|load_in_8bit|bnb_4bit_quant_type): *(\w+)\s*$", re.MULTILINE)
_QUANTIZED_NAME = re.compile(r"nf4|(bnb|unsloth)\S*4bit", re.IGNORECASE)


@dataclass(frozen=True)
class TrainedOn:
    """The form of the base in training."""

    form: BaseForm | None
    """None where nothing says it, or where training used a form that is not computed here."""
    reason: str
    """Origin of the knowledge, or of the doubt."""
    is_setting: bool = False
    """True if a setting says so, whatever training saw."""


def trained_on(name: str, folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> TrainedOn:
    """The form of the base that an adapter of this name, adapter_config.json and qlora_chat.json was trained on."""
    recorded = record.get("quantisation")
    if isinstance(recorded, str) and recorded.startswith("nf4"):
        return TrainedOn("nf4", f"its {RECORD} says so")
    found = next((each for source, values in _traces(folder, config) if (each := _judged(source, values))), None)
    if found:
        return found
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and _QUANTIZED_NAME.search(base):
        return TrainedOn("nf4", f"its base is called {base}")
    if name in PUBLISHED:
        return TrainedOn(PUBLISHED[name], "its paper says so")
    return TrainedOn(None, "nothing in its folder says it")


def _traces(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file, quantization settings) of each file that has any, in the words of BitsAndBytesConfig."""
    for name, values in (
        ("adapter_config.json", config),
        ("config.json", read_json(folder / "config.json")),
        ("training_args.json", read_json(folder / "training_args.json")),
    ):
        stored = values.get("quantization_config")
        yield name, stored if isinstance(stored, dict) else values
    yield "README.md", _card(folder / "README.md")


def _card(path: Path) -> Mapping[str, Any]:
    """Settings that PEFT's model card lists; {} without a card."""
    if not path.is_file():
        return {}
    text = own_file(path, SMALL_FILE).read_text(encoding="utf-8", errors="replace")
    words = {"true": True, "false": False}
    return {key: words.get(value.lower(), value) for key, value in _CARD_LINE.findall(text)}


def _judged(source: str, values: Mapping[str, Any]) -> TrainedOn | None:
    """The form that quantization settings name; None where they say nothing of it."""
    if values.get("load_in_4bit") is True:
        kind = values.get("bnb_4bit_quant_type", "fp4")  # bitsandbytes' own default
        return TrainedOn("nf4" if kind == "nf4" else None, f"{source} names a base in {str(kind).upper()}")
    if values.get("load_in_8bit") is True:
        return TrainedOn(None, f"{source} names a base in 8 bits")
    if values.get("load_in_4bit") is False:
        return TrainedOn("16-bit", f"{source} names a base that is not quantized")
    return None
