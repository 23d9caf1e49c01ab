"""Adapters, runs, merged models, caches and reports of 2026-11-29 still open, and are used as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.formats.conftest import Run
from tests.formats.golden import keys, read

BOTH = ("--base", "base", "--adapter", "adapter", "--device", "cpu")
ANSWER = ("ask", "Tell me about the sea.", "--temperature", "0", "--max-new-tokens", "10", "--json")
BF16 = ("--precision", "bf16")
"""With --base-form 16-bit it is the merge of earlier versions, which used the original weights for every adapter."""
RECORD = "qlora_chat.json"


def tensors_of(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> dtype and shape."""
    with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        return {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}


def held_in(cache: Path) -> dict[str, int]:
    """Every file of the cache's entries, with the time of its last change."""
    return {
        str(path.relative_to(cache)): path.stat().st_mtime_ns
        for kind in ("merged", "adapters")
        for path in cache.glob(f"{kind}/*/*")
    }


def entry(cache: Path, beginning: str) -> Path:
    (found,) = cache.glob(f"*/{beginning}*")
    return found


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "precision"),
    [((*BF16, "--base-form", "16-bit"), "bf16"), (("--precision", "nf4"), "nf4"), (("--adapter-mode", "exact"), "nf4+adapter")],
)
def test_what_is_in_the_cache_is_found_and_nothing_is_made_again(
    run: Run, samples: Path, options: tuple[str, ...], precision: str
) -> None:
    before = held_in(samples / "cache")
    done = run(*ANSWER, *BOTH, *options)
    assert json.loads(done.stdout)["precision"] == precision
    assert "once; later starts read" not in done.stderr
    assert held_in(samples / "cache") == before


def test_merged_weights_are_used_where_the_base_is_gone(run: Run, samples: Path) -> None:
    """The cache is found by the base's name on the Hub; a record of ours names a folder, so it is given one here."""
    kept = entry(samples / "cache", "adapter-bf16") / RECORD
    kept.write_text(json.dumps({**read(kept), "base": "owner/gone"}))
    done = run(*ANSWER, "--base", "owner/gone", "--adapter", "adapter", "--device", "cpu", "--precision", "bf16")
    assert "owner/gone is no longer on this machine; what was made of it on 2026-11-29" in done.stderr


def test_a_merge_into_the_base_of_training_is_another_entry(run: Run, samples: Path) -> None:
    before = held_in(samples / "cache")
    done = run(*ANSWER, *BOTH, *BF16)
    assert "merged into the base in NF4, as it was trained (its qlora_chat.json says so)" in done.stderr
    after = held_in(samples / "cache")
    assert after.items() > before.items()
    (made,) = {name.rpartition("/")[0] for name in after.keys() - before.keys()}
    assert read(samples / "cache" / made / RECORD)["base_form"] == "nf4"


def test_a_converted_adapter_is_found_though_the_hub_has_nothing(run: Run, samples: Path) -> None:
    before = held_in(samples / "cache")
    done = run(*ANSWER, "--base", "base", "--adapter", "timdettmers/guanaco-7b", "--device", "cpu", "--precision", "bf16")
    assert json.loads(done.stdout)["adapter"] == "timdettmers/guanaco-7b"
    assert "published as a pickle" not in done.stderr
    assert held_in(samples / "cache").items() >= before.items()


@pytest.mark.parametrize(("precision", "beginning"), [("bf16", "adapter-bf16"), ("nf4", "adapter-nf4"), ("nf4", "base-nf4")])
def test_an_entry_made_now_has_the_key_the_record_and_the_files_of_the_sample(
    run: Run, samples: Path, monkeypatch: pytest.MonkeyPatch, precision: str, beginning: str
) -> None:
    """So that an older program finds what this one made, too."""
    new = samples / "new-cache"
    new.mkdir()
    (new / "kernels").symlink_to((samples / "cache" / "kernels").readlink())
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(new))
    run(*ANSWER, *BOTH, "--precision", precision, "--base-form", "16-bit")
    old, made = entry(samples / "cache", beginning), entry(new, beginning)
    assert made.name == old.name
    assert stable(read(made / RECORD)) == stable(read(old / RECORD))
    assert {path.name for path in made.iterdir()} == {path.name for path in old.iterdir()}
    assert read(made / "config.json") == read(old / "config.json")
    assert tensors_of(made / "model.safetensors") == tensors_of(old / "model.safetensors")


