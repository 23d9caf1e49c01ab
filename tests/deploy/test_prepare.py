"""deploy/prepare.sh: the file that Compose is filled from, with secrets of this machine and digests that a registry named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.test_compose import DEPLOY, DIGEST, OPTIONAL, REQUIRED, filled

FILLED_IN_BY_HAND = ("MODEL_FOLDER", "MODEL_NAME", "PAGE_HOST")


def prepare(folder: Path, docker: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a `docker` that does this."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "docker").write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{docker}\n')
    (programs / "docker").chmod(0o755)
    environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    command = ["sh", str(DEPLOY / "prepare.sh"), str(folder / ".env")]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def values(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_file_has_every_value_and_is_for_its_owner_only(tmp_path: Path) -> None:
    assert prepare(tmp_path, f"echo {DIGEST}").returncode == 0
    written = values(tmp_path / ".env")
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert written.keys() == REQUIRED.keys() | OPTIONAL.keys()
    by_hand = {name: REQUIRED[name] for name in FILLED_IN_BY_HAND}
    compose = yaml.safe_load(filled((DEPLOY / "compose.yaml").read_text(), written | by_hand))
    images = {service["image"].split("@")[0] for service in compose["services"].values() if "image" in service}
    asked_for = {line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()}
    assert asked_for == images | {"python:3.11-slim"}, "the digests of the images that are used"


def test_no_two_secrets_are_the_same(tmp_path: Path) -> None:
    prepare(tmp_path, f"echo {DIGEST}")
    written = values(tmp_path / ".env")
    secrets = [written[name] for name in written if name.endswith(("_PASSWORD", "_KEY", "OPERATOR_TOKEN"))]
    assert len(set(secrets)) == len(secrets) == 6
    assert all(len(secret) >= 44 for secret in secrets)


@pytest.mark.parametrize("docker", ["exit 1", "echo", "echo not-a-digest"])
def test_without_a_digest_nothing_is_written(tmp_path: Path, docker: str) -> None:
    ended = prepare(tmp_path, docker)
    assert ended.returncode != 0
    assert "digest of python:3.11-slim cannot be looked up" in ended.stderr
    assert not (tmp_path / ".env").exists()


def test_secrets_in_use_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PAGE_PASSWORD=in-use\n")
    ended = prepare(tmp_path, f"echo {DIGEST}")
    assert ended.returncode == 1
    assert "not overwritten" in ended.stderr
    assert (tmp_path / ".env").read_text() == "PAGE_PASSWORD=in-use\n"
