"""A GGUF file: its metadata and its tensors, checked before anything is computed.

Scope: the file format, through the gguf library, with bounds that the library lacks. Knows nothing of tokenizers or caches.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, dequantize
from gguf.gguf_reader import ReaderTensor
from numpy.typing import NDArray

from qlora_chat.models import ModelError

MAX_ARRAY = 1_000_000
"""Entries of one metadata array; the largest vocabularies have 262,144 tokens and twice as many merges."""
READABLE = frozenset(
    GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
)
UNQUANTIZED = frozenset(GGMLQuantizationType[name] for name in ("F32", "F16", "BF16"))


class _BoundedReader(GGUFReader):
    """GGUFReader that stops at the end of the file and at absurd array lengths; the library's own would read on for hours."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("it ends in the middle of a value")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == GGUFValueType.ARRAY and (length := int(self._get(orig_offs + 4, np.uint64)[0])) > MAX_ARRAY:
            raise ValueError(f"a list would have {length:,} entries, and at most {MAX_ARRAY:,} are read")
        return super()._get_field_parts(orig_offs, raw_type)


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file, dequantised on access."""

    name: str
    shape: tuple[int, ...]
    """In torch's order: rows first."""
    kind: str
    """Name of its type, such as Q4_1."""
    _raw: ReaderTensor

    @property
    def is_quantized(self) -> bool:
        """True for block formats, which have to be dequantised."""
        return self._raw.tensor_type not in UNQUANTIZED

    def read(self) -> NDArray[Any]:
        """Values: float16 where it is stored so, else float32."""
        data = self._raw.data
        if self._raw.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return np.array(data).reshape(self.shape)
        return dequantize(data, self._raw.tensor_type).reshape(self.shape)


class GgufFile:
    """The metadata and tensors of one file."""

    def __init__(self, path: Path) -> None:
        """ModelError for a file that is missing, truncated, or no GGUF, and for a tensor type that is not read."""
        self.path = path
        try:
            self._reader = _BoundedReader(path)
            tensors = self._reader.tensors
        except Exception as problem:  # the library raises whatever numpy does
            raise ModelError(
                f"{path} cannot be read as GGUF ({str(problem)[:120] or type(problem).__name__}); fetch it again"
            ) from problem
        self.tensors: Mapping[str, GgufTensor] = {
            each.name: GgufTensor(each.name, tuple(int(size) for size in reversed(each.shape)), each.tensor_type.name, each)
            for each in tensors
        }
        for each in tensors:
            if each.tensor_type not in READABLE:
                names = ", ".join(sorted(kind.name for kind in READABLE))
                raise ModelError(
                    f"{path.name} stores {each.name} as {each.tensor_type.name}, which is not read; use one of {names}"
                )

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Values by key. ModelError for one that cannot be read."""
        try:
            return {key: field.contents() for key, field in self._reader.fields.items()}
        except Exception as problem:
            raise ModelError(
                f"the metadata of {self.path} cannot be read ({str(problem)[:120]}); fetch the file again"
            ) from problem

    def text(self, key: str) -> str | None:
        """A metadata value that is text; None without it or for another kind."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None
