"""Blocks of a Markdown text as safe HTML, whole or while the text grows.

Scope: which Markdown there is, and how each part of it looks. Links lead to other sites in a tab of their own, images are
links, raw HTML is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token

from qlora_chat.web.markdown.code_blocks import code_block
from qlora_chat.web.markdown.formulas import enable_formulas, formula, formula_block

MAX_LETTERS = 300_000
"""The rest of a longer text is shown as it is."""
MAX_NESTING = 20
"""Of quotes and lists. Text below is shown as it is."""
SCHEMES = frozenset({"http", "https", "mailto"})

Env = dict[str, Any]
"""State of one text while it is rendered."""

_TASK = re.compile(r"\[([ xX])\](?=\s)")
_URL = re.compile(r"\bhttps?://[^\s<>\"'`\\]{2,2000}")
_AFTER_URL = ".,;:!?*_~"
_DIGITS = re.compile(r" {0,3}\d{1,9}")
_ITEM = re.compile(r" {0,3}[-*][ \t]")
_LINK = 'target="_blank" rel="noopener noreferrer nofollow"'


def render_blocks(text: str) -> list[str]:
    """Safe HTML of each block at the top level.

    While a text grows, only the last of its blocks changes, or more follow. A block that begins on an unfinished line is one
    with the block before it as long as the rest of the line could still join the two.
    """
    return [html for _, html in _blocks(_normalized(text))]


class StreamedMarkdown:
    """Blocks of a text that grows: each update renders from the last block on, and costs what is new."""

    def __init__(self) -> None:
        self._closed, self._offset, self._prefix = 0, 0, ""

    def update(self, text: str) -> tuple[int, list[str]]:
        """(index of the first block that may have changed, the blocks from there on) of the text as it is now."""
        text = _normalized(text)
        if not text.startswith(self._prefix) or len(text) > MAX_LETTERS:
            self._closed, self._offset, self._prefix = 0, 0, ""
        first, begin = self._closed, self._offset
        blocks = _blocks(text[begin:])
        if blocks and len(text) <= MAX_LETTERS:
            self._closed, self._offset = first + len(blocks) - 1, begin + blocks[-1][0]
            self._prefix = text[: self._offset]
        return first, [html for _, html in blocks]


def _normalized(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _blocks(text: str) -> list[tuple[int, str]]:
    """(offset, HTML) of each block."""
    rest = text[MAX_LETTERS:]
    text = text[:MAX_LETTERS]
    env: Env = {"links": 0}
    groups = _grouped(_PARSER.parse(text, env))
    lines = text.split("\n")
    whole = len(groups) - 1
    while whole > 0 and _may_join(lines, groups[whole][0]):
        whole -= 1
    groups[whole:] = [[token for group in groups[whole:] for token in group]] if groups else []
    offsets = [0, *accumulate(len(line) + 1 for line in lines)]
    found = [
        (offsets[group[0].map[0] if group[0].map else 0], _PARSER.renderer.render(group, _PARSER.options, env))
        for group in groups
    ]
    return [*found, (MAX_LETTERS, _plain(rest))] if rest else found


def _grouped(tokens: Sequence[Token]) -> list[list[Token]]:
    """Tokens of each block at the top level."""
    groups: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0 and not token.meta.get("same_line"):
            groups.append([])
        groups[-1].append(token)
        depth += token.nesting
    return groups


def _may_join(lines: Sequence[str], block: Token) -> bool:
    """True if a block at the end may still become part of the one before it.

    "#" may become "#tag" in a paragraph, "---" a sentence, a line the head of a table, and "2" or "- - -" another item of a
    list above. It takes two lines to tell.
    """
    first, last = (block.map or [0])[0], len(lines) - 1
    if first == last and (_DIGITS.fullmatch(lines[last]) or (block.type == "hr" and _ITEM.match(lines[last]))):
        return True
    last -= not lines[last].strip()
    return bool(first and first >= last - 1 and lines[first - 1].strip() and lines[last].strip())


# --- how each part looks -------------------------------------------------------------------------------------------------


def _code(token: Token, env: Env) -> str:
    return code_block(token.content, token.info)


def _link_open(token: Token, env: Env) -> str:
    env["links"] += 1
    title = token.attrGet("title")
    about = f' title="{escape(str(title))}"' if title else ""
    return f'<a href="{escape(str(token.attrGet("href")))}"{about} {_LINK}>'


def _link_close(token: Token, env: Env) -> str:
    env["links"] -= 1
    return "</a>"


def _image(token: Token, env: Env) -> str:
    address = escape(str(token.attrGet("src")))
    text = escape(token.content) or address
    return text if env["links"] else f'<a class="image" href="{address}" {_LINK}>{text}</a>'


def _text(token: Token, env: Env) -> str:
    """Text, with bare addresses as links."""
    text = token.content
    if env["links"] or "://" not in text:
        return escape(text)
    pieces, at = [], 0
    for found in _URL.finditer(text):
        address = found.group().rstrip(_AFTER_URL)
        if address.endswith(")") and address.count("(") < address.count(")"):
            address = address.rstrip(")").rstrip(_AFTER_URL)
        if not _is_allowed(address):
            continue
        pieces.append(escape(text[at : found.start()]))
        pieces.append(f'<a href="{escape(address)}" {_LINK}>{escape(address)}</a>')
        at = found.start() + len(address)
    return "".join(pieces) + escape(text[at:])


def _task(token: Token, env: Env) -> str:
    done = token.content == "done"
    name = "done" if done else "not done"
    return f'<span class="task-{"done" if done else "open"}" role="img" aria-label="{name}">{"☑" if done else "☐"}</span> '


def _is_allowed(url: str) -> bool:
    """True for addresses that a link may have."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme.lower() in SCHEMES and (bool(parts.netloc) or parts.scheme.lower() == "mailto")


