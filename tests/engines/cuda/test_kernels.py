"""Compilation, its cache, and launches."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_chat.engines.cuda.kernels import check_device
from qlora_chat.engines.cuda.runtime import driver
from qlora_chat.engines.cuda.runtime.arguments import SiluTimesUpArguments
from qlora_chat.engines.cuda.runtime.driver import KernelError


def test_a_card_that_is_too_old_is_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(KernelError, match=r"compute capability 8\.0 and newer .* this card has 7\.5"):
        check_device(None)


class Nvrtc:
    """Has a version, and nothing else."""

    def nvrtcVersion(self, *_: object) -> int:
        return 0


def test_machine_code_that_a_power_cut_has_left_as_zeros_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = b"\x7fELF and so on"
    compiled: list[str] = []

    def compile_(name: str, *_: object) -> bytes:
        compiled.append(name)
        return code

    monkeypatch.setattr(driver, "_nvrtc", Nvrtc)
    monkeypatch.setattr(driver, "_compile", compile_)
    for _ in range(2):
        assert driver.load_or_compile("sampling.cu", {"VOCABULARY": 8}, "sm_86", tmp_path) == code
    assert len(compiled) == 1, "the second comes from the cache"
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(bytes(len(code)))
    assert driver.load_or_compile("sampling.cu", {"VOCABULARY": 8}, "sm_86", tmp_path) == code
    assert driver.load_or_compile("sampling.cu", {"VOCABULARY": 8}, "sm_89", tmp_path) == code
    assert len(compiled) == 3, "again, and for another card"
    assert cached.read_bytes() == code


class Driver:
    """Records the streams, grids and arguments of launches."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, tuple[int, int, int], int]] = []
        self.result = 0

    def cuLaunchKernelEx(self, config: Any, function: object, parameters: Any, extra: None) -> int:
        c, silu = config._obj, ctypes.cast(parameters[0], ctypes.POINTER(SiluTimesUpArguments)).contents
        self.launched.append((c.stream, (c.grid_x, c.grid_y, c.grid_z), silu.feed_forward))
        return self.result

    def cuGetErrorString(self, result: int, message: Any) -> int:
        message._obj.value = b"out of memory"
        return 0


def test_a_bound_launch_uses_the_arguments_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    card, arguments = Driver(), SiluTimesUpArguments(feed_forward=5)
    monkeypatch.setattr(driver, "_driver", lambda: card)
    launch = driver.Launch("silu_times_up", ctypes.c_void_p(), 256, arguments)
    launch((1, 2, 1), 7)
    arguments.feed_forward = 6
    launch((3, 4, 1), 8)
    assert card.launched == [(7, (1, 2, 1), 5), (8, (3, 4, 1), 6)]
    card.result = 2
    with pytest.raises(KernelError, match="launching silu_times_up: out of memory"):
        launch((1, 1, 1), 7)
