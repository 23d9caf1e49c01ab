"""Keep Gradio from rewriting its own type stubs while it is imported.

Scope: an import hook for one function of Gradio. This module must be usable before Gradio is imported, which is why it is not
part of gradio_overrides.py. Knows nothing of the page.

For each of its components Gradio parses the source file, renders a stub and compares it with the .pyi file beside it, which it
writes where the two differ: 0.9 s of 2.0 s of import, and files that nobody asked for in the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODULE, _WRITER = "gradio.component_meta", "create_or_modify_pyi"


def skip_type_stubs() -> None:
    """Import Gradio without its stub writer from now on, in this process; of no effect once Gradio is imported."""
    if not any(isinstance(each, _WithoutStubs) for each in sys.meta_path):
        sys.meta_path.insert(0, _WithoutStubs())


class _WithoutStubs(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_replace(module: ModuleType) -> None:
                execute(module)
                if hasattr(module, _WRITER):  # a newer Gradio may have no such function, and needs no help then
                    setattr(module, _WRITER, lambda *_: None)

            loader.exec_module = execute_and_replace
        return spec
