"""The order in which a format is chosen, and what the choice says of itself."""

import json
from pathlib import Path

import pytest

from qlora_chat.chat_templates.renderer import TemplateError
from qlora_chat.models import ModelError
from qlora_chat.models.chat_format import FormatSources
from qlora_chat.models.folders import ModelConfigs
from qlora_chat.settings import SettingsError

IN_CONFIG, IN_FILE, IN_ADAPTER = "{{ messages[0].content }}c", "{{ messages[0].content }}f", "{{ messages[0].content }}a"


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def sources(tmp_path: Path, *names: str, adapter: bool = True) -> FormatSources:
    write(tmp_path / "base", "config.json", {"model_type": "llama"})
    (tmp_path / "adapter").mkdir(exist_ok=True)
    configs = ModelConfigs.read(tmp_path / "base")
    return FormatSources(tmp_path / "base", configs, tmp_path / "adapter" if adapter else None, names)


def test_each_source_of_a_format_goes_before_the_next(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"

    def chosen(named: str | None = None) -> tuple[str, str, str]:
        choice = sources(tmp_path, "org/vicuna-7b").choose(named)
        return choice.name, choice.reason, choice.source.text[-1] if choice.source else ""

    assert chosen()[:2] == ("vicuna", "the model's name; nothing declares one")
    write(base, "tokenizer_config.json", {"chat_template": IN_CONFIG})
    assert chosen() == ("template", "the base's own", "c")
    write(base, "chat_template.jinja", IN_FILE)
    assert chosen() == ("template", "the base's own", "f")
    write(adapter, "chat_template.jinja", IN_ADAPTER)
    assert chosen() == ("template", "the adapter's own", "a")
    write(adapter, "qlora_chat.json", {"prompt_format": "guanaco-card"})
    assert chosen() == ("guanaco-card", "the adapter's record", "")
    assert chosen("zephyr")[:2] == ("zephyr", "--format")
    assert chosen("template") == ("template", "--format; it is the adapter's", "a")


def test_without_anything_it_is_guanaco(tmp_path: Path) -> None:
    choice = sources(tmp_path, "my-model").choose(None)
    assert choice.line == "prompt format: guanaco (the default; nothing declares one)"


def test_a_recorded_template_is_looked_for_beside_the_adapter_and_then_in_the_base(tmp_path: Path) -> None:
    write(tmp_path / "adapter", "qlora_chat.json", {"prompt_format": "template"})
    with pytest.raises(ModelError, match="neither adapter nor base holds one"):
        sources(tmp_path).choose(None)
    write(tmp_path / "base", "chat_template.jinja", IN_FILE)
    choice = sources(tmp_path).choose(None)
    assert choice.line == (
        f"prompt format: the chat template in {tmp_path / 'base' / 'chat_template.jinja'} "
        "(the adapter's record; it is the base's)"
    )


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": IN_CONFIG}]
    write(tmp_path / "base", "tokenizer_config.json", {"chat_template": several})
    choice = sources(tmp_path).choose(None)
    assert choice.source
    assert choice.source.text == IN_CONFIG
    write(tmp_path / "base", "tokenizer_config.json", {"chat_template": several[:1]})
    with pytest.raises(ModelError, match="templates tool_use as chat_template, and none is called default"):
        sources(tmp_path).choose(None)
    write(tmp_path / "base", "tokenizer_config.json", {"chat_template": 5})
    with pytest.raises(ModelError, match="a int as chat_template"):
        sources(tmp_path).choose(None)


def test_a_template_knows_the_special_tokens(tmp_path: Path) -> None:
    config = {"chat_template": IN_CONFIG, "bos_token": {"content": "<b>"}, "tokenizer_class": "LlamaTokenizer"}
    write(tmp_path / "base", "tokenizer_config.json", config)
    choice = sources(tmp_path).choose(None)
    assert choice.source
    assert choice.source.variables == {"bos_token": "<b>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_an_adapter_without_a_tokenizer_config_leaves_the_special_tokens_to_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base", "tokenizer_config.json", {"chat_template": IN_CONFIG, "bos_token": "<b>", "eos_token": "<e>"})
    write(tmp_path / "adapter", "special_tokens_map.json", {"pad_token": "<p>"})
    choice = sources(tmp_path).choose(None)
    assert choice.source
    assert choice.source.variables["bos_token"] == "<b>"


def test_an_unknown_name_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown prompt format 'x'"):
        sources(tmp_path).choose("x")
    write(tmp_path / "base", "chat_template.jinja", "x" * 300_000)
    with pytest.raises(TemplateError, match="are allowed"):
        sources(tmp_path).choose(None)
