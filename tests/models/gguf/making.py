"""Small GGUF files as llama.cpp's converter writes them, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quantize
from gguf.quants import QuantError

HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, LAYERS = 256, 256, 4, 2, 1
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE (GPT-2's table)."""
    rest = iter(range(256, 512))
    return [chr(each) if each in BYTES else chr(next(rest)) for each in range(256)]


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *byte_letters(), "he", "ll", "hell", "Ġhe"]
MERGES = ["h e", "l l", "he ll", "Ġ he"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def metadata(**changed: Any) -> dict[str, Any]:
    """Keys and values of a small model; None leaves a key out."""
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": 512,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
        **{key.replace("__", "."): value for key, value in changed.items()},
    }


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensors of the model by GGUF name."""
    layer = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "attn_v": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (FEED_FORWARD, HIDDEN),
        "ffn_up": (FEED_FORWARD, HIDDEN),
        "ffn_down": (HIDDEN, FEED_FORWARD),
    }
    layers = {f"blk.{index}.{name}.weight": shape for index in range(LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,), **layers}


def write_gguf(
    path: Path, kind: str = "F16", architecture: str = "llama", more: dict[str, Any] | None = None, **changed: Any
) -> Path:
    """Write a model whose matrices are of this kind; `more` adds tensors."""
    writer, values = GGUFWriter(path, architecture), metadata(**changed)
    for key, value in values.items():
        if value is not None:
            _add(writer, key.replace("llama.", f"{architecture}.", 1) if key.startswith("llama.") else key, value)
    rng = np.random.default_rng(0)
    for name, shape in shapes(len(values["tokenizer.ggml.tokens"])).items():
        _add_tensor(writer, name, rng.normal(0, 0.05, shape).astype(np.float32), kind if len(shape) == 2 else "F32", rng)
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _add_tensor(writer: GGUFWriter, name: str, tensor: np.ndarray[Any, Any], kind: str, rng: np.random.Generator) -> None:
    if kind == "F32":
        writer.add_tensor(name, tensor)
        return
    if kind == "F16":
        writer.add_tensor(name, tensor.astype(np.float16))
        return
    quantization = GGMLQuantizationType[kind]
    try:
        stored = quantize(tensor, quantization)
    except (NotImplementedError, QuantError):  # the library reads K-quants and does not write them: any bytes are valid
        block, size = GGML_QUANT_SIZES[quantization]
        stored = rng.integers(0, 60, (tensor.shape[0], tensor.shape[1] // block * size), dtype=np.uint8)
    writer.add_tensor(name, stored, raw_dtype=quantization)
