"""Imports follow the arrows of docs/architecture.md, a fast start imports nothing heavy, and names and sizes are readable."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import qlora_chat

ROOT = Path(qlora_chat.__file__).parent

ARROWS: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "json_records": set(),
    "messages": set(),
    "private_files": set(),
    "stopping": set(),
    "text": set(),
    "databases": {"errors"},
    "dialogue_formats": {"messages", "text"},
    "settings": {"errors"},
    "history": {"databases", "dialogue_formats", "errors", "json_records", "messages", "private_files", "settings", "text"},
    "models": {"chat_templates", "errors", "settings", "text"},
    "prompt": {"messages", "settings"},
    "chat_templates": {"errors", "messages", "prompt", "settings", "text"},
    "delivery": {"errors", "history", "messages", "settings", "text"},
    "engines": {"errors", "messages", "models", "prompt", "settings", "stopping"},
    "exporting": {"chat_templates", "messages", "models", "prompt", "settings"},
    "training": {
        "chat_templates",
        "dialogue_formats",
        "errors",
        "json_records",
        "messages",
        "models",
        "prompt",
        "settings",
        "text",
    },
    "benchmark": {"engines", "errors", "models", "prompt", "settings", "stopping"},
    "context": {"errors", "messages", "prompt"},
    "chat": {"context", "engines", "history", "messages", "prompt", "settings", "stopping"},
    "comparison": {"chat", "engines", "history", "messages", "models", "settings"},
    "doctor": {"chat_templates", "errors", "models", "prompt", "settings", "training"},
    "serving": {"engines", "errors", "messages", "models", "prompt", "settings", "stopping"},
    "api": {
        "chat",
        "context",
        "engines",
        "errors",
        "history",
        "messages",
        "models",
        "prompt",
        "serving",
        "settings",
        "stopping",
    },
    "evaluation": {"chat", "comparison", "engines", "errors", "messages", "models", "prompt", "settings", "text", "training"},
    "replay": {"chat", "engines", "errors", "json_records", "messages", "prompt", "settings", "stopping"},
    "terminal": {"chat", "engines", "errors", "messages", "settings", "text"},
    "web": {
        "chat",
        "comparison",
        "context",
        "doctor",
        "engines",
        "errors",
        "history",
        "messages",
        "models",
        "private_files",
        "prompt",
        "replay",
        "serving",
        "settings",
        "text",
    },
    "merging": {"chat_templates", "engines", "evaluation", "exporting", "models", "prompt", "settings"},
    "server": {"api", "chat", "errors", "models", "serving", "settings", "web"},
    "receiver": {"databases", "delivery", "errors", "private_files", "server", "settings", "text"},
    "dataset": {"errors", "history", "messages", "private_files", "prompt", "receiver"},
    "cli": {
        "benchmark",
        "chat",
        "chat_templates",
        "comparison",
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
        "text",
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
    heavy = {"torch", "transformers", "gradio", "peft", "httpx", "uvicorn", "sqlalchemy", "matplotlib"}
    assert loaded_by("import qlora_chat.cli").isdisjoint(heavy)


PRIVATE_WORDS = frozenset(
    {"Asked", "Given", "Growing", "Grown", "Keeper", "Keeping", "Keeps", "Kept", "Likely", "Outgoing", "Seal", "Shelf",
     "Spent", "Taken", "Told", "Wanted"}
)  # fmt: skip
"""Words of the old private vocabulary that say nothing about what a class is. docs/glossary.md has the words to use."""
VAGUE_NAMES = frozenset({"Choice", "Held", "Place", "Shape"})
"""Fine in a compound (LlamaShape, HeldOut); alone, each says too little."""
CLASS_NAMES_ALLOWED = {
    "api/choices.py": "Choice",  # OpenAI's own word for one of n answers
}
BEGINNINGS = ("What", "Whether", "How", "Why", "Who", "Whom", "Whose", "Where", "When", "Which", "That")
"""Packages to be rewritten. This set only shrinks."""

MAX_MODULES = 15
MIN_LINES = 60
MAX_FUNCTION_LINES = 60
MAX_JAVASCRIPT_BYTES = 60_000
SHORT_MODULES = {
    "models/adapter/own_text.py": "files beside an adapter; the registry of adapters knows no files",
    "api/guidance.py": "words for paths that do not exist; access control knows no routes of others",
    "benchmark/environment.py": "machine and versions, which reports of every kind print",
    "engines/cpu/sampler.py": "binds csrc/sampler.h, beside the pass that binds the rest",
    "engines/cuda/runtime/arguments.py": "names of structures that csrc/ declares; driver.py knows none of them",
    "engines/cuda/prefill_budget.py": "a pure calculation on measured times, tested without a card",
    "engines/open.py": "imports torch only for a model in this process",
    "errors.py": "imported by every package, so it imports none",
    "exporting/template.py": "one format in Jinja, compared with prompt.py by a test",
    "history/answer_metadata.py": "JSON of an answer, which stores and payloads share",
    "history/importing/claude.py": "the format of one tool",
    "history/importing/open_webui.py": "the format of one tool",
    "history/pinned_turns.py": "one use of tags, which the chat, the page and the command line share",
    "history/sql/shared_state.py": "two tables that are no part of conversations; store.py knows only those",
    "private_files.py": "permissions of every file that people's text is written to",
    "server/content_encoding.py": "decompression within a limit; request_body.py reads what arrives",
    "server/head_requests.py": "one method answered as another",
    "serving/speed.py": "one figure, which the page and no metric shows",
    "training/data/tally.py": "counts with their reasons, which know no records",
    "training/samples.py": "one answer while training goes on, without the loop",
    "serving/http_messages.py": "cookies and bodies of access control and of the page, which know nothing of each other",
    "training/model/loss.py": "an autograd function of its own",
    "text.py": "strings from outside, which nearly every package shows or stores",
    "web/chats/events.py": "events of Gradio; the routes of the list know none",
    "web/chats/transfer.py": "files in and out; the routes know no formats",
    "web/chats/saving.py": "one offer with its words; the list of conversations knows no stores of files",
    "web/message_list/branches.py": "pure functions on a tree of turns, tried without a page",
    "web/markdown/code_blocks.py": "code and its colours; blocks.py knows no language",
    "web/adapter_chooser.py": "one control of the page with its rules",
    "web/gradio_stubs.py": "must run before Gradio is imported, which gradio_overrides.py does",
    "web/panels/welcome.py": "words for a first visitor, without a component of its own to test",
    "web/message_list/live_blocks.py": "updates that may be skipped, tried without a page",
    "web/panels/settings.py": "texts of fields to settings, which the compare view reads, too; settings_form.py draws them",
}
"""Modules under MIN_LINES, with the reason for each. A command of the command line needs none."""


def sources() -> list[tuple[str, str]]:
    """(path in the package, text) of every module."""
    files = sorted(file for file in ROOT.rglob("*.py") if "bundled" not in file.parts)
    return [(file.relative_to(ROOT).as_posix(), file.read_text()) for file in files]


def bad_class_names(text: str) -> set[str]:
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}
    return {each for each in names if each.strip("_") in VAGUE_NAMES or PRIVATE_WORDS & set(re.findall("[A-Z][a-z]*", each))}


def bad_docstrings(text: str) -> list[str]:
    """First words of the docstrings, those of attributes included, that begin with one of BEGINNINGS."""
    found = []
    for node in ast.walk(ast.parse(text)):
        for statement in getattr(node, "body", ()) if isinstance(getattr(node, "body", ()), list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                words = value.value.split()
                if words and words[0] in BEGINNINGS:
                    found.append(" ".join(words[:6]))
    return found


def long_functions(text: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [each.name for each in functions if (each.end_lineno or 0) - each.lineno >= MAX_FUNCTION_LINES]


def test_the_checks_of_names_docstrings_and_lengths_find_what_they_look_for() -> None:
    assert bad_class_names("class KeptTurn: ...\nclass _Place: ...\nclass LlamaShape: ...\nclass Keyed: ...") == {
        "KeptTurn",
        "_Place",
    }
    assert bad_docstrings('"""What it is."""\nx: int\n"""Whether it is."""\ndef f():\n    """Return it."""') == [
        "What it is.",
        "Whether it is.",
    ]
    assert long_functions("def f():\n" + "    x = 1\n" * 60) == ["f"]
    assert not long_functions("def f():\n" + "    x = 1\n" * 59)


def test_classes_are_named_in_the_fields_words() -> None:
    found = {f"{path}: {name}" for path, text in sources() for name in bad_class_names(text)}
    assert not found - {f"{path}: {name}" for path, name in CLASS_NAMES_ALLOWED.items()}


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    found = {path: bad for path, text in sources() if (bad := bad_docstrings(text))}
    assert not found


def test_folders_functions_and_modules_have_a_size_that_reads_well() -> None:
    modules = [(path, text) for path, text in sources() if not path.endswith(("__init__.py", "__main__.py"))]
    counts = Counter(path.rpartition("/")[0] for path, _ in modules)
    assert not {folder: count for folder, count in counts.items() if count > MAX_MODULES}
    assert not {path: names for path, text in modules if (names := long_functions(text))}
    short = {path for path, text in modules if text.count("\n") < MIN_LINES and not path.startswith("cli/commands/")}
    assert short == SHORT_MODULES.keys()


def test_the_pages_javascript_stays_small() -> None:
    sizes = {file.name: file.stat().st_size for file in ROOT.glob("web/static/*.js")}
    assert sum(sizes.values()) <= MAX_JAVASCRIPT_BYTES, f"render more of the page on the server, as web/compare does: {sizes}"
