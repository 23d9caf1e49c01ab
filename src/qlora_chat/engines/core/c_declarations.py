"""Structures and functions of C++ and CUDA sources for ctypes, read from the sources themselves.

Scope: declarations as the sources of engines/cpu/csrc and engines/cuda/csrc write them: one a line, numbers, pointers, arrays
and structures of these. A pointer is an address here, whatever it points to. Compiles nothing.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TYPES: dict[str, Any] = {
    "void": None, "int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "u64": ctypes.c_uint64,
    "size_t": ctypes.c_uint64, "float": ctypes.c_float, "double": ctypes.c_double,
}  # fmt: skip
FUNCTION = re.compile(r"^(\w[\w *]*[ *])(\w+)\(([^)]*)\) \{", re.MULTILINE)
VARIABLES = re.compile(r"(.*?[ *])(\w+(?:\[.+?\])?(?:, \w+(?:\[.+?\])?)*)")
"""Type, and one name or several, each of which may be an array."""


@cache
def structure(name: str, text: str, **constants: int) -> type[ctypes.Structure]:
    """The structure `name` of a source, the same class at every call, with the fields of every #if; `constants`: values of the
    names in its array sizes. LookupError for one that is not declared."""
    found = re.search(rf"^struct (?:__align__\(\d+\) )?{name} \{{$(.*?)^\}};", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"the sources declare no structure {name}")
    body = re.sub(r"//.*|^#.*", "", found[1], flags=re.MULTILINE)
    fields = [field for each in body.split(";") if each.strip() for field in _fields(each.strip(), text, constants)]
    return type(name, (ctypes.Structure,), {"__slots__": (), "_fields_": fields})  # slots: a name that is no field is an error


def declare_functions(library: ctypes.CDLL, text: str) -> ctypes.CDLL:
    """The library, whose functions now have the types that its source declares as extern "C"."""
    for result, name, parameters in FUNCTION.findall(text.partition('extern "C" {')[2]):
        function = getattr(library, name)
        function.restype = _type(result, text)
        function.argtypes = [_type(each.rpartition(" ")[0], text) for each in parameters.split(",") if each]
    return library


def address(tensor: Tensor | None) -> int | None:
    """Address of a tensor's data for a c_void_p field; None is null."""
    return None if tensor is None else tensor.data_ptr()


def _fields(declaration: str, text: str, constants: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """(name, type) of each field of one declaration."""
    found = VARIABLES.fullmatch(declaration)
    if found is None:
        raise LookupError(f"{declaration!r} is no declaration that this program reads")
    kind = _type(found[1], text)
    for each in found[2].split(", "):
        name, _, size = each.rstrip("]").partition("[")
        factors = [int(factor) if factor.isdigit() else constants[factor] for factor in size.split(" * ")] if size else None
        yield name, kind if factors is None else kind * math.prod(factors)


def _type(declared: str, text: str) -> Any:
    kind = declared.replace("const ", "").strip()
    if "*" in kind:
        return ctypes.c_void_p
    return TYPES[kind] if kind in TYPES else structure(kind, text)
