"""Tensors by name, from a folder's safetensors files.

Scope: headers, read without a tensor library, and tensors, read on access. Importing it needs no torch; opening a
Checkpoint does. Knows nothing of models. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from qlora_chat.models import ModelError
from qlora_chat.models.trust import own_file, read_json, weight_files

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_HEADER = 16 * 1024**2
"""Bytes: a hundred times what a 70B model has. The safetensors library reads up to 100 MB."""
MOST_DIMENSIONS = 8
"""A shape of millions, which the library accepts, would be quoted whole in an error message."""
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16,
    "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as its file's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Tensors of one file by name, as the library reads them.

    ModelError for a link out of its folder, and for a file that cannot be read or does not match its header.
    """
    try:
        with own_file(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"it would be {length:,} bytes")
        with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]
            described = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return {name: _tensor_header(each.get_dtype(), tuple(each.get_shape())) for name, each in described.items()}
    except OSError as problem:
        raise ModelError(f"{path} cannot be read ({problem.strerror or problem}); fetch it again") from problem
    except (SafetensorError, ValueError, KeyError) as problem:
        size, reason = path.stat().st_size, " ".join(str(problem).split())  # it may quote the header
        reason = reason.removeprefix("Error while deserializing header: ")[:100]
        raise ModelError(f"{path}, of {size:,} bytes, does not match its header ({reason}); fetch it again") from problem


def _tensor_header(dtype: str, shape: tuple[int, ...]) -> TensorHeader:
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a shape of {len(shape):,} dimensions")
    return TensorHeader(dtype, shape, math.prod(shape) * DTYPE_BITS[dtype] // 8)


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a folder's model, as index and headers describe them."""

    index: Mapping[str, str]
    """The file of each tensor by name; {} without an index."""
    files: Mapping[Path, Mapping[str, TensorHeader]]
    """The tensors of each file by name."""

    @cached_property
    def headers(self) -> Mapping[str, TensorHeader]:
        """All tensors by name; {} without any file."""
        return {name: header for headers in self.files.values() for name, header in headers.items()}


def read_index(folder: Path) -> dict[str, str]:
    """The file of each tensor by name, {} without an index. ModelError for one that names anything but the folder's shards."""
    path = folder / "model.safetensors.index.json"
    index = read_json(path).get("weight_map", {})
    if not isinstance(index, dict):
        raise ModelError(f"{path} holds no table of tensors (weight_map); fetch it again")
    for name in index.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{path} names {name!r}, but may name *.safetensors of its own folder only; use another model")
    return index


def model_files(folder: Path, index: Mapping[str, str]) -> list[Path]:
    """The *.safetensors that hold a folder's model: those that its index names, or all without an index.

    ModelError for a link out of the folder, and for an index that names a file which is not there or no shard.
    """
    names = sorted(set(index.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"the index in {folder} names {missing[0]}, which is not there; fetch the weights again")
    return [own_file(folder / name) for name in names] if names else weight_files(folder)


def read_headers(folder: Path) -> Mapping[str, TensorHeader]:
    """Tensors of a folder's model by name; {} without any. Raises the errors of read_weight_files."""
    return read_weight_files(folder).headers


def read_weight_files(folder: Path) -> WeightFiles:
    """Read index and headers of a folder's model.

    ModelError for a damaged file, and for two files that hold a tensor of one name: readers would differ in which they take.
    """
    index = read_index(folder)
    files: dict[Path, Mapping[str, TensorHeader]] = {}
    known: set[str] = set()
    for path in model_files(folder, index):
        found = read_header(path)
        if twice := sorted(known & set(found)):
            raise ModelError(
                f"two files of {folder} hold {twice[0]}, one of them {path.name}; remove the one that is not meant"
            )
        files[path] = found
        known |= set(found)
    return WeightFiles(index, files)


class LazyTensors(Mapping[str, "Tensor"]):
    """Tensors by name, each of them read, or made, on access."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Checkpoint(LazyTensors):
    """Tensors of a folder's model, or of some of its files, by name, each read on access."""

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        self.folder = folder
        paths = model_files(folder, read_index(folder)) if files is None else [own_file(file) for file in files]
        if not paths:
            raise ModelError(f"{folder} holds no *.safetensors file")
        try:
            opened = [safe_open(path, framework="pt") for path in paths]  # type: ignore[no-untyped-call]
        except Exception as problem:
            raise ModelError(f"the weights in {folder} cannot be read ({problem}); fetch them again") from problem
        files_by_name = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (not a dict)
        super().__init__(files_by_name, lambda name: files_by_name[name].get_tensor(name))


def read_widened(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of that name; one that bitsandbytes stored in 8 bits, in float32 with its rows' scales applied."""
    import torch

    tensor = tensors[name]
    if tensor.dtype != torch.int8:
        return tensor
    return tensor.float() * (tensors[name.removesuffix("weight") + "SCB"].float() / 127).unsqueeze(1)
