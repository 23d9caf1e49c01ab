"""Imports follow the arrows of docs/architecture.md, and what must start fast imports nothing heavy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import qlora_chat

ROOT = Path(qlora_chat.__file__).parent

ARROWS: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "messages": set(),
    "private_files": set(),
    "stopping": set(),
    "text": set(),
    "databases": {"errors"},
    "dialogue_formats": {"messages"},
    "settings": {"errors"},
    "history": {"databases", "dialogue_formats", "errors", "messages", "private_files", "settings", "text"},
    "models": {"errors", "settings", "text"},
    "prompt": {"errors", "messages", "settings"},
    "delivery": {"errors", "history", "messages", "settings"},
    "engines": {"errors", "messages", "models", "prompt", "settings", "stopping"},
    "exporting": {"models", "prompt", "settings"},
    "training": {"dialogue_formats", "errors", "messages", "models", "prompt", "settings"},
    "benchmark": {"engines", "errors", "models", "prompt", "settings", "stopping"},
    "chat": {"engines", "history", "messages", "prompt", "settings", "stopping"},
    "doctor": {"models", "prompt", "settings", "training"},
    "serving": {"engines", "errors", "models", "prompt", "settings", "stopping"},
    "api": {"chat", "engines", "errors", "history", "messages", "models", "prompt", "serving", "settings", "stopping"},
    "evaluation": {"chat", "engines", "errors", "messages", "models", "prompt", "settings", "training"},
    "replay": {"chat", "engines", "errors", "prompt", "settings", "stopping", "text"},
    "terminal": {"chat", "engines", "history", "messages", "prompt", "settings"},
    "web": {"chat", "engines", "errors", "history", "messages", "models", "serving", "settings", "text"},
    "merging": {"engines", "evaluation", "exporting", "models", "prompt", "settings"},
    "server": {"api", "chat", "errors", "models", "serving", "settings", "web"},
    "receiver": {"databases", "delivery", "errors", "private_files", "server", "settings", "text"},
    "dataset": {"errors", "history", "messages", "private_files", "prompt", "receiver"},
    "cli": {
        "benchmark",
        "chat",
        "dataset",
        "delivery",
        "doctor",
        "engines",
        "errors",
        "evaluation",
        "exporting",
        "history",
        "merging",
        "models",
        "private_files",
        "prompt",
        "receiver",
        "replay",
        "server",
        "settings",
        "terminal",
        "training",
    },
    "__main__": {"cli"},
}


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Our own packages that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "qlora_chat":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qlora_chat."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{file} has a relative import, which this test cannot follow")
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("qlora_chat.")}
    return found - {package_of(file)}


def test_every_import_is_an_arrow_of_the_diagram() -> None:
    files = [file for file in ROOT.rglob("*.py") if "bundled" not in file.parts]
    assert len(files) > 20
    extra = {
        f"{package_of(file)} -> {target} ({file.relative_to(ROOT)})"
        for file in files
        for target in imports_of(file) - ARROWS[package_of(file)]
    }
    assert not extra


def test_the_diagram_shows_every_arrow() -> None:
    diagram = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    for package, targets in ARROWS.items():
        if targets and package != "__main__":
            assert f"{package} -> {', '.join(sorted(targets))}" in diagram


def test_the_environment_is_read_in_settings_only() -> None:
    named = ("os.environ", "import environ", "getenv")
    readers = {file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.py") if any(n in file.read_text() for n in named)}
    assert readers == {"settings/environment.py"}


def test_nobodys_own_code_is_trusted_and_the_page_is_not_shared() -> None:
    """Whatever loads by a library's from_pretrained says so, for the day that a default changes."""
    texts = {file.relative_to(ROOT).as_posix(): file.read_text() for file in ROOT.rglob("*.py")}
    assert not {
        name for name, text in texts.items() if "trust_remote_code=True" in text or "share=" in text or ".launch(" in text
    }
    unpicklers = {
        name for name, text in texts.items() if re.search(r"^\s*(import|from) pickle|torch\.load\(", text, re.MULTILINE)
    }
    assert unpicklers == {"models/adapter/unpickle.py"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_flow_of_a_request_needs_no_torch() -> None:
    assert loaded_by("import qlora_chat.chat").isdisjoint({"torch", "transformers", "gradio", "peft"})
    heavy = {"torch", "transformers", "gradio", "peft", "requests", "uvicorn", "sqlalchemy", "matplotlib"}
    assert loaded_by("import qlora_chat.cli").isdisjoint(heavy)
