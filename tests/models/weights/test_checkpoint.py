"""Headers of safetensors files: equal to the library's, and refused where the library would refuse the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from qlora_chat.models import ModelError
from qlora_chat.models.weights import checkpoint
from qlora_chat.models.weights.checkpoint import read_header
from tests.models.conftest import MakeBase


def test_headers_are_what_the_library_reads(make_base: MakeBase) -> None:
    path = make_base() / "model.safetensors"
    ours, theirs = read_header(path), load_file(path)
    assert {name: header.shape for name, header in ours.items()} == {name: tuple(each.shape) for name, each in theirs.items()}
    assert {name: header.bytes for name, header in ours.items()} == {name: each.nbytes for name, each in theirs.items()}
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ModelError, match="does not match its header .*not fully covered"):
        read_header(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-2, -2]},
        {"shape": [1] * 1000 + [4]},
        {"shape": [10**30, 0]},
        {"shape": [2, 3]},
        {"dtype": "F31\nall is well"},
        {"dtype": "F8_E4M3FNUZ", "shape": [4, 4]},
        {"data_offsets": [8, 24]},
        {"data_offsets": [0, 8]},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ModelError, match="does not match its header") as caught:
        read_header(path)
    assert len(str(caught.value)) < 200 + len(str(path))
    assert "\n" not in str(caught.value)


def test_the_reason_of_a_file_that_cannot_be_mapped_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("No such device (os error 19)")  # as the library words it: without an errno

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    (tmp_path / "model.safetensors").write_bytes(bytes(16))
    with pytest.raises(ModelError, match=r"cannot be read \(No such device .*fetch it again"):
        read_header(tmp_path / "model.safetensors")


def test_an_absurdly_long_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**25).to_bytes(8, "little"))
    with pytest.raises(ModelError, match="it would be 33,554,432 bytes"):
        read_header(path)
