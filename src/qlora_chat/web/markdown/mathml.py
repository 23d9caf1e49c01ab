"""LaTeX formulas as MathML, from an allow-list of elements and attributes.

Scope: one formula at a time. latex2mathml only parses: its own output unescapes what it escaped, so
elements are written here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from html import escape
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter

MAX_LETTERS = 4_000
"""Of one formula. The parser is quadratic for some."""
MAX_DEPTH = 40
"""Of nested elements. Browsers lay out deeper ones slowly."""
MAX_EM = 20.0
"""Of a space or a padding, so that no formula covers the text around it."""

_ELEMENTS = frozenset(
    {"math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mfrac",
     "msqrt", "mroot", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose"}
)  # fmt: skip
_LENGTHS = frozenset(
    {"width", "height", "depth", "voffset", "lspace", "rspace", "minsize", "maxsize", "linethickness", "rowspacing",
     "columnspacing"}
)  # fmt: skip
_WORDS = frozenset(
    {"display", "displaystyle", "scriptlevel", "stretchy", "fence", "form", "separator", "accent", "movablelimits", "largeop",
     "columnalign", "notation", "mathcolor", "mathbackground"}
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9]{1,24}(?: [a-z]{1,24})?|#[0-9A-Fa-f]{3,8}")
_LENGTH = re.compile(r"([+-]?)(\d{0,4}(?:\.\d{0,4})?)(em|ex|px|pt|)")
_EM_OF = {"em": 1.0, "ex": 0.5, "px": 1 / 16, "pt": 1 / 12, "": 1.0}
_NAMED_LENGTHS = {
    "negativethinmathspace": "-0.167em",
    "negativemediummathspace": "-0.222em",
    "negativethickmathspace": "-0.278em",
    "thinmathspace": "0.167em",
    "thickmathspace": "0.278em",
}
_REFERENCE = re.compile(r"&#x([0-9A-Fa-f]{1,6});")

_ENVIRONMENTS = {
    "aligned": "split", "alignedat": "split", "align": "align*", "alignat": "align*", "alignat*": "align*", "eqnarray":
    "align*", "eqnarray*": "align*", "flalign": "align*", "flalign*": "align*", "gather": "matrix", "gather*": "matrix",
    "gathered": "matrix", "multline": "matrix", "multline*": "matrix", "dcases": "cases", "equation": "", "equation*": "",
    "displaymath": "", "math": "",
}  # fmt: skip
"""Environments that the parser does not know, and the one of the same look that it does; "" for none."""
_KNOWN_ENVIRONMENTS = frozenset(
    {"matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "array", "cases", "smallmatrix", "substack", "split",
     "align*"}
)  # fmt: skip
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([A-Za-z]+\*?)\}")
_LABEL = re.compile(r"\\(?:label|nonumber|notag)\b\s*(?:\{[^{}]*\})?")

_LETTERS: Mapping[str, tuple[int, int, int | None]] = {
    "bold": (0x1D400, 0x1D41A, 0x1D7CE), "italic": (0x1D434, 0x1D44E, None), "bold-italic": (0x1D468, 0x1D482, None),
    "script": (0x1D49C, 0x1D4B6, None), "fraktur": (0x1D504, 0x1D51E, None), "double-struck": (0x1D538, 0x1D552, 0x1D7D8),
    "sans-serif": (0x1D5A0, 0x1D5BA, 0x1D7E2), "sans-serif-italic": (0x1D608, 0x1D622, None),
    "monospace": (0x1D670, 0x1D68A, 0x1D7F6),
}  # fmt: skip
"""Code points of A, a and 0 in each alphabet. Browsers follow MathML Core, which has no other way to choose one."""
_EXCEPTIONS: Mapping[int, int] = {
    0x1D455: 0x210E, 0x1D49D: 0x212C, 0x1D4A0: 0x2130, 0x1D4A1: 0x2131, 0x1D4A3: 0x210B, 0x1D4A4: 0x2110, 0x1D4A7: 0x2112,
    0x1D4A8: 0x2133, 0x1D4AD: 0x211B, 0x1D4BA: 0x212F, 0x1D4BC: 0x210A, 0x1D4C4: 0x2134, 0x1D506: 0x212D, 0x1D50B: 0x210C,
    0x1D50C: 0x2111, 0x1D515: 0x211C, 0x1D51D: 0x2128, 0x1D53A: 0x2102, 0x1D53F: 0x210D, 0x1D545: 0x2115, 0x1D547: 0x2119,
    0x1D548: 0x211A, 0x1D549: 0x211D, 0x1D551: 0x2124,
}  # fmt: skip
"""Letters that Unicode had before it had the rest of their alphabet."""


class _Unsupported(ValueError):
    """A formula that cannot be shown as MathML."""


class _NoMacros(dict[str, tuple[list[str], int]]):
    """Macros of a formula. It may define none: a few that use each other would expand to gigabytes."""

    def __setitem__(self, name: str, macro: tuple[list[str], int]) -> None:
        raise _Unsupported(name)


@lru_cache(maxsize=2048)
def mathml(latex: str, *, block: bool) -> str | None:
    """MathML of a formula; None for one that cannot be parsed, is too large or too deep, or uses an unknown command."""
    if not latex.strip() or len(latex) > MAX_LETTERS or not _is_balanced(latex):
        return None
    converter = Converter(display="block" if block else "inline")
    converter.macros = _NoMacros()
    try:
        # Long spaces are what some of the parser's expressions are slow on.
        return _written(converter.convert_to_element(_known_environments(" ".join(latex.split()))), 0)
    except (Exception, RecursionError):  # the parser has a dozen errors of its own, and IndexError and StopIteration for more
        return None


def _is_balanced(latex: str) -> bool:
    depth = 0
    for found in _BRACE.finditer(latex):
        depth += {"{": 1, "}": -1}.get(found.group(), 0)
        if depth < 0:
            return False
    return depth == 0


def _known_environments(latex: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        name = _ENVIRONMENTS.get(found[2], found[2])
        if name and name.removesuffix("*") not in _KNOWN_ENVIRONMENTS and name not in _KNOWN_ENVIRONMENTS:
            raise _Unsupported(name)
        return f"\\{found[1]}{{{name}}}" if name else ""

    return _ENVIRONMENT.sub(replaced, _LABEL.sub("", latex))


def _written(element: Element, depth: int) -> str:
    if element.tag not in _ELEMENTS or depth > MAX_DEPTH:
        raise _Unsupported(element.tag)
    text = _text(element)
    content = "".join(_written(child, depth + 1) for child in element)
    return f"<{element.tag}{_attributes(element)}>{escape(text)}{content}</{element.tag}>"


def _text(element: Element) -> str:
    text = element.text or ""
    if element.tag == "mi" and text.startswith("\\"):
        raise _Unsupported(text)  # a command that the parser does not know
    decoded = _REFERENCE.sub(_character, text)
    shown = "".join(each for each in decoded if unicodedata.category(each)[0] != "C")
    return _in_alphabet(shown, element.get("mathvariant"))


def _character(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    return chr(code) if code < 0x110000 else "\N{REPLACEMENT CHARACTER}"


def _in_alphabet(text: str, name: str | None) -> str:
    starts = _LETTERS.get(name or "")
    if starts is None:
        return text
    upper, lower, digit = starts

    def letter(each: str) -> str:
        for first, last, start in (("A", "Z", upper), ("a", "z", lower), ("0", "9", digit)):
            if first <= each <= last and start is not None:
                return chr(_EXCEPTIONS.get(start + ord(each) - ord(first), start + ord(each) - ord(first)))
        return each

    return "".join(map(letter, text))


def _attributes(element: Element) -> str:
    """Attributes as HTML. Links, styles, classes and whatever else is not listed are left out."""
    found: list[str] = []
    for name, value in element.attrib.items():
        if name in _LENGTHS and (length := _length(value)):
            found.append(f' {name}="{length}"')
        elif (name in _WORDS and _WORD.fullmatch(value)) or (name == "mathvariant" and value == "normal"):
            found.append(f' {name}="{escape(value)}"')
    return "".join(found)


def _length(value: str) -> str | None:
    """A length within bounds, or None."""
    value = _NAMED_LENGTHS.get(value, value)
    match = _LENGTH.fullmatch(value)
    if not match or not match[2].strip("."):
        return None
    return value if float(match[2]) * _EM_OF[match[3]] <= MAX_EM else None