def stable(record: dict[str, Any]) -> dict[str, Any]:
    """A record with types in place of what a version, a moment or a machine's rounding decides; notices repeat figures."""
    varies = ("tool", "made", "files", "loss", "notices", "held_out_loss")
    return {name: type(value).__name__ if name in varies else value for name, value in record.items()}


# --- adapters and runs -----------------------------------------------------------------------------------------------


def test_an_interrupted_run_is_gone_on_with_and_ends_like_the_finished_one(run: Run, samples: Path) -> None:
    cached = held_in(samples / "cache")
    done = run("train", "--out", "run", "--resume", "--device", "cpu")
    assert "resuming after step 5" in done.stderr
    assert "chat with it: qlora-chat chat --base base --adapter run" in done.stdout
    assert held_in(samples / "cache") == cached
    ours, theirs = samples / "run", samples / "adapter"
    steps = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 31))
    assert keys(steps) == keys([json.loads(line) for line in (theirs / "metrics.jsonl").read_text().splitlines()])
    assert stable(read(ours / RECORD)) | {"loss": 0} == stable(read(theirs / RECORD)) | {"loss": 0}
    assert read(ours / "adapter_config.json") == read(theirs / "adapter_config.json")
    assert tensors_of(ours / "adapter_model.safetensors") == tensors_of(theirs / "adapter_model.safetensors")
    assert keys(read(ours / "run.json")) == keys(read(theirs / "run.json")) | {"steps"}, "which the sample's version left out"
    assert "answer" in json.loads(run(*ANSWER, "--base", "base", "--adapter", "run", "--device", "cpu").stdout)


def test_a_checkpoint_made_now_is_one_that_an_older_program_goes_on_with(run: Run, samples: Path) -> None:
    old = samples / "run" / "checkpoints" / "step-00000005"
    values, tensors = read(old / "state.json"), tensors_of(old / "state.safetensors")
    run("train", "--out", "run", "--resume", "--device", "cpu", "--steps", "6")
    new = samples / "run" / "checkpoints" / "step-00000006"
    assert keys(read(new / "state.json")) == keys(values)
    assert tensors_of(new / "state.safetensors") == tensors


def test_other_settings_are_still_told_from_those_of_the_run(run: Run) -> None:
    with pytest.raises(Exception, match="started with r 4"):
        run("train", "--out", "run", "--resume", "--r", "8")


@pytest.mark.parametrize("adapter", ["adapter", "converted"])
def test_doctor_finds_nothing_in_the_way_of_an_adapter(run: Run, adapter: str) -> None:
    found = json.loads(run("doctor", "base", adapter, "--device", "cpu", "--json").stdout)
    assert not [each for each in found["findings"] if each["level"] == "blocker"]


def test_an_adapter_is_converted_now_as_it_was(run: Run, samples: Path) -> None:
    import torch
    from safetensors.torch import load_file

    (samples / "pickled").mkdir()
    torch.save(load_file(samples / "converted" / "adapter_model.safetensors"), samples / "pickled" / "adapter_model.bin")
    (samples / "pickled" / "adapter_config.json").write_bytes((samples / "converted" / "adapter_config.json").read_bytes())
    run("convert-adapter", "pickled", "again")
    assert keys(read(samples / "again" / RECORD)) == keys(read(samples / "converted" / RECORD))
    assert (samples / "again" / "adapter_model.safetensors").read_bytes() == (
        samples / "converted" / "adapter_model.safetensors"
    ).read_bytes()


# --- merged models ---------------------------------------------------------------------------------------------------


def test_a_merged_model_is_talked_with(run: Run) -> None:
    done = json.loads(run(*ANSWER, "--base", "merged", "--device", "cpu", "--precision", "bf16").stdout)
    assert (done["model"], done["adapter"]) == ("merged", None)
    assert done["completion_tokens"] > 0


