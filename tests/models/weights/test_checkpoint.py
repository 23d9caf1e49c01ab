"""Headers of safetensors files: equal to the library's, and refused where the library would refuse the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from qlora_chat.models.weights.checkpoint import DamagedFile, read_header
from tests.models.conftest import MakeBase


def test_headers_are_what_the_library_reads(make_base: MakeBase) -> None:
    path = make_base() / "model.safetensors"
    ours, theirs = read_header(path), load_file(path)
    assert {name: header.shape for name, header in ours.items()} == {name: tuple(each.shape) for name, each in theirs.items()}
    assert {name: header.bytes for name, header in ours.items()} == {name: each.nbytes for name, each in theirs.items()}
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DamagedFile, match="but its header describes"):
        read_header(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": [-2, -2]}, "a shape is"),
        ({"shape": [1] * 1000}, "a shape is"),
        ({"shape": [10**30, 0]}, "a shape is"),
        ({"shape": [2, 3]}, "is not 16 bytes"),
        ({"dtype": "F31"}, "F31"),
        ({"data_offsets": [8, 24]}, "offsets 8 to 24 follow 0"),
        ({"data_offsets": [0, 8]}, "is not 8 bytes"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(DamagedFile, match=f"the header of model.safetensors cannot be read .*{reason}"):
        read_header(path)
