"""The browser that each tab belongs to.

Scope: Gradio's names of tabs, and the cookie that tells browsers apart. A name stands in URLs, so it proves nothing; the cookie
does. Knows no conversation and no Gradio.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Scope

from qlora_chat.serving.http_messages import cookie_values, is_secure, set_cookie

MOST_NAMES = 1500
"""Fewer than Gradio holds: beyond 2,000, its own table drops the tab that was used least, whoever needs it."""
MOST_NAMES_OF_A_BROWSER = 100
COOKIE_S = 400 * 24 * 60 * 60
"""Browsers store no cookie for longer."""
ID_CHARACTERS = 64


def browser_of(scope: Scope) -> str:
    """The id in the cookie that this browser was sent; "" without one."""
    values = cookie_values(Headers(scope=scope), _cookie_name(scope))
    return next((each for each in values if len(each) == ID_CHARACTERS), "")


def new_browser(scope: Scope) -> str:
    """Set-Cookie header for a browser that has no id yet."""
    secure = is_secure(scope)
    return set_cookie(_cookie_name(scope), secrets.token_hex(ID_CHARACTERS // 2), COOKIE_S, secure=secure)


def _cookie_name(scope: Scope) -> str:
    """Two names, for a browser lets no unencrypted page replace a cookie of an encrypted one."""
    return "__Host-qlora_chat_browser" if is_secure(scope) else "qlora_chat_browser"


class TabNames:
    """Names in use, each claimed by the browser that came with it first. Only for the event loop's thread."""

    def __init__(self, is_busy: Callable[[str], bool], forget: Callable[[str], None], most: int = MOST_NAMES) -> None:
        """`is_busy` tells whether an event of that tab runs; `forget` drops what is held for it."""
        self._is_busy, self._forget, self._most = is_busy, forget, most
        self._browsers: OrderedDict[str, str] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def claim(self, name: str, browser: str) -> bool:
        """True if this tab is the browser's. A new one becomes so; the browser with the most tabs loses its oldest idle one for
        it where there are too many."""
        if name in self._browsers:
            self._browsers.move_to_end(name)
            return self._browsers[name] == browser
        if self._counts[browser] >= MOST_NAMES_OF_A_BROWSER and not self._drop_oldest(browser):
            return False
        if len(self._browsers) >= self._most and not any(self._drop_oldest(each) for each, _ in self._counts.most_common()):
            return False
        self._browsers[name] = browser
        self._counts[browser] += 1
        return True

    def _drop_oldest(self, browser: str) -> bool:
        oldest = next((name for name, each in self._browsers.items() if each == browser and not self._is_busy(name)), None)
        if oldest is None:
            return False
        del self._browsers[oldest]
        self._counts[browser] -= 1
        if not self._counts[browser]:
            del self._counts[browser]
        self._forget(oldest)
        return True
