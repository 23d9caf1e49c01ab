"""The compiled kernels of a process, each loaded once and compiled in parallel.

Scope: which machine code exists and is loaded. Knows nothing of what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from qlora_chat.engines.cuda.runtime import driver
from qlora_chat.engines.cuda.runtime.driver import Kernel, KernelError
from qlora_chat.engines.cuda.weights.tiling import Defines

MIN_CAPABILITY = (8, 0)
"""First compute capability whose tensor cores have bf16."""
KernelKey = tuple[str, str, Defines]
"""Source file, function, and the source's defines."""
MAX_SHARED_MEMORY_KERNELS = ("product", "layers")
"""Functions launched with as much shared memory as the card gives a block."""


class Kernels:
    """Compiles and loads kernels at their first use."""

    def __init__(self, cache_folder: Path | None, shared_limit: int) -> None:
        """`shared_limit`: bytes of dynamic shared memory that a block may have."""
        self._folder = cache_folder / "kernels" if cache_folder else None
        self._shared_limit = shared_limit
        self._codes: dict[tuple[str, Defines], bytes] = {}
        self._loaded: dict[KernelKey, Kernel] = {}

    def get(self, source: str, name: str, defines: Defines = ()) -> Kernel:
        """A loaded kernel, compiled now if need be. KernelError says why it cannot be."""
        key = source, name, defines
        if key not in self._loaded:
            shared = self._shared_limit if name in MAX_SHARED_MEMORY_KERNELS else 0
            self._loaded[key] = Kernel(self._machine_code(key), name, shared)
        return self._loaded[key]

    def load(self, keys: Sequence[KernelKey]) -> None:
        """Compile the missing ones in parallel, and load all."""
        missing = self.missing(keys)
        if missing:
            with ThreadPoolExecutor(len(missing)) as pool:
                list(pool.map(self._machine_code, missing))
        for key in keys:
            self.get(*key)

    def compile_one(self, keys: Sequence[KernelKey]) -> None:
        """Compile one of the missing ones, on any thread: NVRTC releases the interpreter lock."""
        for key in self.missing(keys)[:1]:
            self._machine_code(key)

    def missing(self, keys: Sequence[KernelKey]) -> list[KernelKey]:
        """Those not compiled yet, one for each source and its defines."""
        compilations = {(source, defines): (source, name, defines) for source, name, defines in keys}
        return [key for compilation, key in compilations.items() if compilation not in self._codes]

    def _machine_code(self, key: KernelKey) -> bytes:
        source, _, defines = key
        if (source, defines) not in self._codes:
            self._codes[source, defines] = driver.load_or_compile(source, dict(defines), driver.architecture(), self._folder)
        return self._codes[source, defines]


def check_device(cache_folder: Path | None) -> None:
    """Compile and load a small kernel. KernelError where this machine cannot."""
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        minimum, actual = (".".join(map(str, each)) for each in (MIN_CAPABILITY, capability))
        raise KernelError(f"they need compute capability {minimum} and newer (RTX 30, A100); this card has {actual}")
    Kernels(cache_folder, 0).get("sampling.cu", "embed", (("VOCABULARY", 1024),))
