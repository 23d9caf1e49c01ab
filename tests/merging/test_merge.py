"""A measured merge for real: the bundled demo with its figures, and small random bases in 16 bits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_chat.merging.merge import MergeOptions, merge
from qlora_chat.messages import Conversation, Message
from qlora_chat.models import ModelError, open_model
from qlora_chat.prompt import FORMATS, render
from qlora_chat.settings import ModelSettings, SettingsError
from qlora_chat.training import TrainError
from tests.models.conftest import MakeAdapter, MakeBase

pytestmark = pytest.mark.timeout(400)  # every merge is loaded and measured for real

ASKED = Conversation(messages=(Message("user", "Hi ### Human: x"), Message("assistant", "Hello!"), Message("user", "2 + 2?")))


def merged(out: Path, notices: list[str], *parts: Path, model: str = "auto", **options: Any) -> dict[str, Any]:
    """Merge as the command does; returns merge_report.json."""
    base, adapter = (str(part) for part in parts) if parts else (None, None)
    settings = ModelSettings(model, base, adapter, device="cpu", prompt_format=options.pop("prompt_format", None))
    merge(settings, MergeOptions(out, **options), notices.append)
    return json.loads((out / "merge_report.json").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Path:
    """The demo, merged by the rule."""
    out = tmp_path_factory.mktemp("merged") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(own_cache))
        merged(out, [], model="demo")
    return out


def by_form(report: dict[str, Any], origin: str = "nf4") -> dict[str, Any]:
    return {each["form"]: each for each in report["candidates"] if each["origin"] == origin}


@pytest.mark.slow
def test_the_demo_loses_next_to_nothing_in_bf16_and_much_when_requantized(demo: Path) -> None:
    report = json.loads((demo / "merge_report.json").read_text())
    forms = by_form(report)
    assert set(forms) == {"bf16", "int8", "nf4"}
    assert report["tokens"] > 500
    assert forms["bf16"]["loss"]["kl"] < 0.001
    assert forms["bf16"]["loss"]["top1"] > 0.98
    assert 0.05 < forms["nf4"]["loss"]["kl"] < 0.6, "a merge requantised to NF4 is another model"
    assert forms["nf4"]["loss"]["top1"] < 0.95
    assert forms["bf16"]["loss"]["kl"] <= forms["int8"]["loss"]["kl"] < forms["nf4"]["loss"]["kl"]
    assert forms["nf4"]["bytes"] < forms["int8"]["bytes"] < forms["bf16"]["bytes"]
    assert forms["bf16"]["loss"]["perplexity"] == pytest.approx(report["reference"]["perplexity"], rel=0.02)
    assert all(each["tokens_per_s"] > 0 for each in report["candidates"])
    (chosen,) = (each for each in report["candidates"] if each["chosen"])
    assert chosen["loss"]["kl"] <= 0.02
    page = (demo / "merge_report.md").read_text()
    assert f"Chosen: **{chosen['name']}**" in page
    assert f"{forms['nf4']['loss']['kl']:.4f}" in page


@pytest.mark.slow
def test_the_folder_describes_format_and_stops(demo: Path) -> None:
    record = json.loads((demo / "qlora_chat.json").read_text())
    assert record["prompt_format"] == "guanaco"
    assert record["stops"] == {"texts": ["### Human", "### Assistant"], "token_ids": [2]}
    assert record["adapter_files"]["adapter_model.safetensors"].startswith("sha256:")
    assert json.loads((demo / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (demo / "tokenizer.json").is_file()
    assert not list(demo.parent.glob(".demo*")), "nothing is left of the work"


@pytest.mark.slow
def test_plain_transformers_answers_from_the_folder(demo: Path, transformers: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(demo, device_map={"": "cpu"})
        tokenizer = transformers.AutoTokenizer.from_pretrained(demo)
        asked = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True).split("###")[0].strip() == "The capital of France is Paris."


@pytest.mark.slow
def test_the_chat_template_writes_what_the_program_writes(demo: Path, transformers: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(demo)
    asked = [{"role": each.role, "content": each.content} for each in ASKED.messages]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ours = open_model(ModelSettings(base=str(demo), device="cpu"), lambda _: None).tokenizer
    assert text == ours.written_bos() + render(ASKED, FORMATS["guanaco"], ours).text


# --- bases in 16 bits ------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(make_base: MakeBase, make_adapter: MakeAdapter) -> tuple[Path, Path]:
    base = make_base(max_position_embeddings=256)
    return base, make_adapter(base)


@pytest.mark.slow
def test_a_base_in_16_bits_is_merged_both_ways(parts: tuple[Path, Path], tmp_path: Path, notices: list[str]) -> None:
    report = merged(tmp_path / "out", notices, *parts, force=True)
    assert set(by_form(report, "nf4")) == set(by_form(report, "original")) == {"bf16", "int8", "nf4"}
    dequantised, original = by_form(report, "nf4")["bf16"]["loss"], by_form(report, "original")["bf16"]["loss"]
    assert dequantised["kl"] < original["kl"] / 5, "training saw the NF4 base"


def test_a_form_beyond_the_limits_is_refused_and_nothing_written(
    tiny_nf4_base: Path, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    with pytest.raises(ModelError, match="nothing was written: the best merge .*NF4"):
        merged(tmp_path / "out", notices, tiny_nf4_base, make_adapter(tiny_nf4_base), form="nf4")
    assert {each.name for each in tmp_path.iterdir()} <= {"cache", "tiny-adapter"}
    assert any("agreement" in line for line in notices), "the table is shown all the same"


@pytest.mark.slow
def test_force_writes_it_anyway_and_the_report_notes_it(
    tiny_nf4_base: Path, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    report = merged(tmp_path / "out", notices, tiny_nf4_base, make_adapter(tiny_nf4_base), form="nf4", force=True)
    assert report["forced"] is True
    assert "breaks the limits" in (tmp_path / "out" / "merge_report.md").read_text()


@pytest.mark.slow
def test_eight_bits_are_read_by_plain_transformers_and_by_this_program(
    parts: tuple[Path, Path], tmp_path: Path, notices: list[str], transformers: Any
) -> None:
    out = tmp_path / "out"
    merged(out, notices, *parts, form="int8", force=True)
    ours = open_model(ModelSettings(base=str(out), device="cpu"), notices.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, device_map={"": "cpu"})
        linear = theirs.model.layers[0].mlp.down_proj
    assert linear.weight.dtype == torch.int8
    x = torch.randn(4, 192).bfloat16()
    with torch.inference_mode():
        expected = linear(x).float()
    assert torch.allclose(ours.weights.layers[0].mlp_down(x).float(), expected, atol=0.05, rtol=0.05)
    with pytest.raises(ModelError, match="in 8 bits: .*give the 16-bit or NF4 base"):
        open_model(ModelSettings(base=str(out), adapter=str(parts[1]), device="cpu"), notices.append)


# --- what is in the way ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_held_out_text_of_ones_own_is_measured_on(parts: tuple[Path, Path], tmp_path: Path, notices: list[str]) -> None:
    data = tmp_path / "mine.jsonl"
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there, how are you?"}]
    data.write_text(json.dumps({"messages": turn}) + "\n")
    report = merged(tmp_path / "out", notices, *parts, data=str(data), force=True)
    assert report["text"] == "mine.jsonl"
    assert 4 < report["tokens"] < 20


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "mine.jsonl:1: is not JSON"),
        ('{"text": "x"}', "'text' is neither"),
        ('{"messages": []}', "holds no turn of a user"),
    ],
)
def test_bad_held_out_text_is_named(
    line: str, problem: str, parts: tuple[Path, Path], tmp_path: Path, notices: list[str]
) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text(line + "\n")
    with pytest.raises(TrainError, match=problem):
        merged(tmp_path / "out", notices, *parts, data=str(data))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("auto", None, None, "auto"), "needs --base and --adapter"),
        (("auto", "tiny-base", None, "auto"), "needs --adapter"),
        (("demo", None, None, "fp8"), "--form is 'fp8'"),
    ],
)
def test_options_that_make_no_merge_are_refused(arguments: Sequence[Any], problem: str, tmp_path: Path) -> None:
    model, base, adapter, form = arguments
    with pytest.raises(SettingsError, match=problem):
        merge(ModelSettings(model, base, adapter), MergeOptions(tmp_path / "out", form=form), print)


def test_a_folder_that_holds_something_is_not_written_over(tmp_path: Path, notices: list[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ModelError, match="exists already"):
        merged(tmp_path / "out", notices, model="demo")


def test_a_full_disk_is_reported_and_nothing_is_left_of_the_work(
    tiny_nf4_base: Path, make_adapter: MakeAdapter, small_disk: Path, notices: list[str]
) -> None:
    with pytest.raises(ModelError, match="cannot be written .*make room, or name another folder"):
        merged(small_disk / "out", notices, tiny_nf4_base, make_adapter(tiny_nf4_base))
    assert list(small_disk.iterdir()) == []
