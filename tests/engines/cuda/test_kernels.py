"""What is found out, and kept, before a kernel runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlora_chat.engines.cuda import driver
from qlora_chat.engines.cuda.driver import KernelError
from qlora_chat.engines.cuda.kernels import try_kernels


def test_a_card_that_is_too_old_is_told_apart_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(KernelError, match=r"compute capability 8\.0 and newer .* this one has 7\.5"):
        try_kernels(None)


class Nvrtc:
    """Knows its version, and nothing else."""

    def nvrtcVersion(self, *_: object) -> int:
        return 0


def test_machine_code_that_a_power_cut_has_left_as_zeros_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = b"\x7fELF and so on"
    made: list[str] = []

    def compile_(name: str, *_: object) -> bytes:
        made.append(name)
        return code

    monkeypatch.setattr(driver, "_nvrtc", Nvrtc)
    monkeypatch.setattr(driver, "_compile", compile_)
    for _ in range(2):
        assert driver.compiled("choose.cu", {"VOCABULARY": 8}, "sm_86", tmp_path) == code
    assert len(made) == 1, "the second is read"
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(bytes(len(code)))
    assert driver.compiled("choose.cu", {"VOCABULARY": 8}, "sm_86", tmp_path) == code
    assert driver.compiled("choose.cu", {"VOCABULARY": 8}, "sm_89", tmp_path) == code
    assert len(made) == 3, "again, and for another card"
    assert kept.read_bytes() == code
