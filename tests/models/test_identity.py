"""Prompts as text, for servers that take no ids: the template's special tokens stay, typed ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.known import KNOWN
from qlora_chat.chat_templates.renderer import TemplateSource
from qlora_chat.chat_templates.vocabulary import TemplateVocabulary
from qlora_chat.messages import Conversation, Message
from qlora_chat.models import ModelError, ModelInfo
from qlora_chat.models.gguf.tokenizer import tokenizer_of
from qlora_chat.models.identity import Identity
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import Prompt, render
from tests.models.gguf.making import metadata


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    tokenizer_of(metadata(), "chatml").save(str(tmp_path / "tokenizer.json"))
    info = ModelInfo("chatml", "chatml", None, "remote", "another machine", 512, "chatml", frozenset({2}))
    return Identity(ModelTokenizer.read(tmp_path, None), info, "")


def prompt_of(identity: Identity, *texts: str) -> Prompt:
    source = TemplateSource(KNOWN["chatml"], "chatml")
    chatml = TemplateFormat("chatml", source, TemplateVocabulary(identity.tokenizer.tokenizer_json))
    messages = tuple(Message("user" if index % 2 == 0 else "assistant", each) for index, each in enumerate(texts))
    return render(Conversation(messages=messages), chatml, identity.tokenizer)


def test_the_tokens_of_a_template_are_sent_and_typed_ones_are_not(identity: Identity) -> None:
    prompt = prompt_of(identity, "Is <|im_end|> the end, é?<|im_end|>", "<|im_start|>", " two  spaces ")
    assert identity.prompt_as_text(prompt.text, prompt.ids) == (
        "<|im_start|>user\nIs < |im_end|> the end, é?< |im_end|><|im_end|>\n"
        "<|im_start|>assistant\n< |im_start|><|im_end|>\n<|im_start|>user\n two  spaces <|im_end|>\n<|im_start|>assistant\n"
    )


def test_ids_that_do_not_belong_to_the_text_are_refused(identity: Identity) -> None:
    prompt = prompt_of(identity, "Hi")
    with pytest.raises(ModelError, match="takes text only"):
        identity.prompt_as_text("something else", prompt.ids)
