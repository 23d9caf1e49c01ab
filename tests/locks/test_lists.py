"""locks/: every pinned package with its hashes, at the version that constraints.txt names, from no index in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTS = sorted((ROOT / "locks").glob("*.txt"))
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package in a list."""
    blocks = re.split(r"^(?=[a-z])", (ROOT / "locks" / f"{name}.txt").read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for block in blocks:
        pinned = re.match(r"([a-z0-9-]+)==(\S+)", block)
        assert pinned, block
        found[pinned[1]] = pinned[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
    return found


def test_every_pin_of_the_constraints_is_locked_at_that_version() -> None:
    locked = {name: version for name, (version, _) in (packages("dev") | packages("torch") | packages("build")).items()}
    assert {normal(name): version for name, version in PINNED.items()}.items() <= locked.items(), "run `make locks`"


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_package_has_hashes_and_no_list_names_an_index(path: Path) -> None:
    assert all(hashes for _, hashes in packages(path.stem).values())
    text = path.read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text


def test_a_release_is_locked_with_all_of_its_files() -> None:
    """Whatever file an index offers a machine, its hash is there: numpy has dozens of wheels and a source archive."""
    assert len(packages("runtime")["numpy"][1]) > 30


def test_lists_agree_with_each_other() -> None:
    versions: dict[str, set[str]] = {}
    for name in ("build", "dev", "page", "runtime", "torch"):
        for package, (version, _) in packages(name).items():
            versions.setdefault(package, set()).add(version)
    assert not {package: found for package, found in versions.items() if len(found) > 1}


def test_torch_and_its_cuda_libraries_are_in_a_list_of_their_own() -> None:
    """So that a torch that is installed already, for a CPU say, can stay."""
    for name in ("runtime", "dev", "page"):
        assert not [each for each in packages(name) if re.match(r"(torch|triton|nvidia|cuda)\b", each)]
    assert packages("torch")["torch"][0] == PINNED["torch"]


def test_a_locked_installation_has_all_that_the_program_requires() -> None:
    required = [*PROJECT["project"]["dependencies"]]
    for extra in ("postgres", "encryption", "parquet", "tracing"):
        required += PROJECT["project"]["optional-dependencies"][extra]
    names = {normal(re.split(r"[\[><=]", each)[0]) for each in required}
    assert names <= packages("runtime").keys() | {"torch"}


def test_the_build_requirement_is_exact_and_locked() -> None:
    assert PROJECT["build-system"]["requires"] == [f"setuptools=={packages('build')['setuptools'][0]}"]
