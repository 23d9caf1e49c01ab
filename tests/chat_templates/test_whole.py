"""A base with a template of its own, through training, chat, merge, export and doctor: it is asked and left in its format."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.chat import AnswerOptions
from qlora_chat.cli.open import open_chat
from qlora_chat.doctor.examine import examine
from qlora_chat.exporting.vllm import export_for_vllm
from qlora_chat.merging.merge import MergeOptions, merge
from qlora_chat.messages import Conversation
from qlora_chat.models.hub import Hub
from qlora_chat.models.placement import detect_devices
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.training.recipe import TrainSettings
from qlora_chat.training.run_record import open_run
from qlora_chat.training.train import train
from tests.chat_templates.examples import EXAMPLES
from tests.models.conftest import MakeAdapter, MakeBase

ZEPHYR, CHATML = EXAMPLES["zephyr"].template, EXAMPLES["chatml"].template
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


def as_transformers(folder: Path) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)


def prompt_of(base: Path, adapter: Path | None, capsys: pytest.CaptureFixture[str]) -> tuple[list[int], str]:
    """(ids of the prompt, the line about the format)."""
    settings = ModelSettings(base=str(base), adapter=str(adapter) if adapter else None, device="cpu", slots=1)
    chat = open_chat(settings)
    try:
        turn = chat.reply(Conversation(), QUESTION[0]["content"], AnswerOptions(Sampling(max_new_tokens=3, temperature=0.0)))
        list(turn)
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("prompt format")]
        return list(turn.prompt.ids), line
    finally:
        chat.engine.close()


def test_a_base_is_asked_by_its_own_template(make_base: MakeBase, capsys: pytest.CaptureFixture[str]) -> None:
    base = with_template(make_base(), ZEPHYR)
    ids, line = prompt_of(base, None, capsys)
    assert ids == as_transformers(base)
    assert line == f"prompt format: the chat template in {base / 'chat_template.jinja'} (the base's own)"


def test_an_adapters_template_goes_before_the_bases(
    make_base: MakeBase, make_adapter: MakeAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    base = with_template(make_base(), ZEPHYR)
    adapter = with_template(make_adapter(base), CHATML)
    ids, line = prompt_of(base, adapter, capsys)
    assert "the adapter's own" in line
    with_template(base, CHATML)
    assert ids == as_transformers(base)


def test_training_uses_the_bases_template_and_the_adapter_carries_it(
    make_base: MakeBase, tmp_path: Path, notices: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = with_template(make_base(), ZEPHYR), tmp_path / "run"
    data = tmp_path / "data.jsonl"
    turns = [*QUESTION, {"role": "assistant", "content": "Paris."}]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    settings = TrainSettings(base=str(base), data=(str(data),), steps=1, batch=1, r=4, max_length=64, held_out=0)
    assert train(settings, open_run(out, resume=False), notices.append, device="cpu").finished
    assert any("(the base's own)" in line for line in notices)
    record = json.loads((out / "qlora_chat.json").read_text())
    assert (record["prompt_format"], record["stop_tokens"]) == ("template", ["</s>"])
    assert json.loads((out / "run.json").read_text())["settings"]["prompt_format"] == "template"
    assert (out / "chat_template.jinja").read_text() == ZEPHYR
    ids, line = prompt_of(base, out, capsys)
    assert ids == as_transformers(base)
    assert "(the adapter's record; it is the adapter's)" in line


def test_merge_and_export_keep_the_bases_template(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    base = with_template(make_base(max_position_embeddings=256), ZEPHYR)
    adapter = make_adapter(base)
    settings = ModelSettings(base=str(base), adapter=str(adapter), device="cpu")
    merge(settings, MergeOptions(tmp_path / "merged", form="bf16", force=True), notices.append)
    export_for_vllm(settings, tmp_path / "exported", notices.append)
    for folder in (tmp_path / "merged", tmp_path / "exported"):
        assert (folder / "chat_template.jinja").read_text() == ZEPHYR
        assert json.loads((folder / "qlora_chat.json").read_text())["prompt_format"] == "template"
        assert as_transformers(folder) == as_transformers(base)
    settings = ModelSettings(base=str(base), adapter=str(adapter), device="cpu", prompt_format="vicuna")
    made = export_for_vllm(settings, tmp_path / "vicuna", notices.append)
    assert "USER: " in (made.folder / "chat_template.jinja").read_text()


def test_a_merge_in_the_cache_keeps_the_template_of_a_base_that_is_gone(make_base: MakeBase, tmp_path: Path) -> None:
    from qlora_chat.models.weights.shards import TOKENIZER_FILES

    assert "chat_template.jinja" in TOKENIZER_FILES
    base = with_template(make_base(), ZEPHYR)
    chat = open_chat(ModelSettings(base=str(base), precision="nf4", device="cpu", slots=1))
    chat.engine.close()
    (entry,) = (tmp_path / "cache" / "merged").glob("[!.]*")
    assert (entry / "chat_template.jinja").read_text() == ZEPHYR


def test_doctor_names_the_template_and_tries_it(make_base: MakeBase, tmp_path: Path) -> None:
    base, hub = with_template(make_base(), ZEPHYR), Hub(tmp_path / "hub", offline=True)
    found = examine(str(base), None, hub, detect_devices("cpu"))
    assert any(each.level == "fine" and "chat_template.jinja (the base's own)" in each.what for each in found.findings)
    with_template(base, "{% if %}")
    found = examine(str(base), None, hub, detect_devices("cpu"))
    assert any(each.level == "blocker" and "chat_template.jinja, line 1" in each.what for each in found.findings)
