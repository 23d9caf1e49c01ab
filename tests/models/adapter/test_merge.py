"""Merges give PEFT's answers for heads, embeddings and added tokens, on tied bases too, and ask nobody anything."""

from __future__ import annotations

import json
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import NF4_MARK, Base
from qlora_chat.models.load import load
from qlora_chat.models.tokenizer.special_tokens import special_ids
from qlora_chat.settings import ModelSettings
from tests.models.conftest import MakeAdapter, MakeBase, change_tensors, opened

IDS = [1, 17, 400, 23, 99]
HEAD, EMBEDDINGS = "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"


def answers(base: Path, adapter: Path, notices: list[str]) -> Tensor:
    """Logits of the model as it is opened."""
    settings = ModelSettings(base=str(base), adapter=str(adapter), device="cpu", precision="bf16")
    weights = load(settings, notices.append, torch.float32).weights
    return Forward(weights, KVCache(weights, slots=1))([Span(0, 0, IDS)])[0]


def pefts_answers(base: Path, adapter: Path, rows: int | None = None) -> Tensor:
    """Logits of the unmerged adapter in plain PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        wrapped: Any = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.inference_mode():
        return wrapped(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert len(actual) == len(expected)
    assert torch.cosine_similarity(actual, expected, dim=0) > 0.999  # merged weights are rounded to bf16
    assert int(actual.argmax()) == int(expected.argmax())


def rows(count: int = 8192) -> Tensor:
    return torch.randn(count, 128, generator=torch.Generator().manual_seed(11)) * 0.05


@pytest.mark.parametrize("changed", [(HEAD,), (EMBEDDINGS,), (HEAD, EMBEDDINGS)])
def test_a_trained_end_of_a_tied_base_is_used(
    changed: tuple[str, ...], make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str], tmp_path: Path
) -> None:
    base = make_base(tie_word_embeddings=True)
    saved = [name.split(".")[-2] for name in changed]
    adapter = make_adapter(base, modules_to_save=saved)
    change_tensors(adapter / "adapter_model.safetensors", **{name: rows() * (1 + at) for at, name in enumerate(changed)})
    assert_same(answers(base, adapter, notices), pefts_answers(base, adapter))
    (merged,) = (tmp_path / "cache" / "merged").glob("*bf16*")
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_lora_on_the_head_of_a_tied_base_leaves_the_embeddings_alone(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base(tie_word_embeddings=True)
    adapter = make_adapter(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"].append("lm_head")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    lora = {HEAD.replace("weight", "lora_A.weight"): rows(4), HEAD.replace("weight", "lora_B.weight"): rows()[:, :4].clone()}
    change_tensors(adapter / "adapter_model.safetensors", **lora)
    assert_same(answers(base, adapter, notices), pefts_answers(base, adapter))


@pytest.mark.parametrize("tokens", [[5, 6], {"embed_tokens": [5, 6], "lm_head": [5, 6]}])
def test_tokens_trained_one_by_one_change_both_ends_of_a_tied_base(
    tokens: Any, make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base(tie_word_embeddings=True)
    adapter = make_adapter(base, trainable_token_indices=tokens)
    delta = f"{EMBEDDINGS.removesuffix('weight')}token_adapter.trainable_tokens_delta"
    change_tensors(adapter / "adapter_model.safetensors", **{delta: rows(2)})
    assert_same(answers(base, adapter, notices), pefts_answers(base, adapter))


def test_olora_on_the_head_of_a_tied_base_begins_at_both_ends(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base(tie_word_embeddings=True)
    adapter = make_adapter(base, target_modules=["lm_head"], init_lora_weights="olora")
    lora = {"lora_A": rows(4), "lora_B": torch.randn(8192, 4, generator=torch.Generator().manual_seed(3)) * 0.05}
    named = {f"base_model.model.lm_head.{part}.weight": tensor for part, tensor in lora.items()}
    others = load_file(adapter / "adapter_model.safetensors").keys() - named.keys()
    change_tensors(adapter / "adapter_model.safetensors", **{**dict.fromkeys(others), **named})
    assert_same(answers(base, adapter, notices), pefts_answers(base, adapter))


def test_tokens_that_an_adapter_adds_are_embedded_and_end_an_answer(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    change_tensors(adapter / "adapter_model.safetensors", **{HEAD: rows(8194), EMBEDDINGS: rows(8194) * 2})
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": 8192 + at, "content": f"<|im_{at}|>", **common} for at in (0, 1)]
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_1|>"}))
    assert_same(answers(base, adapter, notices), pefts_answers(base, adapter, 8194))
    assert opened(base, adapter, notices, "bf16").info.stop_token_ids == {2, 8193}


def test_tokens_added_to_one_end_only_are_refused(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    base = make_base()
    adapter = make_adapter(base)
    change_tensors(adapter / "adapter_model.safetensors", **{HEAD: rows(8194)})
    with pytest.raises(ModelError, match="for 8,194 tokens, and the base has 8,192"):
        AdapterFolder.read(adapter).check(Base.read(base))


def test_a_merge_asks_nobody_about_the_base_that_the_adapter_names(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    base = make_base()
    adapter = make_adapter(base, base_model_name_or_path="somebody/llama-7b")
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: asked.append(args))
    opened(base, adapter, notices, "bf16")
    assert asked == []


def test_a_head_beside_tie_word_embeddings_is_used_as_transformers_uses_it(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base(tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "lm_head.weight": rows().bfloat16()}, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(base)
    assert not Base.read(base).shape.tied_head
    assert_same(answers(base, adapter, notices), pefts_answers(base, adapter))


def test_the_ends_of_a_merge_follow_its_own_vocabulary(make_base: MakeBase) -> None:
    from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

    base = Base.read(make_base(eos_token_id=[2, 8193]))
    tokenizer = ModelTokenizer.read(base.folder, None)
    assert special_ids("b", base.configs, tokenizer, 8194).stops == {2, 8193}
    assert special_ids("b", base.configs, tokenizer).stops == {2}


def test_an_end_written_as_text_is_no_obstacle_to_a_merge(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base(eos_token_id="</s>")
    (base / "generation_config.json").unlink()
    assert opened(base, make_adapter(base), notices, "bf16").info.stop_token_ids == {2}


def test_what_transformers_cannot_load_is_reported_in_one_line(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base(bos_token_id=1.5)
    with pytest.raises(ModelError, match="Transformers cannot load .*bos_token_id"):
        opened(base, make_adapter(base), notices, "bf16")


def test_four_bits_that_are_stored_as_bf16_are_requantized_like_bytes(
    tiny_nf4_base: Path, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    stored = tmp_path / "stored"
    shutil.copytree(tiny_nf4_base, stored)
    for path in stored.glob("*.safetensors"):
        tensors = load_file(path)
        packed = [name.removesuffix(NF4_MARK) for name in tensors if name.endswith(NF4_MARK)]
        tensors |= {name: tensors[name].flatten().view(torch.bfloat16).unsqueeze(1) for name in packed}
        save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_quant_storage"] = "bfloat16"
    (stored / "config.json").write_text(json.dumps(config))

    def logits(base: Path) -> Tensor:
        weights = opened(base, adapter, notices, "nf4").weights
        return Forward(weights, KVCache(weights, slots=1))([Span(0, 0, IDS)])[0]

    adapter = make_adapter(tiny_nf4_base)
    assert torch.equal(logits(stored), logits(tiny_nf4_base))
