"""Small tokenizers of the kinds that models come with: byte-level BPE, and SentencePiece's in its two conversions."""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.renderer import TemplateSource
from qlora_chat.chat_templates.vocabulary import TemplateVocabulary
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from tests.chat_templates.examples import EXAMPLES, Example

WORDS = (
    "The user asks what the assistant knows: 12 streets, 345 houses. Größe, 世界! café naïve",
    "<|im_start|>user\n[INST] ### Instruction:\n system assistant model </think> def f(x):\n    return x",
)
KINDS = ("byte-level", "sentencepiece", "metaspace")
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def _sentencepiece() -> str:
    """The demo's tokenizer.json with its first merges and its letters alone: it is read in a fraction of the time."""
    described = json.loads((BUNDLED / "base" / "tokenizer.json").read_text())
    model = described["model"]
    kept = [token for token, number in model["vocab"].items() if number < 800 or len(token) == 1]
    model["vocab"] = {token: number for number, token in enumerate(kept)}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()]
    return json.dumps(described)


@cache
def _described(kind: str) -> str:
    """tokenizer.json without special tokens."""
    if kind == "sentencepiece":
        return _sentencepiece()
    if kind == "metaspace":
        tokenizer = Tokenizer.from_str(_sentencepiece())
        tokenizer.normalizer = None  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        return tokenizer.to_str()
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    pattern = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer.to_str()


def tokenizer_for(example: Example, kind: str) -> Tokenizer:
    """A tokenizer of that kind with the example's tokens."""
    tokenizer = Tokenizer.from_str(_described(kind))
    tokenizer.add_special_tokens([AddedToken(each, normalized=False, rstrip=example.rstrip) for each in example.specials])
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in example.plain])
    return tokenizer


@cache
def opened(name: str, kind: str) -> tuple[PreTrainedTokenizerFast, TemplateFormat, ModelTokenizer]:
    """The example in Transformers, here, and the tokenizer that engines use."""
    example = EXAMPLES[name]
    tokenizer = tokenizer_for(example, kind)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=example.bos, eos_token=example.eos, chat_template=example.template
    )
    variables = {key: value for key, value in (("bos_token", example.bos), ("eos_token", example.eos)) if value}
    source = TemplateSource(example.template, f"{name}.jinja", variables)
    ours = TemplateFormat("template", source, TemplateVocabulary(tokenizer.to_str()))
    bos = tokenizer.token_to_id(example.bos) if example.bos else None
    return theirs, ours, ModelTokenizer(Tokenizer.from_str(tokenizer.to_str()), bos)
