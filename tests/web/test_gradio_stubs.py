"""Gradio is imported without writing type stubs beside its modules and ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

IMPORT = """
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

from qlora_chat.web.gradio_stubs import skip_type_stubs

skip_type_stubs()
import gradio
import skipped

spec = PathFinder.find_spec("gradio.component_meta", gradio.__path__)
plain = module_from_spec(spec)
spec.loader.exec_module(plain)
gradio.component_meta.create_or_modify_pyi = plain.create_or_modify_pyi
import written

print(issubclass(skipped.Badge, gradio.HTML))
"""
COMPONENT = "import gradio\n\n\nclass Badge(gradio.HTML):\n    '''A component of its own.'''\n"


def test_importing_a_component_writes_no_stub(tmp_path: Path) -> None:
    for name in ("skipped.py", "written.py"):
        (tmp_path / name).write_text(COMPONENT)
    done = subprocess.run([sys.executable, "-B", "-c", IMPORT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
    stubs = {each.name for each in tmp_path.glob("*.pyi")}
    assert stubs == {"written.pyi"}, "none of what was imported with the hook; if none at all, Gradio needs no hook: remove it"
