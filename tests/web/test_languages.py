"""Every sentence of the page has an entry in the file of every language."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from qlora_chat.settings import PRESETS, SAMPLING_SETTINGS, SLIDERS
from qlora_chat.web.message_list.route import LANGUAGES, STATIC, WEB

FILES = {each.stem: each for each in LANGUAGES.glob("*.json")}
PLACEHOLDER = re.compile(r"\{(\w*)\}")
TRANSLATED = re.compile(r'\bt\(\s*("(?:[^"\\]|\\.)*")')
"""A call of t with a sentence, in JavaScript."""
CHOSEN = re.compile(r'\bt\([^"()]*\?\s*("(?:[^"\\]|\\.)*")\s*:\s*("(?:[^"\\]|\\.)*")')
"""A call of t with one of two sentences."""
NOT_TRANSLATED = re.compile(r"^{} is |^{} :is|^{} pre|^QLoRA Chat$|^{} GiB$|^What is the capital")
"""Refusals that only a program meets, style sheets, a name, a unit, and a question to the model."""


def sentences_of_scripts() -> set[str]:
    """What JavaScript passes to t."""
    found: set[str] = set()
    for script in STATIC.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        found |= {json.loads(each) for each in TRANSLATED.findall(text)}
        found |= {json.loads(each) for pair in CHOSEN.findall(text) for each in pair}
    return found


class _Sentences(HTMLParser):
    """Texts of templates.html, and the attributes that are shown; names of languages are in those."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._is_name = False
        self.feed((STATIC / "templates.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_name = "lang" in dict(attrs)
        self.found |= {text for name, text in attrs if text and name in ("aria-label", "placeholder", "title", "data-empty")}

    def handle_data(self, data: str) -> None:
        if not self._is_name:
            self.found.add(data.strip())


def sentences_of_modules() -> set[str]:
    """Texts of web/ that begin with a capital letter and have several words, with {} for each value."""
    texts = {text for path in WEB.rglob("*.py") for text in _texts(ast.parse(path.read_text(encoding="utf-8")))}
    return {each for each in texts if " " in each.strip() and re.match(r"[A-Z{]", each) and re.search("[A-Za-z]{2}", each)}


def _texts(tree: ast.AST) -> Iterator[str]:
    """Texts of a module other than docstrings and markup."""
    skipped = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    skipped |= {id(part) for each in ast.walk(tree) if isinstance(each, ast.JoinedStr) for part in each.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.split(r"<[^>]*>", node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values)
            yield from re.split(r"<[^>]*>", "".join(parts))


def sentences_of_settings() -> set[str]:
    settings = [SAMPLING_SETTINGS[name] for name in (*SLIDERS, "seed")]
    named = {text for each in settings for text in (each.label, each.advice, each.help)}
    return named | {text for each in PRESETS for text in (each.label, each.purpose)}


def texts_of(language: str) -> dict[str, str]:
    return json.loads(FILES[language].read_text(encoding="utf-8"))


def without_names(text: str) -> str:
    return PLACEHOLDER.sub("{}", text)


@pytest.mark.parametrize("language", FILES)
def test_every_sentence_of_the_page_has_an_entry(language: str) -> None:
    known = texts_of(language)
    assert not sentences_of_scripts() - known.keys()
    assert not sentences_of_settings() - known.keys()
    assert not _Sentences().found - known.keys() - {"", "Ctrl+Enter"}
    anonymous = {without_names(each) for each in known}
    said = {without_names(each) for each in sentences_of_modules()}
    assert not {each for each in said - anonymous if not NOT_TRANSLATED.search(each)}


@pytest.mark.parametrize("language", FILES)
def test_an_entry_has_the_placeholders_of_its_key(language: str) -> None:
    for key, text in texts_of(language).items():
        assert text.strip(), key
        assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(key)), key


@pytest.mark.parametrize("language", FILES)
def test_what_is_translated_is_not_translated_again(language: str) -> None:
    texts = texts_of(language)
    assert {text: texts[text] for text in texts.values() if texts.get(text, text) != text} == {}


def test_all_languages_have_the_same_keys() -> None:
    keys = {language: set(texts_of(language)) for language in FILES}
    assert all(each == keys["de"] for each in keys.values()), keys
    script = (STATIC / "language.js").read_text(encoding="utf-8")
    names = (STATIC / "templates.html").read_text(encoding="utf-8")
    assert set(json.loads(re.findall(r"LANGUAGES = (\[.*?\])", script)[0])) == {"en", *FILES}
    assert set(re.findall(r'<option lang="([\w-]+)"', names)) == {"en", *FILES}
