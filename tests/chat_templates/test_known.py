"""Formats by name: their texts to the letter, and the names that models bear."""

import pytest

from qlora_chat.chat_templates.known import check_format_name, format_of_name, named_format, open_format
from qlora_chat.messages import Conversation, Message
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import FORMATS, render
from qlora_chat.settings import SettingsError

TOKENIZER = ModelTokenizer.read(BUNDLED / "base", 1)
TALK = (Message("user", "X"), Message("assistant", "Y"), Message("user", "Z"))
TEXTS = {
    "alpaca": "S\n\n### Instruction:\nX\n\n### Response:\nY\n\n### Instruction:\nZ\n\n### Response:\n",
    "vicuna": "S USER: X ASSISTANT: Y</s>USER: Z ASSISTANT:",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nX</s>\n<|assistant|>\nY</s>\n<|user|>\nZ</s>\n<|assistant|>\n",
    "llama-2": "[INST] <<SYS>>\nS\n<</SYS>>\n\nX [/INST] Y </s><s>[INST] Z [/INST]",
    "llama-3": "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}"
        for role, text in (
            ("system", "S<|eot_id|>"), ("user", "X<|eot_id|>"), ("assistant", "Y<|eot_id|>"), ("user", "Z<|eot_id|>"),
            ("assistant", ""),
        )
    ),
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nX<|im_end|>\n<|im_start|>assistant\nY<|im_end|>\n"
    "<|im_start|>user\nZ<|im_end|>\n<|im_start|>assistant\n",
    "mistral": "[INST] S\n\nX [/INST] Y</s>[INST] Z [/INST]",
}  # fmt: skip
STOPS = {
    "alpaca": ((), ("### Instruction:",)),
    "llama-3": ((), ("<|eot_id|>",)),
    "chatml": ((), ("<|im_end|>",)),
}
"""Of formats that end an answer with a text in LLaMA's vocabulary; the others end it with </s>."""


@pytest.mark.parametrize("name", TEXTS)
def test_a_named_format_is_its_documented_text(name: str) -> None:
    choice = named_format(name, "--format").with_variables({"bos_token": "<s>", "eos_token": "</s>"})
    opened = open_format(choice, TOKENIZER)
    prompt = render(Conversation(messages=TALK, system="S"), opened, TOKENIZER)
    assert prompt.text == TEXTS[name]
    assert (prompt.ids[0] == 1) == (name not in ("zephyr", "chatml"))
    assert (opened.stop_tokens, opened.stop_texts) == STOPS.get(name, (("</s>",), ()))
    assert choice.line == f"prompt format: {name} (--format)"


def test_guanaco_is_no_template() -> None:
    assert open_format(named_format("guanaco-card", "the adapter's record"), TOKENIZER) is FORMATS["guanaco-card"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"unknown prompt format 'x'; known: guanaco, .*, mistral, template"):
        check_format_name("x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lmsys/vicuna-7b-v1.5", "vicuna"), ("meta-llama/Llama-2-7b-chat-hf", "llama-2"), ("meta-llama/Llama-2-7b-hf", None),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3"), ("mistralai/Mistral-7B-v0.1", None),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "zephyr"), ("Qwen/Qwen2-0.5B-Instruct", "chatml"),
        ("timdettmers/guanaco-7b", "guanaco"), ("my-model", None),
    ],
)  # fmt: skip
def test_a_models_name_speaks_of_its_format(name: str, expected: str | None) -> None:
    assert format_of_name(name) == expected
