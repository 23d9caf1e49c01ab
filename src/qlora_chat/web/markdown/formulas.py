r"""Formulas in Markdown: `$...$`, `$$...$$`, `\(...\)` and `\[...\]` as rules of markdown-it, and prices left alone.

Scope: finding formulas and rendering them. A formula that cannot be parsed stays as the text it was.
"""

from __future__ import annotations

import re
from html import escape

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from qlora_chat.web.markdown.mathml import MAX_LETTERS, mathml

MAX_LINES = 100
"""Of a formula that begins a line."""
_CLOSERS = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_BLOCK_OPENERS = ("$$", "\\[")
_PRICE = re.compile("\\d[\\d.,]*\\s*(?:[-\u2013\u2014]\\s*)?(?:[A-Za-z]{2,}|[-\u2013\u2014/]?$)")
"""An amount before a word: "$5 and 10$"."""
_SUFFIX = re.compile(r"(?:th|st|nd|rd|s)\b")
"""Letters that may follow a formula: "the $n$th term"."""


def enable_formulas(parser: MarkdownIt) -> None:
    """Add the rules that find formulas."""
    parser.inline.ruler.before("escape", "formula", _inline)
    parser.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})


def _inline(state: StateInline, silent: bool) -> bool:
    opener = state.src[state.pos : state.pos + 2]
    if opener in _CLOSERS:
        start, closer = state.pos + 2, _CLOSERS[opener]
        end = _next(state, closer, start)
    elif opener.startswith("$"):
        opener, start, closer = "$", state.pos + 1, "$"
        end = _next(state, closer, start)
        if end >= 0 and not _is_formula(state.src, state.pos, start, end):
            return False
    else:
        return False
    if end < 0 or end + len(closer) > state.posMax or not state.src[start:end].strip():
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup = state.src[start:end], opener
    state.pos = end + len(closer)
    return True


def _next(state: StateInline, closer: str, start: int) -> int:
    """Position of the next closer, or -1. Openers without one share a search, so that many of them take linear time."""
    known: dict[str, tuple[int, int]] = state.env.setdefault("closers", {}).setdefault(id(state.tokens), {})
    searched_from, found = known.get(closer, (start, -2))
    if found == -2 or not (searched_from <= start and (found == -1 or start <= found)):
        found = _unescaped(state.src, closer, start)
        known[closer] = (start, found)
    return found if found - start <= MAX_LETTERS else -1


def _unescaped(text: str, closer: str, start: int) -> int:
    found = text.find(closer, start)
    while found > 0 and closer.startswith("$") and text[found - 1] == "\\":
        found = text.find(closer, found + 1)
    return found


def _is_formula(text: str, opener: int, start: int, end: int) -> bool:
    """True if two single dollars enclose a formula; False for prices, variables of shells and code."""
    content, before, after = text[start:end], text[opener - 1 : opener] if opener else "", text[end + 1 : end + 6]
    if not content or content[0].isspace() or content[-1].isspace() or "`" in content:
        return False
    if (before.isascii() and before.isalnum()) or before == "$" or after.startswith("$"):
        return False
    if after[:1].isascii() and after[:1].isalnum() and not _SUFFIX.match(after):
        return False
    return not _PRICE.match(content)


def _block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A formula whose opener begins a line, up to its closer, to a blank line, or to the end of the text."""
    if state.is_code_block(start_line):
        return False
    begin = state.bMarks[start_line] + state.tShift[start_line]
    opener = state.src[begin : begin + 2]
    if opener not in _BLOCK_OPENERS:
        return False
    if silent:
        return True
    closer, lines, line, after = _CLOSERS[opener], [], start_line, None
    while line < min(end_line, start_line + MAX_LINES) and not (line > start_line and _ends(state, line)):
        skipped = 2 if line == start_line else 0
        text = state.src[state.bMarks[line] + state.tShift[line] + skipped : state.eMarks[line]]
        line += 1
        content, found, rest = text.partition(closer)
        lines.append(content)
        if found:
            after = rest.strip()
            break
    token = state.push("formula_block", "math", 0)
    token.content, token.markup, token.map = "\n".join(lines), opener, [start_line, line]
    token.meta = {"closed": after is not None}
    state.line = line
    if after:
        _paragraph(state, after, line)
    return True


def _ends(state: StateBlock, line: int) -> bool:
    return state.isEmpty(line) or state.sCount[line] < state.blkIndent


def _paragraph(state: StateBlock, text: str, line: int) -> None:
    """Text behind a formula on its last line."""
    for kind, nesting in (("paragraph_open", 1), ("inline", 0), ("paragraph_close", -1)):
        token = state.push(kind, "" if kind == "inline" else "p", 1 if nesting == 1 else nesting)  # pyright: ignore[reportArgumentType]
        token.map, token.meta = [line - 1, line], {"same_line": True}
        if kind == "inline":
            token.content, token.children = text, []


def formula(token: Token, env: object) -> str:
    """HTML of a formula within a line."""
    if html := mathml(token.content, block=token.markup in _BLOCK_OPENERS):
        return html
    return escape(f"{token.markup}{token.content}{_CLOSERS.get(token.markup, '$')}")


def formula_block(token: Token, env: object) -> str:
    """HTML of a formula that begins a line; its source until it is closed."""
    closed = token.meta["closed"]
    if closed and (html := mathml(token.content, block=True)):
        return f'<div class="formula" tabindex="0">{html}</div>\n'
    source = f"{token.markup}{token.content}{_CLOSERS[token.markup] if closed else ''}"
    return f'<p class="formula-source" dir="auto">{escape(source)}</p>\n'
