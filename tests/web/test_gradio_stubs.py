"""Gradio is imported without writing type stubs beside its modules and ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

IMPORT = """
{skip}
import gradio
import badge

print(issubclass(badge.Badge, gradio.HTML))
"""
SKIP = "from qlora_chat.web.gradio_stubs import skip_type_stubs; skip_type_stubs()"
COMPONENT = "import gradio\n\n\nclass Badge(gradio.HTML):\n    '''A component of its own.'''\n"


def files_after_import(folder: Path, skip: str) -> set[str]:
    """Names in a folder with a component after a process imported it."""
    folder.mkdir()
    (folder / "badge.py").write_text(COMPONENT)
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT.format(skip=skip)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr
    return {each.name for each in folder.iterdir()}


def test_importing_a_component_writes_no_stub(tmp_path: Path) -> None:
    assert files_after_import(tmp_path / "skipped", SKIP) == {"badge.py"}
    assert files_after_import(tmp_path / "plain", "") == {"badge.py", "badge.pyi"}, "Gradio no longer needs the hook: remove it"
