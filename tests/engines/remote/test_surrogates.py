"""Halves of a character that a server splits across chunks."""

from __future__ import annotations

from qlora_chat.engines.remote.surrogates import SurrogateJoiner


def joined(*texts: str) -> list[str]:
    joiner = SurrogateJoiner()
    return [joiner.add(text, last=index == len(texts) - 1) for index, text in enumerate(texts)]


def test_halves_in_two_chunks_are_one_character() -> None:
    assert joined("a\ud83d", "\ude00 b", "") == ["a", "\U0001f600 b", ""]
    assert joined("\ud83d", "", "\ude00") == ["", "", "\U0001f600"]
    assert joined("\ud83d", "\ude00\ud83d", "\ude01") == ["", "\U0001f600", "\U0001f601"]


def test_halves_in_one_chunk_are_one_character() -> None:
    assert joined("\ud83d\ude00") == ["\U0001f600"]


def test_a_half_without_its_other_half_is_replaced() -> None:
    assert joined("a\ud83d", "b") == ["a", "\ufffdb"]
    assert joined("a\ude00b\ud83d") == ["a\ufffdb\ufffd"]


def test_other_text_is_as_it_was() -> None:
    assert joined("a", "\U0001f600", "é\0") == ["a", "\U0001f600", "é\0"]
