"""A Modelfile for Ollama: the prompt format as a Go template, stops, sampling and system text.

Scope: text. The template is read off renderings of sample conversations, and refused where it would render others differently.
Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_chat.messages import Conversation, Message
from qlora_chat.models import ModelError
from qlora_chat.prompt import ChatFormat, Tokenizer, render
from qlora_chat.settings import Sampling

MOST_CONTEXT = 8192
"""num_ctx at most: memory for longer windows is for the user to spend."""
_SYSTEM, _TEXTS = "Qsystemq", ("Qfirstq", "Qsecondq", "Qthirdq", "Qfourthq", "Qfifthq")
_TEMPLATE = """\
{{- if .System }}{{ %(before_system)s }}{{ .System }}{{ %(after_system)s }}{{ else }}{{ %(opening)s }}{{ end }}
{{- $first := true }}{{ $role := "" }}
{{- range .Messages }}
{{- if eq .Role "user" }}{{ if not $first }}{{ %(before_user)s }}{{ end }}{{ .Content }}{{ $first = false }}
{{- else if eq .Role "assistant" }}{{ %(before_answer)s }}{{ .Content }}
{{- end }}{{ $role = .Role }}
{{- end }}
{{- if ne $role "assistant" }}{{ %(open_answer)s }}{{ end -}}
"""


@dataclass(frozen=True)
class GoTemplate:
    """The texts between the messages of a conversation."""

    opening: str
    """In front of the first message of a conversation without a system text."""
    before_system: str
    after_system: str
    """Between the system text and the first message."""
    before_answer: str
    before_user: str
    """After an answer, in front of the next message."""
    open_answer: str
    """After the last message."""

    @staticmethod
    def of(prompt_format: ChatFormat, tokenizer: Tokenizer) -> GoTemplate:
        """Read it off sample conversations. ModelError for a format that is no sequence of such texts."""

        def pieces(system: str | None, count: int) -> list[str]:
            text = render(_conversation(system, count), prompt_format, tokenizer).text
            inside = [*([system] if system else []), *_TEXTS[:count]]
            found = re.split("|".join(inside), text)
            if len(found) != len(inside) + 1:
                raise _refused()
            return found

        opening, before_answer, before_user, open_answer = pieces(None, 3)
        before_system, after_system, _ = pieces(_SYSTEM, 1)
        template = GoTemplate(opening, before_system, after_system, before_answer, before_user, open_answer)
        for system in (None, _SYSTEM):
            for count in (1, 3, 5):
                expected = render(_conversation(system, count), prompt_format, tokenizer).text
                if template.rendered(system, _TEXTS[:count]) != expected:
                    raise _refused()
        return template

    def rendered(self, system: str | None, texts: Sequence[str]) -> str:
        """The prompt that Ollama makes of a conversation: questions and answers in turn."""
        written = self.before_system + system + self.after_system if system else self.opening
        for index, text in enumerate(texts):
            written += (("" if index == 0 else self.before_user) if index % 2 == 0 else self.before_answer) + text
        return written + self.open_answer

    def __str__(self) -> str:
        """Go's text/template; its strings are written as JSON's."""
        return _TEMPLATE % {name: json.dumps(text, ensure_ascii=False) for name, text in vars(self).items()}


def _conversation(system: str | None, count: int) -> Conversation:
    messages = tuple(Message("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(_TEXTS[:count]))
    return Conversation(messages=messages, system=system)


def _refused() -> ModelError:
    return ModelError(
        "the chat template treats some messages in a way that Ollama's templates cannot express; "
        "export it --for gguf, which holds the chat template itself, or name another format with --format"
    )


@dataclass(frozen=True)
class Modelfile:
    """Contents of a Modelfile."""

    model: str
    """File name of the model."""
    template: GoTemplate
    stops: tuple[str, ...]
    window: int
    system: str | None = None
    adapter: str | None = None
    """File name of a LoRA."""

    def __str__(self) -> str:
        sampling = Sampling()
        parameters = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "num_predict": sampling.max_new_tokens,
            "num_ctx": min(self.window, MOST_CONTEXT),
        }
        lines = [
            f"FROM ./{self.model}",
            *([f"ADAPTER ./{self.adapter}"] if self.adapter else []),
            f'TEMPLATE """{self.template}"""',
            *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
            *(f"PARAMETER stop {_quoted(stop)}" for stop in self.stops),
            *([f"SYSTEM {_quoted(self.system)}"] if self.system else []),
        ]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A value of a Modelfile, which knows no escapes. ModelError for one that neither kind of quotes can hold."""
    if '"' not in text and "\n" not in text:
        return f'"{text}"'
    if '"""' in text or text.endswith('"'):
        raise ModelError(f"a Modelfile cannot hold the text {text[:40]!r}: leave out its quotation marks")
    return f'"""{text}"""'
