"""Modelfiles: a Go template that renders as the prompt format does, stops, sampling and system text."""

from __future__ import annotations

import pytest

from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.known import named_format, open_format
from qlora_chat.chat_templates.renderer import TemplateSource
from qlora_chat.chat_templates.vocabulary import TemplateVocabulary
from qlora_chat.exporting.ollama import GoTemplate, Modelfile
from qlora_chat.models import ModelError
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import DEFAULT_FORMAT

TOKENIZER = ModelTokenizer.read(BUNDLED / "base", bos_id=1)


def test_a_modelfile_says_what_the_page_does() -> None:
    made = Modelfile("demo-F16.gguf", GoTemplate.of(DEFAULT_FORMAT, TOKENIZER), ("### Human", "</s>"), 512, system="Be brief.")
    assert (
        str(made)
        == """\
FROM ./demo-F16.gguf
TEMPLATE \"\"\"{{- if .System }}{{ "" }}{{ .System }}{{ "\\n### Human: " }}{{ else }}{{ "### Human: " }}{{ end }}
{{- $first := true }}{{ $role := "" }}
{{- range .Messages }}
{{- if eq .Role "user" }}{{ if not $first }}{{ "### Human: " }}{{ end }}{{ .Content }}{{ $first = false }}
{{- else if eq .Role "assistant" }}{{ "### Assistant: " }}{{ .Content }}
{{- end }}{{ $role = .Role }}
{{- end }}
{{- if ne $role "assistant" }}{{ "### Assistant:" }}{{ end -}}
\"\"\"
PARAMETER temperature 0.7
PARAMETER top_p 0.9
PARAMETER top_k 0
PARAMETER min_p 0.0
PARAMETER repeat_penalty 1.0
PARAMETER num_predict 1536
PARAMETER num_ctx 512
PARAMETER stop "### Human"
PARAMETER stop "</s>"
SYSTEM "Be brief."
"""
    )


@pytest.mark.parametrize("name", ["guanaco", "alpaca", "vicuna", "zephyr", "llama-2", "llama-3", "chatml", "mistral"])
def test_every_named_format_has_a_go_template(name: str) -> None:
    choice = named_format(name, "--format").with_variables({"bos_token": "<s>", "eos_token": "</s>"})
    template = GoTemplate.of(open_format(choice, TOKENIZER), TOKENIZER)
    assert "Qfirstq" not in str(template)
    assert not str(template).startswith("<s>"), "Ollama puts it in front"


def test_a_template_that_treats_the_last_message_in_its_own_way_is_refused() -> None:
    odd = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '!' if loop.index == 5 }}\n{% endfor %}assistant:"
    source = TemplateSource(odd, "odd.jinja")
    with pytest.raises(ModelError, match="export it --for gguf"):
        GoTemplate.of(TemplateFormat("template", source, TemplateVocabulary(TOKENIZER.tokenizer_json)), TOKENIZER)


def test_text_with_quotation_marks_goes_into_three_of_them() -> None:
    template = GoTemplate.of(DEFAULT_FORMAT, TOKENIZER)
    assert 'SYSTEM """Say "yes".\nOr no."""' in str(Modelfile("m", template, (), 512, system='Say "yes".\nOr no.'))
    with pytest.raises(ModelError, match="cannot hold the text"):
        str(Modelfile("m", template, (), 512, system='Say "yes"'))
