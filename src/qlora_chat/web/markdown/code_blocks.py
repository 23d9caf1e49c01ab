"""Code with a header and highlighting.

Scope: the HTML of one block of code. Its colours are in stylesheet.py.
"""

from __future__ import annotations

from functools import cache, lru_cache
from html import escape

import pygments
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

MAX_LETTERS = 30_000
"""Longer code is shown without colours."""
LANGUAGES = frozenset(
    {"bash", "c", "c++", "cmake", "cpp", "cs", "csharp", "css", "cuda", "diff", "docker", "dockerfile", "go", "golang",
     "graphql", "haskell", "html", "http", "ini", "java", "javascript", "js", "json", "json5", "jsx", "julia", "kotlin",
     "latex", "lua", "make", "makefile", "markdown", "md", "matlab", "nginx", "objective-c", "ocaml", "perl", "php",
     "powershell", "proto", "protobuf", "ps1", "py", "python", "python3", "pytb", "r", "rb", "ruby", "rs", "rust", "scala",
     "scss", "sh", "shell", "sql", "swift", "tex", "toml", "ts", "tsx", "typescript", "vim", "vue", "xml", "yaml", "yml",
     "zig", "zsh"}
)  # fmt: skip
"""Names of languages whose lexers are known to take linear time. Code in any other is shown without colours."""
_FORMATTER = HtmlFormatter(nowrap=True)
_lexer = cache(get_lexer_by_name)


def code_block(code: str, info: str) -> str:
    """HTML of a fenced block with its info string, which names the language."""
    language = info.split()[0][:40] if info.split() else ""
    label = escape(language) or "text"
    return (
        f'<div class="code"><div class="code-head"><span>{label}</span>'
        '<button type="button" class="translated" data-copy>Copy</button></div>'
        f'<pre dir="ltr" tabindex="0"><code>{_highlighted(code, language.lower())}</code></pre></div>\n'
    )


@lru_cache(maxsize=256)
def _highlighted(code: str, language: str) -> str:
    if language not in LANGUAGES or len(code) > MAX_LETTERS:
        return escape(code)
    tokens = ((kind, text) for _, kind, text in _lexer(language).get_tokens_unprocessed(code))
    html = pygments.format(tokens, _FORMATTER)
    return html if code.endswith("\n") else html.removesuffix("\n")
