"""A tokenizer that has read for days holds no more than on its first."""

from __future__ import annotations

import psutil

from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer


def test_it_does_not_remember_what_people_typed() -> None:
    tokenizer, process = ModelTokenizer.read(BUNDLED / "base", bos_id=1), psutil.Process()
    before = process.memory_info().rss
    for number in range(10_000):
        tokenizer.encode(f"Please tell me a story of number {number} and of {number * 7919 % 1_000_003}.")
    assert process.memory_info().rss - before < 6 * 2**20, "the library's own way takes 15 MiB for these"