def test_a_merge_now_writes_the_files_of_the_sample(run: Run, samples: Path) -> None:
    dialogues = (samples / "dialogues.jsonl").read_text().splitlines(keepends=True)
    (samples / "few.jsonl").write_text("".join(dialogues[:2]))
    run("merge", *BOTH, "--out", "again", "--form", "bf16", "--data", "few.jsonl", "--force")
    again, before = samples / "again", samples / "merged"
    assert {path.name for path in again.iterdir()} == {path.name for path in before.iterdir()}
    assert stable(read(again / RECORD)) == stable(read(before / RECORD))
    assert keys(read(again / "merge_report.json")) == keys(read(before / "merge_report.json"))
    assert read(again / "config.json") == read(before / "config.json")
    assert (again / "chat_template.jinja").read_bytes() == (before / "chat_template.jinja").read_bytes()
    heads = [[line.split("|")[1] for line in (each / "merge_report.md").read_text().splitlines() if "|" in line]
             for each in (again, before)]  # fmt: skip
    assert heads[0] == heads[1], "a row a merge"


# --- records and reports ---------------------------------------------------------------------------------------------


def test_a_version_2_record_is_replayed_token_for_token(run: Run) -> None:
    again = json.loads(run("replay", "records/v2.json", *BOTH, "--json").stdout)
    assert again["identical"]
    assert again["tokens"] == 10
    named = {each["what"] for each in again["differences"]}
    assert named <= {"computed_by", "version", "device"}, "the same base, adapter, precision and prompt format"


def test_a_turn_is_replayed_from_a_receivers_store(run: Run, samples: Path) -> None:
    turn = read(samples / "records" / "v2.json")["turn_id"]
    again = json.loads(run("replay", turn, "--store", "sqlite:///received.db", *BOTH, "--json").stdout)
    assert (again["turn_id"], again["identical"]) == (turn, True)


def test_earlier_reports_are_read_and_new_ones_have_their_fields(run: Run, samples: Path) -> None:
    before = samples / "eval" / "questions.json"
    run("eval", "questions", *BOTH, "--file", "eval/asked.jsonl", "--seeds", "1", "--before", str(before), "--out", "now")
    assert keys(read(samples / "now" / "questions.json")) - keys(read(before)) == {"sampling.min_p"}
    assert keys(read(before)) <= keys(read(samples / "now" / "questions.json"))
    assert (samples / "now" / "questions.png").stat().st_size > 0
    run("eval", "perplexity", "dialogues.jsonl", *BOTH, "--out", "now")
    assert keys(read(samples / "now" / "perplexity.json")) == keys(read(samples / "eval" / "perplexity.json"))


def test_a_blind_sheet_and_choices_made_elsewhere_are_counted(run: Run, samples: Path) -> None:
    """Answers are drawn with seeds, so another machine may round to others: fields are compared, and who said what is not."""
    pair = ("eval", "ab", "eval/prompts.txt", *BOTH, "--against", "converted")
    run(*pair, "--sheet", "sheet.jsonl")
    old, new = (
        [json.loads(line) for line in (samples / each).read_text().splitlines()] for each in ("eval/sheet.jsonl", "sheet.jsonl")
    )
    assert [list(each) for each in new] == [list(each) for each in old]
    assert [each["prompt"] for each in new] == [each["prompt"] for each in old]
    counted = json.loads(run(*pair, "--judge", "eval/choices.txt", "--json").stdout)
    assert keys(counted) == keys(read(samples / "eval" / "ab.json"))
    assert counted["wins_a"] + counted["wins_b"] + counted["ties"] == 3
    sheet_as_prompts = ("eval", "ab", "eval/sheet.jsonl", *pair[3:-1], "none")
    against_base = json.loads(run(*sheet_as_prompts, "--judge", "eval/choices.txt", "--json").stdout)
    assert (against_base["b"], against_base["judged"][2]["prompt"]) == ("none", "And now?")


def test_the_guanaco_form_that_history_exports_is_read_as_data(run: Run, samples: Path) -> None:
    (samples / "exports" / "chats.guanaco").rename(samples / "chats.jsonl")
    assert json.loads(run("eval", "perplexity", "chats.jsonl", *BOTH, "--json").stdout)["tokens"] > 100
