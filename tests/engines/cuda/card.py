"""A graphics card that computes nothing: what it is asked for is noted down, in order, with every argument.

It stands in for the driver and for torch.cuda, so that the code that leads a card runs where there is none, on tensors of the
CPU. Weights are sizes alone.
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
from qlora_chat.engines.cuda.weights.packing import BLOCK_INPUTS, Packed, interleaved, natural, pairs_up, rotary
from qlora_chat.engines.cuda.weights.tiling import TILE_BYTES
from qlora_chat.models.weights.shape import LlamaShape

PROCESSORS, SHARED_BYTES = 16, 232_448


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    name: str
    defines: str
    """What the source was compiled for, as NAME=value."""
    grid: tuple[int, int, int]
    threads: int
    early: bool
    arguments: Any


@dataclass
class NotedCard:
    """What has been asked of it so far."""

    major: int
    """Of its compute capability: 9 is a Hopper."""
    shared_bytes: int = SHARED_BYTES
    """Of shared memory a block."""
    did: list[str] = field(default_factory=list)
    """In order: compile, begin, launch, end (of a graph's capture), replay."""
    launches: list[Launch] = field(default_factory=list)
    fails: list[tuple[str, Exception]] = field(default_factory=list)
    """What raises once, as `did` has it, and with what."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Be the card of this test."""
        graphs = iter(range(1000))
        patch.setattr(torch.cuda, "get_device_properties", lambda device: self._properties())
        patch.setattr(torch.cuda, "Stream", lambda device: _Anything())
        patch.setattr(torch.cuda, "Event", lambda **_: _Anything())
        patch.setattr(torch.cuda, "CUDAGraph", lambda: _Graph(next(graphs), self.did))
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: _Anything())
        patch.setattr(torch.cuda, "stream", _stream)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(driver, "architecture", lambda: f"sm_{self.major}0")
        patch.setattr(driver, "compiled", self._compiled)
        patch.setattr(kernels, "Kernel", lambda code, name, shared: _Kernel(code, name, self))

    def do(self, what: str) -> None:
        """Note it, and fail where this test wants that."""
        self.did.append(what)
        if self.fails and self.fails[0][0] == what:
            raise self.fails.pop(0)[1]

    def names(self) -> list[str]:
        """Of the kernels launched so far."""
        return [each.name for each in self.launches]

    def _properties(self) -> SimpleNamespace:
        return SimpleNamespace(
            multi_processor_count=PROCESSORS, shared_memory_per_block_optin=self.shared_bytes, major=self.major
        )

    def _compiled(self, source: str, defines: Mapping[str, int], arch: str, folder: Path | None) -> bytes:
        self.do(f"compile {source}")
        return " ".join(f"{name}={value}" for name, value in defines.items()).encode()


@dataclass(frozen=True)
class _Kernel:
    code: bytes
    name: str
    card: NotedCard

    def __call__(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: ctypes.Structure,
        *,
        shared_bytes: int = 0,
        early: bool = False,
    ) -> None:
        self.card.do(f"launch {self.name}")
        copy = type(arguments).from_buffer_copy(arguments)
        self.card.launches.append(Launch(self.name, self.code.decode(), grid, threads, early, copy))

    def bound(self, threads: int, arguments: ctypes.Structure) -> Callable[[tuple[int, int, int], int], None]:
        return lambda grid, stream: self(grid, threads, arguments)


@dataclass(frozen=True)
class _Graph:
    number: int
    did: list[str]

    def capture_begin(self, capture_error_mode: str) -> None:
        self.did.append(f"begin {self.number}")

    def capture_end(self) -> None:
        self.did.append(f"end {self.number}")

    def replay(self) -> None:
        self.did.append(f"replay {self.number}")


class _Anything:
    """A stream or an event: nothing is ever under way."""

    cuda_stream = 0

    def synchronize(self) -> None: ...
    def record(self, stream: _Anything) -> None: ...
    def wait_stream(self, stream: _Anything) -> None: ...


@contextlib.contextmanager
def _stream(stream: _Anything) -> Iterator[None]:
    yield


def weights_of_sizes(layers: int = 2) -> CudaWeights:
    """LLaMA's layers in NF4, narrow but for what one kernel for all layers asks: heads of 128, whole rings of blocks."""
    hidden, heads, head_dim, feed_forward, vocabulary = 2048, 16, 128, 4096, 320
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    shape = LlamaShape(layers, hidden, heads, heads, head_dim, vocabulary, 32, 1e-5, False, rope)

    def norm() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    made = tuple(
        CudaLayer(
            norm(), matrix("nf4", rotary(heads, heads, head_dim), hidden), matrix("nf4", natural(hidden), hidden),
            norm(), matrix("nf4", interleaved(feed_forward), hidden), matrix("nf4", natural(hidden), feed_forward),
        )
        for _ in range(layers)
    )  # fmt: skip
    embeddings = Embeddings(torch.empty(vocabulary, hidden, dtype=torch.int8), torch.empty(vocabulary))
    return CudaWeights(shape, feed_forward, embeddings, made, norm(), matrix("int8", natural(vocabulary), hidden))


def matrix(kind: str, order: list[int], inputs: int) -> Product:
    """A product of the right size, whose weights are whatever memory held."""
    rows, blocks = len(order), inputs // BLOCK_INPUTS[kind]
    nf4 = kind == "nf4"
    return Product(Packed(
        kind, rows, inputs, torch.empty(rows // 16, blocks * TILE_BYTES[kind], dtype=torch.uint8),
        torch.tensor(order, dtype=torch.int32), nested=torch.empty(rows, 4) if nf4 else None,
        code=torch.empty(16 + 256) if nf4 else None, row_scales=None if nf4 else torch.empty(rows), paired=pairs_up(blocks),
    ))  # fmt: skip
