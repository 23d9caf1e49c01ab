"""The form of the base in training is read from records and from the traces of trainers, and a doubt stays a doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.trained_on import trained_on

IN_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
CARD = """---
library_name: peft
---
## Training procedure

The following `bitsandbytes` quantization config was used during training:
- quant_method: bitsandbytes
- load_in_8bit: {int8}
- load_in_4bit: {four}
- bnb_4bit_quant_type: {kind}
"""


def form(folder: Path, config: dict[str, Any] | None = None, record: dict[str, Any] | None = None, name: str = "a/b") -> Any:
    return trained_on(name, folder, config or {}, record or {}).form


def test_our_own_record_is_believed_first(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD.format(int8=False, four=False, kind="fp4"))
    assert form(tmp_path, record={"quantisation": "nf4, double"}) == "nf4"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": CARD.format(int8=False, four=True, kind="nf4")}, "nf4"),
        ({"README.md": CARD.format(int8=False, four=True, kind="fp4")}, None),
        ({"README.md": CARD.format(int8=True, four=False, kind="fp4")}, None),
        ({"README.md": CARD.format(int8=False, four=False, kind="fp4")}, "16-bit"),
        ({"README.md": "An adapter. - load_in_4bit: True is only mentioned here."}, None),
        ({"config.json": json.dumps({"quantization_config": IN_NF4})}, "nf4"),
        ({"training_args.json": json.dumps({"learning_rate": 1e-4, **IN_NF4})}, "nf4"),
        ({"training_args.bin": "a pickle, which nobody opens"}, None),
        ({}, None),
    ],
)
def test_traces_of_trainers_are_read(files: dict[str, str], expected: str | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert form(tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}, "nf4"),
        ({"base_model_name_or_path": "unsloth/tinyllama-chat-unsloth-bnb-4bit"}, "nf4"),
        ({"base_model_name_or_path": "me/base-nf4"}, "nf4"),
        ({"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}, None),
        ({"base_model_name_or_path": None}, None),
        ({"quantization_config": IN_NF4}, "nf4"),
    ],
)
def test_the_adapters_config_may_name_a_quantized_base(config: dict[str, Any], expected: str | None, tmp_path: Path) -> None:
    assert form(tmp_path, config) == expected


def test_guanacos_paper_is_known(tmp_path: Path) -> None:
    assert form(tmp_path, name="timdettmers/guanaco-7b") == "nf4"


def test_a_card_that_is_a_link_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.md").write_text(CARD.format(int8=False, four=True, kind="nf4"))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    with pytest.raises(ModelError, match="outside of its folder"):
        form(folder)
