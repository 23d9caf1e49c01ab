"""CUDA source -> machine code -> launches, with what PyTorch brings: NVRTC and the driver, through ctypes.

Scope: compiling once (the result is kept in the user's cache folder), loading, launching. No compiler and no headers are
needed on the machine. Knows nothing of what the kernels compute.
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

SOURCES = Path(__file__).parents[1] / "csrc"
ELF = b"\x7fELF"
"""How machine code begins."""
PROGRAMMATIC_SERIALIZATION = 6
MOST_SHARED_BYTES = 8
"""Attributes of a launch and of a function, by their numbers in cuda.h."""


class KernelError(RuntimeError):
    """A kernel cannot be compiled, loaded or launched here; the engine goes on without it."""


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's data begins, for a c_void_p field; None is null."""
    return None if tensor is None else tensor.data_ptr()


class Kernel:
    """One function of a compiled module, ready to be launched on the current device."""

    def __init__(self, code: bytes, name: str, most_shared_bytes: int = 0) -> None:
        """Load machine code that `compiled` gave, for launches with up to so much dynamic shared memory a block. KernelError
        says what the driver said."""
        self.name = name
        module = ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), code), f"loading {name}")
        self._function = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()), f"finding {name}")
        if most_shared_bytes > 48 * 1024:
            done = _driver().cuFuncSetAttribute(self._function, MOST_SHARED_BYTES, most_shared_bytes)
            _check(done, f"giving {name} {most_shared_bytes:,} bytes of shared memory")

    def __call__(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: ctypes.Structure,
        *,
        shared_bytes: int = 0,
        early: bool = False,
    ) -> None:
        """Launch on PyTorch's current stream. `early`: take place on the card before the kernel before has ended (Hopper
        and newer), which the kernel must wait for itself."""
        attribute = _Attribute(PROGRAMMATIC_SERIALIZATION, 0, _AttributeValue(1))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        attributes = ctypes.pointer(attribute) if early else None
        config = _LaunchConfig(*grid, threads, 1, 1, shared_bytes, stream, attributes, int(early))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _check(_driver().cuLaunchKernelEx(ctypes.byref(config), self._function, parameters, None), f"launching {self.name}")

    def bound(self, threads: int, arguments: ctypes.Structure) -> Launch:
        """The kernel with its block and arguments, to be launched many times."""
        return Launch(self.name, self._function, threads, arguments)


class Launch:
    """A kernel with all but its grid, made once: whoever launches hundreds would spend most of the time making them.

    Arguments are copied at each launch, so their fields may be set anew for the next one.
    """

    def __init__(self, name: str, function: ctypes.c_void_p, threads: int, arguments: ctypes.Structure) -> None:
        self._name, self._arguments = name, arguments
        self._config = _LaunchConfig(1, 1, 1, threads, 1, 1, 0, None, None, 0)
        self._parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._ready = ctypes.byref(self._config), function, self._parameters, None
        self._launch = _driver().cuLaunchKernelEx

    def __call__(self, grid: tuple[int, int, int], stream: int) -> None:
        """Launch on the stream with this handle of the driver's."""
        config = self._config
        config.grid_x, config.grid_y, config.grid_z = grid
        config.stream = stream
        if result := self._launch(*self._ready):
            _check(result, f"launching {self._name}")


def architecture() -> str:
    """The current device's, as NVRTC names it: sm_90 on an H100."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def compiled(source: str, defines: Mapping[str, int], arch: str, cache_folder: Path | None) -> bytes:
    """A source file of this package as machine code; kept in `cache_folder` under a hash of all that went into it."""
    text, headers = (SOURCES / source).read_bytes(), {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.cuh"))}
    options = [f"--gpu-architecture={arch}", "-std=c++17", *(f"-D{key}={value}" for key, value in sorted(defines.items()))]
    version = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(*map(ctypes.byref, version))
    made_of = repr((text, headers, options, [each.value for each in version])).encode()
    kept = cache_folder / f"{hashlib.sha256(made_of).hexdigest()}.cubin" if cache_folder else None
    if kept and kept.is_file() and (code := kept.read_bytes()).startswith(ELF):
        return code  # a power cut leaves files of zeros
    code = _compile(source, text, headers, options)
    if kept:
        _keep(kept, code)
    return code


def _compile(name: str, text: bytes, headers: Mapping[str, bytes], options: Sequence[str]) -> bytes:
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    strings = ctypes.c_char_p * len(headers)
    contents, names = strings(*headers.values()), strings(*(each.encode() for each in headers))
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), len(headers), contents, names)
    if created:
        raise KernelError(f"NVRTC cannot begin with {name} (error {created})")
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


def _keep(path: Path, code: bytes) -> None:
    """Whole or not at all; a cache that cannot be written costs seconds at the next start, nothing else."""
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
    said = ctypes.c_char_p()
    _driver().cuGetErrorString(result, ctypes.byref(said))
    raise KernelError(f"{doing}: {said.value.decode() if said.value else f'error {result}'}")


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
    """By name, as PyTorch itself loads it; then where its package lies."""
    major = (torch.version.cuda or "13").split(".")[0]
    if sys.platform == "win32":
        return [f"nvrtc64_{major}0_0.dll"]
    package = find_spec("nvidia")
    folders = [Path(each) for each in (package.submodule_search_locations or ())] if package else []
    found = [str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/libnvrtc.so.{major}"))]
    return [*found, f"libnvrtc.so.{major}", "libnvrtc.so"]


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