def _mark_lists(tokens: list[Token]) -> None:
    """Give ordered lists the width of their numbers, and tasks their mark. Directions follow the text of each block."""
    open_lists: list[tuple[Token, int]] = []
    for index, token in enumerate(tokens):
        if token.type == "ordered_list_open":
            open_lists.append((token, int(token.attrGet("start") or 1)))
        elif token.type == "list_item_open" and open_lists and token.markup in ".)":
            open_lists[-1] = (open_lists[-1][0], open_lists[-1][1] + 1)
        elif token.type == "ordered_list_close":
            opened, after = open_lists.pop()
            opened.attrSet("style", f"--digits:{len(str(after - 1))}")
        elif token.type == "inline" and index > 1 and tokens[index - 2].type == "list_item_open":
            _mark_task(tokens[index - 2], token)
        if token.type in ("paragraph_open", "heading_open", "list_item_open", "blockquote_open", "th_open", "td_open"):
            token.attrSet("dir", "auto")


def _mark_task(item: Token, inline: Token) -> None:
    found = _TASK.match(inline.content)
    children = inline.children or []
    if not found or not children or children[0].type != "text" or not _TASK.match(children[0].content + " "):
        return
    item.attrSet("class", "task")
    children[0].content = children[0].content[found.end() :].lstrip()
    children.insert(0, Token("task", "", 0, content="open" if found[1] == " " else "done"))


def _nested_text(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take the lines below the deepest level as text; markdown-it itself drops them."""
    if state.level < MAX_NESTING:
        return False
    if not silent:
        token = state.push("nested_text", "", 0)
        token.content, token.map = state.getLines(start, end, state.blkIndent, False), [start, end]
        state.line = end
    return True


def _plain(text: str) -> str:
    return f'<pre class="plain" dir="auto">{escape(text)}</pre>'


_HTML: Mapping[str, Callable[[Token, Env], str]] = {
    "fence": _code, "code_block": _code, "link_open": _link_open, "link_close": _link_close, "image": _image, "text": _text,
    "table_open": lambda *_: '<div class="table" role="region" aria-label="Table" tabindex="0"><table dir="auto">\n',
    "table_close": lambda *_: "</table></div>\n", "task": _task, "nested_text": lambda token, _: _plain(token.content),
    "formula": formula, "formula_block": formula_block,
}  # fmt: skip
"""HTML of a token, by its type, for those that look otherwise than markdown-it has them."""


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": MAX_NESTING + 2})  # a list adds two levels
    # A definition at the end would change links above it; a line of dashes would make a heading of the paragraph above it,
    # where models mean a rule; and with html off the HTML rules only take time.
    parser.enable(["table", "strikethrough"]).disable(["reference", "lheading", "html_block", "html_inline"])
    parser.validateLink = _is_allowed
    parser.core.ruler.push("lists", lambda state: _mark_lists(state.tokens))
    parser.block.ruler.before("table", "nested_text", _nested_text)
    enable_formulas(parser)
    for name, html in _HTML.items():
        parser.add_render_rule(name, lambda _, tokens, index, options, env, html=html: html(tokens[index], env))
    return parser


_PARSER = _parser()
