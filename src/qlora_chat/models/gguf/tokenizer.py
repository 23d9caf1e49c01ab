"""GGUF metadata -> tokenizer.json, tokenizer_config.json and the chat template.

Scope: byte-level BPE with the pre-tokenizers of the LLaMA family, and SentencePiece BPE. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from qlora_chat.models import ModelError
from qlora_chat.models.cache import write_json
from qlora_chat.models.gguf.file import GgufFile
from qlora_chat.models.tokenizer.sentencepiece import byte_fallback_bpe

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
                tokenizer = byte_fallback_bpe(
                    GgufPieces(metadata), metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
                )
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
        lead = tokenizer.id_to_token(bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[lead, "$A"], pair=[lead, "$A", "$B"], special_tokens=[(lead, bos)]
        )
    return tokenizer


def _added(metadata: Mapping[str, Any], kind: int) -> list[AddedToken]:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    special = kind == CONTROL
    return [
        AddedToken(token, normalized=False, special=special) for token, each in zip(tokens, kinds, strict=False) if each == kind
    ]


class GgufPieces:
    """The vocabulary of a SentencePiece model, with the methods of SentencePieceProcessor that a conversion reads."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._pieces: list[str] = metadata["tokenizer.ggml.tokens"]
        self._scores: list[float] = metadata["tokenizer.ggml.scores"]
        self._kinds: list[int] = metadata["tokenizer.ggml.token_type"]
        self._bos = metadata.get("tokenizer.ggml.bos_token_id", -1)

    def __len__(self) -> int:
        return len(self._pieces)

    def id_to_piece(self, number: int) -> str:
        """Text of a piece."""
        return self._pieces[number]

    def get_score(self, number: int) -> float:
        """Score of a piece: higher ones are merged first."""
        return self._scores[number]

    def is_control(self, number: int) -> bool:
        """True for `<s>` and its kind."""
        return self._kinds[number] == CONTROL

    def is_unknown(self, number: int) -> bool:
        """True for `<unk>`."""
        return self._kinds[number] == UNKNOWN

    def is_byte(self, number: int) -> bool:
        """True for pieces such as `<0x0A>`."""
        return self._kinds[number] == BYTE

    def bos_id(self) -> int:
        """Id in front of a text; -1 without one."""
        return self._bos


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
