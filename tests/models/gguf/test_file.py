"""GGUF files that are incomplete, altered or hostile: an error that names the file, never a crash or an endless read."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.gguf.file import MAX_ARRAY, GgufFile
from tests.models.gguf.making import write_gguf


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 4, 12, 24, 100, 1_000, 3_000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf cannot be read as GGUF"):
            _ = GgufFile(cut).metadata


def header(count: int, key: bytes, value: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, count) + struct.pack("<Q", len(key)) + key + value


ARRAY, UINT8, STRING = 9, 0, 8


@pytest.mark.parametrize(
    "content",
    [
        header(1, b"a", struct.pack("<IIQ", ARRAY, UINT8, 2**60)),
        header(1, b"a", struct.pack("<IIQ", ARRAY, STRING, MAX_ARRAY + 1)),
        header(1, b"a", struct.pack("<IQ", STRING, 2**62)),
        header(2**60, b"a", struct.pack("<IB", UINT8, 1)),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<I", 1) + bytes(64),
        b"not a model at all" * 10,
    ],
    ids=["long list", "list above the bound", "long text", "many keys", "many tensors", "version 1", "another file"],
)
def test_absurd_lengths_end_at_once(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"hostile\.gguf cannot be read as GGUF"):
        GgufFile(path)


def test_a_kind_of_tensor_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", "TQ1_0")
    with pytest.raises(ModelError, match=r"stores token_embd\.weight as TQ1_0, which is not read; use one of BF16"):
        GgufFile(path)
