"""Kernel arguments, as the sources in csrc/ declare them.

Scope: layouts alone. Knows no buffers and no launches.
"""

from __future__ import annotations

import ctypes

from qlora_chat.engines.core.c_declarations import structure
from qlora_chat.engines.cuda.runtime.driver import SOURCES

ROPE_AND_CACHE, ADD_TO_RESIDUAL, SILU_TIMES_UP, STORE, STORE_QKV = range(5)
"""Epilogues of a product, as in epilogue.cuh."""
_TEXT = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.cu*")))

RowsArguments = structure("Rows", _TEXT)
LoraArguments = structure("Lora", _TEXT)
LoraProductArguments = structure("LoraProduct", _TEXT)
ProductArguments = structure("Product", _TEXT)
DequantizeArguments = structure("Dequantize", _TEXT)
AttentionArguments = structure("Attention", _TEXT)
QuantizeKVArguments = structure("QuantizeKV", _TEXT)
EmbedArguments = structure("Embed", _TEXT)
SampleArguments = structure("Sample", _TEXT)
AddNormArguments = structure("AddNorm", _TEXT)
RopeAndCacheArguments = structure("RopeAndCache", _TEXT)
HeadNormsArguments = structure("HeadNorms", _TEXT)
SiluTimesUpArguments = structure("SiluTimesUp", _TEXT)


def layers_arguments(layers: int) -> type[ctypes.Structure]:
    """Layers in decode_layers.cu, compiled for so many layers."""
    return structure("Layers", _TEXT, LAYERS=layers)
