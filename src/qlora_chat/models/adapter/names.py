"""Names of an adapter's tensors, in the one spelling that PEFT reads.

Scope: names and header shapes. Other tools leave out PEFT's prefix, write it twice, leave the adapter's own name in, or use
MLX's spelling; all of them mean the same tensors. Knows nothing of bases or configs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_chat.models import ModelError
from qlora_chat.models.weights.checkpoint import LazyTensors, TensorHeader

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?<!\w)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of a name that distributed, compiled or recomputed training puts in."""
_COPY, _ORIGINAL = ".modules_to_save.", ".original_module."
_PART = re.compile(
    r"\.(?:(?P<matrix>lora_[AB])(?:\.[\w-]+)?\.(?P<kind>weight|bias)"
    r"|(?P<mlx>lora_[ab])(?:\.weight)?"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.[\w-]+)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.[\w-]+)?(?:\.weight)?"
    r"|token_adapter\.(?P<delta>trainable_tokens_delta)(?:\.[\w-]+)?"
    r"|(?:modules_to_save\.(?:[\w-]+\.)?|base_layer\.)?(?P<whole>weight|bias))$"
)


@dataclass(frozen=True)
class TensorName:
    """A module of the base, and the part of the adapter that changes it."""

    module: str
    """Hugging Face name: "model.layers.0.self_attn.q_proj"."""
    part: str
    """lora_A.weight, lora_B.weight, lora_B.bias, lora_embedding_A, lora_magnitude_vector, weight, ..., or "" for another."""

    @staticmethod
    def of(stored: str) -> TensorName:
        """Read a name in any of the known spellings."""
        rest = _WRAPPERS.sub("", stored).rpartition(PREFIX)[2]
        found = _PART.search(rest)
        if found is None:
            return TensorName(rest, "")
        module, groups = rest[: found.start()], found.groupdict()
        if groups["matrix"]:
            return TensorName(module, f"{groups['matrix']}.{groups['kind']}")
        if groups["mlx"]:
            return TensorName(module, f"lora_{groups['mlx'][-1].upper()}.weight")
        if groups["delta"]:
            return TensorName(module, "token_adapter.trainable_tokens_delta")
        return TensorName(module, groups["embedding"] or groups["magnitude"] or groups["whole"])

    @property
    def is_matrix(self) -> bool:
        """True for the two matrices that can be applied unmerged."""
        return self.part in ("lora_A.weight", "lora_B.weight")

    @property
    def is_token_row(self) -> bool:
        """True for the rows of tokens that are trained one by one."""
        return self.part.endswith("trainable_tokens_delta")

    def __str__(self) -> str:
        return PREFIX + (f"{self.module}.{self.part}" if self.part else self.module)


@dataclass(frozen=True)
class StoredName:
    """A tensor as its file names it."""

    text: str
    transposed: bool = False
    """True for MLX's A (in, r) and B (r, out)."""
    copy: str | None = None
    """Another tensor of the file that must be the same: PEFT saves a resized module to save twice."""


def normalize(
    folder: Path, headers: Mapping[str, TensorHeader], rank: int
) -> tuple[dict[str, TensorHeader], dict[str, StoredName]]:
    """Headers by PEFT's names, and the name of each in the file. ModelError for two tensors that mean the same one."""
    normal: dict[str, TensorHeader] = {}
    stored: dict[str, StoredName] = {}
    for text in sorted(headers, key=lambda each: _COPY in each):
        if _ORIGINAL in text and text.replace(_ORIGINAL, ".") in headers:
            continue  # the module before training, which PEFT leaves out, too
        header, name = headers[text], TensorName.of(text)
        other = stored.get(str(name))
        if other and _COPY in text and normal[str(name)] == header:
            stored[str(name)] = StoredName(other.text, copy=text)
            continue
        if other:
            twice = f"{text} and {other.text} of the adapter in {folder} are the same tensor {name}"
            raise ModelError(f"{twice}; remove one of them")
        transposed = name.is_matrix and _is_transposed(text, header.shape, rank)
        stored[str(name)] = StoredName(text, transposed)
        normal[str(name)] = TensorHeader(header.dtype, header.shape[::-1], header.bytes) if transposed else header
    return normal, stored


def _is_transposed(text: str, shape: tuple[int, ...], rank: int) -> bool:
    found = re.search(r"\.lora_([ab])(\.weight)?$", text)
    if not found or len(shape) != 2:
        return False
    own, other = (0, 1) if found.group(1) == "a" else (1, 0)
    return shape[own] != rank and shape[other] == rank


def renamed_tensors(tensors: Mapping[str, Tensor], stored: Mapping[str, StoredName]) -> LazyTensors:
    """Tensors of an adapter's file by PEFT's names. Reading one raises ModelError if the file holds it twice, differently."""

    def read(name: str) -> Tensor:
        found = stored[name]
        tensor = tensors[found.text]
        if found.copy and not bool((tensors[found.copy] == tensor).all()):
            raise ModelError(f"the adapter holds {name} twice, as {found.text} and {found.copy}, and they differ")
        return tensor.t().contiguous() if found.transposed else tensor

    return LazyTensors(stored, read)
