"""`make audit`: an exit code of 0 means that every package was checked. pip-audit itself is played by a script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[2] / "locks" / "audit.py"
FINE = {"name": "jinja2", "version": "3.1.6", "vulns": []}
VULNERABLE = {"name": "flask", "version": "0.5", "vulns": [{"id": "PYSEC-1", "fix_versions": ["0.12.3"]}]}
SKIPPED = {"name": "click", "skip_reason": "Dependency not found on PyPI and could not be audited: click (8.5.1)"}


def audit(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run the script where `python -m pip_audit` is this program."""
    (folder / "pip_audit.py").write_text(program)
    (folder / "list.txt").write_text("jinja2==3.1.6 --hash=sha256:0\n")
    command = [sys.executable, str(AUDIT), "osv", str(folder / "list.txt")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(folder)})


def reporting(*packages: Mapping[str, object]) -> str:
    return f"print({json.dumps({'dependencies': packages, 'fixes': []})!r})"


def test_packages_without_advisories_pass(tmp_path: Path) -> None:
    ended = audit(tmp_path, reporting(FINE))
    assert ended.returncode == 0
    assert "1 packages checked, 0 with advisories, 0 not checked" in ended.stdout


def test_an_advisory_is_named_with_the_version_that_fixes_it(tmp_path: Path) -> None:
    ended = audit(tmp_path, reporting(FINE, VULNERABLE) + "\nraise SystemExit(1)")
    assert ended.returncode == 1
    assert "flask 0.5: PYSEC-1, fixed in 0.12.3" in ended.stdout


def test_a_package_that_the_service_does_not_know_is_not_taken_for_checked(tmp_path: Path) -> None:
    ended = audit(tmp_path, reporting(FINE, SKIPPED))
    assert ended.returncode == 2
    assert "click was not checked" in ended.stderr


@pytest.mark.parametrize(
    "program",
    ["raise ConnectionError('no route to the service')", "raise SystemExit('no route to the service')", "print('<html>')", ""],
    ids=["traceback", "message", "not JSON", "silence"],
)
def test_advisories_that_cannot_be_read_are_said_so(tmp_path: Path, program: str) -> None:
    ended = audit(tmp_path, program)
    assert ended.returncode == 2
    assert "Nothing was checked: the advisories of 'osv' cannot be read" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_empty_report_is_not_a_pass(tmp_path: Path) -> None:
    assert audit(tmp_path, reporting()).returncode == 2
