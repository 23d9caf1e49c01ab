"""A fake graphics card that computes nothing and records every launch, in order, with all arguments.

It replaces the driver and torch.cuda, so that the host code of the CUDA path runs without a card, on tensors of the CPU.
Weights have sizes but no values.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_chat.engines.cuda import kernels
from qlora_chat.engines.cuda.runtime import driver
from qlora_chat.engines.cuda.weights.model import CudaLayer, CudaWeights, Embeddings, Product
from qlora_chat.engines.cuda.weights.packing import (
    BLOCK_INPUTS,
    Packed,
    interleaved_order,
    is_paired,
    natural_order,
    rotary_order,
)
from qlora_chat.engines.cuda.weights.tiling import TILE_BYTES
from qlora_chat.models.weights.shape import LlamaShape

PROCESSORS, SHARED_BYTES = 16, 232_448


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    name: str
    defines: str
    """Defines of the source, as NAME=value."""
    grid: tuple[int, int, int]
    threads: int
    dependent_launch: bool
    arguments: Any


@dataclass
class RecordingCard:
    """Records compilations, launches and graphs."""

    major: int
    """Major compute capability: 9 is a Hopper."""
    shared_bytes: int = SHARED_BYTES
    """Shared memory of a block."""
    events: list[str] = field(default_factory=list)
    """In order: compile, begin, launch, end (of a graph's capture), replay."""
    launches: list[Launch] = field(default_factory=list)
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    """Events that raise once, and their exceptions."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replace torch.cuda and the driver for this test."""
        graphs = iter(range(1000))
        patch.setattr(torch.cuda, "get_device_properties", lambda device: self._properties())
        patch.setattr(torch.cuda, "Stream", lambda device: _Idle())
        patch.setattr(torch.cuda, "Event", lambda **_: _Idle())
        patch.setattr(torch.cuda, "CUDAGraph", lambda: _Graph(next(graphs), self.events))
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: _Idle())
        patch.setattr(torch.cuda, "stream", _stream)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(driver, "architecture", lambda: f"sm_{self.major}0")
        patch.setattr(driver, "load_or_compile", self._compiled)
        patch.setattr(kernels, "Kernel", lambda code, name, shared: _Kernel(code, name, self))

    def record(self, event: str) -> None:
        """Record an event, or raise its failure."""
        self.events.append(event)
        if self.failures and self.failures[0][0] == event:
            raise self.failures.pop(0)[1]

    def names(self) -> list[str]:
        """Names of the launched kernels, in order."""
        return [each.name for each in self.launches]

    def _properties(self) -> SimpleNamespace:
        return SimpleNamespace(
            multi_processor_count=PROCESSORS, shared_memory_per_block_optin=self.shared_bytes, major=self.major
        )

    def _compiled(self, source: str, defines: Mapping[str, int], arch: str, folder: Path | None) -> bytes:
        self.record(f"compile {source}")
        return " ".join(f"{name}={value}" for name, value in defines.items()).encode()


@dataclass(frozen=True)
class _Kernel:
    code: bytes
    name: str
    card: RecordingCard

    def __call__(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: ctypes.Structure,
        *,
        shared_bytes: int = 0,
        dependent_launch: bool = False,
    ) -> None:
        self.card.record(f"launch {self.name}")
        copy = type(arguments).from_buffer_copy(arguments)
        self.card.launches.append(Launch(self.name, self.code.decode(), grid, threads, dependent_launch, copy))

    def bind(self, threads: int, arguments: ctypes.Structure) -> Callable[[tuple[int, int, int], int], None]:
        return lambda grid, stream: self(grid, threads, arguments)


@dataclass(frozen=True)
class _Graph:
    number: int
    events: list[str]

    def capture_begin(self, capture_error_mode: str) -> None:
        self.events.append(f"begin {self.number}")

    def capture_end(self) -> None:
        self.events.append(f"end {self.number}")

    def replay(self) -> None:
        self.events.append(f"replay {self.number}")


class _Idle:
    """A stream or an event with nothing in flight."""

    cuda_stream = 0

    def synchronize(self) -> None: ...
    def record(self, stream: _Idle) -> None: ...
    def wait_stream(self, stream: _Idle) -> None: ...


@contextlib.contextmanager
def _stream(stream: _Idle) -> Iterator[None]:
    yield


def fake_weights(layers: int = 2) -> CudaWeights:
    """A narrow LLaMA in NF4 that the kernel of all layers supports: heads of 128, enough blocks for its ring."""
    hidden, heads, head_dim, feed_forward, vocabulary = 2048, 16, 128, 4096, 320
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    shape = LlamaShape(layers, hidden, feed_forward, heads, heads, head_dim, vocabulary, 32, 1e-5, False, rope)

    def norm() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    decoder_layers = tuple(
        CudaLayer(
            norm(), matrix("nf4", rotary_order(heads, heads, head_dim), hidden), matrix("nf4", natural_order(hidden), hidden),
            norm(), matrix("nf4", interleaved_order(feed_forward), hidden), matrix("nf4", natural_order(hidden), feed_forward),
        )
        for _ in range(layers)
    )  # fmt: skip
    embeddings = Embeddings(torch.empty(vocabulary, hidden, dtype=torch.int8), torch.empty(vocabulary))
    return CudaWeights(shape, embeddings, decoder_layers, norm(), matrix("int8", natural_order(vocabulary), hidden))


def matrix(kind: str, order: list[int], inputs: int) -> Product:
    """A product of the right size with uninitialized weights."""
    rows, blocks = len(order), inputs // BLOCK_INPUTS[kind]
    nf4 = kind == "nf4"
    return Product(Packed(
        kind, rows, inputs, torch.empty(rows // 16, blocks * TILE_BYTES[kind], dtype=torch.uint8),
        torch.tensor(order, dtype=torch.int32), nested=torch.empty(rows, 4) if nf4 else None,
        code=torch.empty(16 + 256) if nf4 else None, row_scales=None if nf4 else torch.empty(rows), paired=is_paired(blocks),
    ))  # fmt: skip
