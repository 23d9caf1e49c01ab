"""The kernels that a model needs, each compiled once, several side by side.

Scope: which machine code has been made and loaded in this process. Knows nothing of what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from qlora_chat.engines.cuda.runtime import driver
from qlora_chat.engines.cuda.runtime.driver import Kernel, KernelError
from qlora_chat.engines.cuda.weights.tiling import Defines

LEAST_CAPABILITY = (8, 0)
"""The first with bf16 in its tensor cores."""
Wanted = tuple[str, str, Defines]
"""Source file, function, and what the source is compiled for."""
WITH_ALL_SHARED_MEMORY = ("product", "layers")
"""Functions that are launched with as much shared memory as the card gives a block."""


class Kernels:
    """Compiles, loads and remembers."""

    def __init__(self, cache_folder: Path | None, shared_limit: int) -> None:
        """`shared_limit`: most dynamic shared memory of a block, in bytes."""
        self._folder = cache_folder / "kernels" if cache_folder else None
        self._shared_limit = shared_limit
        self._codes: dict[tuple[str, Defines], bytes] = {}
        self._loaded: dict[Wanted, Kernel] = {}

    def get(self, source: str, name: str, defines: Defines = ()) -> Kernel:
        """A kernel, compiled now if it has not been. KernelError says why it cannot be."""
        key = source, name, defines
        if key not in self._loaded:
            shared = self._shared_limit if name in WITH_ALL_SHARED_MEMORY else 0
            self._loaded[key] = Kernel(self._machine_code(key), name, shared)
        return self._loaded[key]

    def prepare(self, wanted: Sequence[Wanted]) -> None:
        """Compile those that are missing side by side, and load them."""
        missing = self._missing(wanted)
        if missing:
            with ThreadPoolExecutor(len(missing)) as pool:
                list(pool.map(self._machine_code, missing))
        for key in wanted:
            self.get(*key)

    def compiled(self, wanted: Sequence[Wanted]) -> bool:
        """Whether nothing of this has to be compiled."""
        return not self._missing(wanted)

    def compile(self, wanted: Sequence[Wanted]) -> None:
        """One of those that are missing, on any thread: NVRTC leaves the interpreter alone."""
        for key in self._missing(wanted)[:1]:
            self._machine_code(key)

    def _missing(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """A source that several functions are wanted of comes once."""
        missing = {(source, defines): (source, name, defines) for source, name, defines in wanted}
        return [key for code, key in missing.items() if code not in self._codes]

    def _machine_code(self, key: Wanted) -> bytes:
        source, _, defines = key
        if (source, defines) not in self._codes:
            self._codes[source, defines] = driver.compiled(source, dict(defines), driver.architecture(), self._folder)
        return self._codes[source, defines]


def try_kernels(cache_folder: Path | None) -> None:
    """Compile and load a small kernel. KernelError where this machine cannot; nothing has been changed then."""
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        least, has = (".".join(map(str, each)) for each in (LEAST_CAPABILITY, capability))
        raise KernelError(f"they are for cards of compute capability {least} and newer (RTX 30, A100); this one has {has}")
    Kernels(cache_folder, 0).get("sampling.cu", "embed", (("VOCABULARY", 1024),))
