"""NVRTC and the CUDA driver through ctypes: CUDA source to machine code to launches.

Scope: compiling once (the result is stored in the user's cache folder), loading, launching, with the libraries that PyTorch
brings; the machine needs no compiler and no headers. Knows nothing of what the kernels compute.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from qlora_chat.models.trust import is_private

SOURCES = Path(__file__).parents[1] / "csrc"
ELF = b"\x7fELF"
"""First bytes of machine code."""
PROGRAMMATIC_SERIALIZATION = 6
MAX_SHARED_BYTES = 8
"""Numbers of attributes of a launch and of a function, from cuda.h."""


class KernelError(RuntimeError):
    """A kernel cannot be compiled, loaded or launched on this machine; the engine does without it."""


class Kernel:
    """A function of a module loaded on the current device."""

    def __init__(self, code: bytes, name: str, max_shared_bytes: int = 0) -> None:
        """Load machine code, for launches with up to `max_shared_bytes` of dynamic shared memory a block. KernelError with the
        driver's message."""
        self.name = name
        module = ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), code), f"loading {name}")
        self._function = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()), f"finding {name}")
        if max_shared_bytes > 48 * 1024:
            done = _driver().cuFuncSetAttribute(self._function, MAX_SHARED_BYTES, max_shared_bytes)
            _check(done, f"reserving {max_shared_bytes:,} bytes of shared memory for {name}")

    def __call__(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: ctypes.Structure,
        *,
        shared_bytes: int = 0,
        dependent_launch: bool = False,
    ) -> None:
        """Launch on PyTorch's current stream. `dependent_launch`: programmatic dependent launch (Hopper and newer): the kernel
        starts before the previous one has ended, and waits for it itself."""
        launch = Launch(self.name, self._function, threads, arguments, shared_bytes, dependent_launch)
        launch(grid, torch.cuda.current_stream().cuda_stream)

    def bind(self, threads: int, arguments: ctypes.Structure) -> Launch:
        """A launch with fixed threads and arguments, to be repeated."""
        return Launch(self.name, self._function, threads, arguments)


class Launch:
    """A launch that is built once and repeated with any grid: building hundreds would take longer than running them.

    Arguments are copied at each launch, so their fields may change before the next one.
    """

    def __init__(
        self, name: str, function: ctypes.c_void_p, threads: int, arguments: ctypes.Structure, shared_bytes: int = 0,
        dependent_launch: bool = False,
    ) -> None:  # fmt: skip
        self._name, self._arguments = name, arguments
        attribute = ctypes.pointer(_Attribute(PROGRAMMATIC_SERIALIZATION, 0, _AttributeValue(1))) if dependent_launch else None
        self._config = _LaunchConfig(1, 1, 1, threads, 1, 1, shared_bytes, None, attribute, int(dependent_launch))
        self._parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._call = ctypes.byref(self._config), function, self._parameters, None
        self._launch = _driver().cuLaunchKernelEx

    def __call__(self, grid: tuple[int, int, int], stream: int) -> None:
        """Launch on the stream with this driver handle."""
        config = self._config
        config.grid_x, config.grid_y, config.grid_z = grid
        config.stream = stream
        if result := self._launch(*self._call):
            _check(result, f"launching {self._name}")


def architecture() -> str:
    """Architecture of the current device as NVRTC names it: sm_90 on an H100."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def load_or_compile(source: str, defines: Mapping[str, int], arch: str, cache_folder: Path | None) -> bytes:
    """Machine code of a source file of this package, cached in `cache_folder` under a hash of sources, options and NVRTC."""
    text, headers = (SOURCES / source).read_bytes(), {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.cuh"))}
    options = [f"--gpu-architecture={arch}", "-std=c++17", *(f"-D{key}={value}" for key, value in sorted(defines.items()))]
    version = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(*map(ctypes.byref, version))
    inputs = repr((text, headers, options, [each.value for each in version])).encode()
    cached = cache_folder / f"{hashlib.sha256(inputs).hexdigest()}.cubin" if cache_folder else None
    if (
        cached and is_private(cached.parent) and is_private(cached) and (code := cached.read_bytes()).startswith(ELF)
    ):  # a power cut leaves files of zeros
        return code
    code = _compile(source, text, headers, options)
    if cached:
        _write_cache(cached, code)
    return code


def _compile(name: str, text: bytes, headers: Mapping[str, bytes], options: Sequence[str]) -> bytes:
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    strings = ctypes.c_char_p * len(headers)
    contents, names = strings(*headers.values()), strings(*(each.encode() for each in headers))
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), len(headers), contents, names)
    if created:
        raise KernelError(f"NVRTC cannot load {name} (error {created})")
    try:
        arguments = (ctypes.c_char_p * len(options))(*(each.encode() for each in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), arguments):
            raise KernelError(f"NVRTC cannot compile {name}: {_log(program)}")
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _log(program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _nvrtc().nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    _nvrtc().nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace")


def _write_cache(path: Path, code: bytes) -> None:
    """Write atomically; a failure only costs the next start some seconds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(code)
        os.replace(temporary, path)
    except OSError:
        return


def _check(result: int, doing: str) -> None:
    if result == 0:
        return
    message = ctypes.c_char_p()
    _driver().cuGetErrorString(result, ctypes.byref(message))
    raise KernelError(f"{doing}: {message.value.decode() if message.value else f'error {result}'}")


@cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as problem:
        raise KernelError(f"the CUDA driver cannot be loaded: {problem}") from problem


@cache
def _nvrtc() -> Any:
    for path in _nvrtc_candidates():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise KernelError("NVRTC, which PyTorch's CUDA builds bring, was not found; reinstall torch with CUDA")


def _nvrtc_candidates() -> list[str]:
    """Paths in its package, then the names that the loader knows."""
    major = (torch.version.cuda or "13").split(".")[0]
    if sys.platform == "win32":
        return [f"nvrtc64_{major}0_0.dll"]
    package = find_spec("nvidia")
    folders = [Path(each) for each in (package.submodule_search_locations or ())] if package else []
    paths = [str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/libnvrtc.so.{major}"))]
    return [*paths, f"libnvrtc.so.{major}", "libnvrtc.so"]


class _AttributeValue(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", _AttributeValue))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid_x", ctypes.c_uint), ("grid_y", ctypes.c_uint), ("grid_z", ctypes.c_uint),
        ("block_x", ctypes.c_uint), ("block_y", ctypes.c_uint), ("block_z", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint), ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)), ("attribute_count", ctypes.c_uint),
    )  # fmt: skip
