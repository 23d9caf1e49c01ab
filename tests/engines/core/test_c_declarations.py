"""Declarations of the C++ and CUDA sources as ctypes reads them."""

from __future__ import annotations

import ctypes

import pytest

from qlora_chat.engines.core.c_declarations import declare_functions, structure

SOURCE = """
struct Inner {
  const int* const* slots;  // [R]; -1: padding
  float eps;
};

struct __align__(16) Outer {
  const u8* tiles[LAYERS * 4];  // of each layer; see Inner
  int rows, columns[4];
  Inner inner;
#if KV8
  float* scales;  // where the cache is int8
#endif
  size_t a, b;
};
"""


def layout(kind: type[ctypes.Structure]) -> dict[str, tuple[int, int]]:
    return {name: (getattr(kind, name).offset, getattr(kind, name).size) for name, *_ in kind._fields_}


def test_a_structure_has_the_fields_of_the_source_where_a_compiler_puts_them() -> None:
    assert layout(structure("Inner", SOURCE)) == {"slots": (0, 8), "eps": (8, 4)}
    assert layout(structure("Outer", SOURCE, LAYERS=2)) == {
        "tiles": (0, 64), "rows": (64, 4), "columns": (68, 16), "inner": (88, 16), "scales": (104, 8), "a": (112, 8),
        "b": (120, 8),
    }  # fmt: skip
    assert layout(structure("Outer", SOURCE, LAYERS=3))["rows"] == (96, 4)


def test_a_structure_can_be_a_field_of_another() -> None:
    outer = structure("Outer", SOURCE, LAYERS=2)(inner=structure("Inner", SOURCE)(eps=0.5))
    assert outer.inner.eps == 0.5
    with pytest.raises(AttributeError, match="epsilon"):
        structure("Inner", SOURCE)(epsilon=0.5)
    with pytest.raises(AttributeError, match="column"):
        outer.column = 1


def test_what_is_not_declared_or_cannot_be_read_is_named() -> None:
    with pytest.raises(LookupError, match="declare no structure Middle"):
        structure("Middle", SOURCE)
    with pytest.raises(LookupError, match=r"'int \(\*call\)\(\)' is no declaration"):
        structure("Odd", "struct Odd {\n  int (*call)();\n};\n")


def test_functions_get_the_types_of_the_source() -> None:
    source = """
extern "C" {
// Declared in two lines.
int64_t atoll(const char* text,
              int base, float eps) {
}
void srand(int seed) {
}
}
"""
    library = declare_functions(ctypes.CDLL(None), source)
    assert library.atoll.restype is ctypes.c_int64
    assert library.atoll.argtypes == [ctypes.c_void_p, ctypes.c_int, ctypes.c_float]
    assert library.srand.restype is None
    assert library.srand.argtypes == [ctypes.c_int]
