"""Tensors by name, from a folder's safetensors.

Scope: headers when it is opened, a tensor when it is asked for. Importing it needs no torch; opening a folder does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from qlora_chat.models import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Checkpoint(Mapping[str, "Tensor"]):
    """Tensors of a folder's *.safetensors by name, each read when asked for."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self._device = folder, str(device)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder} holds no *.safetensors file")
        try:
            self._files = [safe_open(file, framework="pt", device=self._device) for file in files]  # type: ignore[no-untyped-call]
        except Exception as problem:
            raise ModelError(f"the weights in {folder} cannot be read ({problem}); fetch them again") from problem
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._where:
            raise KeyError(name)
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Any:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header alone."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def __len__(self) -> int:
        return len(self._where)
