"""A tokenizer that has read for days holds no more than on its first, and a foreign one cannot end the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer


def test_it_does_not_remember_what_people_typed() -> None:
    tokenizer, process = ModelTokenizer.read(BUNDLED / "base", bos_id=1), psutil.Process()
    before = process.memory_info().rss
    for number in range(10_000):
        tokenizer.encode(f"Please tell me a story of number {number} and of {number * 7919 % 1_000_003}.")
    assert process.memory_info().rss - before < 6 * 2**20, "the library's own way takes 15 MiB for these"


ENDLESS = {"Regex": "(x+x+)+y"}
"""A pattern that gives up on forty letters, where the library panics: that is no Exception, and passes every handler."""


@pytest.mark.parametrize(
    "part",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": ENDLESS, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Replace", "pattern": ENDLESS, "content": "z"}},
    ],
)
def test_a_pattern_on_which_the_library_panics_is_a_clear_error(part: dict[str, Any], tmp_path: Path) -> None:
    ours = json.loads((BUNDLED / "base" / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(ours | part))
    tokenizer = ModelTokenizer.read(tmp_path, None)
    with pytest.raises(ModelError, match=r"the tokenizers library fails on it .*; use another copy of the base"):
        tokenizer.encode("x" * 40)
