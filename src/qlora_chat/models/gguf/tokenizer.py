"""GGUF metadata -> tokenizer.json, tokenizer_config.json and the chat template.

Scope: byte-level BPE with the pre-tokenizers of the LLaMA family, and SentencePiece BPE. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from qlora_chat.models import ModelError
from qlora_chat.models.cache import write_json
from qlora_chat.models.gguf.file import GgufFile
from qlora_chat.models.tokenizer.sentencepiece import Pieces, byte_fallback_bpe, put_in_front

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Values of tokenizer.ggml.token_type."""


def _tiktoken(digits: str) -> str:
    """Pattern of the words of Llama 3 and Qwen, which differ in how many digits make one."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digit_by_digit() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


PRE_TOKENIZERS = {
    "gpt-2": _gpt2,
    "smollm": _digit_by_digit,
    "llama-bpe": lambda: _split(_tiktoken(r"\p{N}{1,3}")),
    "qwen2": lambda: _split(_tiktoken(r"\p{N}")),
}
"""By tokenizer.ggml.pre."""


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer's files into `folder`. ModelError for a kind that is not read, and for a broken one."""
    tokenizer_of(file.metadata, file.path.name).save(str(folder / "tokenizer.json"))
    _write_config(file, folder)


def tokenizer_of(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer that a file's metadata describe; `name` is the file's, for errors.

    ModelError for a kind that is not read, and for a broken one.
    """
    try:
        match kind := metadata.get("tokenizer.ggml.model"):
            case "gpt2":
                tokenizer = _byte_level(metadata, name)
            case "llama":
                space_in_front = metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
                tokenizer = byte_fallback_bpe(_pieces(metadata), space_in_front)
            case _:
                raise ModelError(f"{name} has a tokenizer of kind {kind!r}; gpt2 and llama are read")
        for token in _added(metadata, USER_DEFINED):
            tokenizer.add_tokens([token])
    except ModelError:
        raise
    except Exception as problem:  # the library raises plain Exception for a broken vocabulary
        raise ModelError(f"the tokenizer in {name} cannot be read ({str(problem)[:120]}); fetch the file again") from problem
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre") or "gpt-2"
    if pre not in PRE_TOKENIZERS:
        raise ModelError(f"{name} splits text as {pre!r}; {', '.join(PRE_TOKENIZERS)} are read")
    vocabulary = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(each.split(" ", 1)) for each in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(metadata, CONTROL))
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") is True and bos is not None:
        put_in_front(tokenizer, metadata["tokenizer.ggml.tokens"][bos], bos)
    return tokenizer


def _added(metadata: Mapping[str, Any], kind: int) -> list[AddedToken]:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    special = kind == CONTROL
    return [
        AddedToken(token, normalized=False, special=special) for token, each in zip(tokens, kinds, strict=False) if each == kind
    ]


def _pieces(metadata: Mapping[str, Any]) -> Pieces:
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    special = {number for number, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN)}
    is_byte = {number for number, kind in enumerate(kinds) if kind == BYTE}
    bos = metadata.get("tokenizer.ggml.bos_token_id", -1)
    return Pieces(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], special, is_byte, bos)


def _write_config(file: GgufFile, folder: Path) -> None:
    tokens = file.metadata["tokenizer.ggml.tokens"]

    def named(key: str) -> str | None:
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else None

    adds_bos = file.metadata.get("tokenizer.ggml.add_bos_token")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{key}_token": name for key in ("bos", "eos") if (name := named(key))},
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(adds_bos, bool):
        config["add_bos_token"] = adds_bos
    write_json(folder / "tokenizer_config.json", config)
    if template := file.text("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
