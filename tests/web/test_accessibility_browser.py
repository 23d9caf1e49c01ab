"""Accessibility of the page by axe-core, and the size of what a finger has to hit, in a real browser."""

from __future__ import annotations

from typing import Any, cast

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.fakes import ScriptedEngine
from tests.web.driving import opened, opened_at, say, settled
from tests.web.serving import Served

pytestmark = [pytest.mark.browser]

PHONE = {"width": 390, "height": 844}
ANSWER = """# A heading

A [link](https://example.com), `code`, **bold**, and $x^2$.

| left | right |
|---|--:|
| one | 1 |

- [x] done

```python
print("hello")  # a comment
```"""
TARGETS = """() => {
    const controls = "button, select, input, textarea, summary, [role=button]";
    const shown = (each) => each.checkVisibility({ visibilityProperty: true }) && !each.closest("[inert], .body");
    return [...document.querySelectorAll(controls)].filter(shown).map((each) => {
        const target = each.closest("label") ?? each;
        const { width, height } = target.getBoundingClientRect();
        return [each.ariaLabel || each.textContent.trim() || each.id || each.className, width, height];
    }).filter(([, width]) => width > 1);
}"""
MAIN = ("Conversations", "Settings", "New chat", "Send")


def findings(page: Page, scheme: str = "light") -> list[str]:
    """What axe-core finds on the page as it is now: in the dark, where nothing else is another, in its colours."""
    options = {"runOnly": ["color-contrast", "link-in-text-block"]} if scheme == "dark" else None
    response = cast("dict[str, Any]", Axe().run(page, options=options).response)
    return [
        f"{each['id']}: {node['html'][:160]} {node['any'][0]['message'] if node['any'] else ''}"
        for each in response["violations"]
        for node in each["nodes"]
    ]


def targets(page: Page) -> dict[str, tuple[float, float]]:
    """Width and height of each control, by its name."""
    return {name: (width, height) for name, width, height in page.evaluate(TARGETS)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(context: BrowserContext, server: Served, engine: ScriptedEngine, scheme: str) -> None:
    page = opened_at(context, server.url, color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("#welcome button").first).to_be_visible()
    assert findings(page, scheme) == [], "an empty page"
    engine.answer = ANSWER
    say(page, "Show me *all* that there is.")
    settled(page)
    page.locator("[data-action=details]").click()
    page.locator("[data-action=up]").click()
    expect(page.locator(".feedback")).to_be_visible()
    assert findings(page, scheme) == [], "a conversation"
    page.get_by_role("button", name="Settings", exact=True).click()
    page.fill("#temperature", "9")
    page.locator(".context-bar").click()
    assert findings(page, scheme) == [], "the settings and the context"
    page.get_by_role("button", name="scripted").first.click()
    expect(page.locator("#model.open")).to_be_visible()
    assert findings(page, scheme) == [], "the model"
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator(".compare-view textarea").first).to_be_visible()
    assert findings(page, scheme) == [], "the comparison"
    page.keyboard.press("Escape")
    page.set_viewport_size(cast("Any", PHONE))
    page.reload()
    expect(page.locator("#messages .answer")).to_be_visible()
    page.get_by_role("button", name="Conversations", exact=True).click()
    expect(page.locator("#chats.open .chat-open").first).to_be_visible()
    assert findings(page, scheme) == [], "the conversations on a phone"


def test_every_control_can_be_hit_with_a_finger(browser: Browser, server: Served, engine: ScriptedEngine) -> None:
    context = browser.new_context(viewport=cast("Any", PHONE), has_touch=True, is_mobile=True)
    page = opened(context, server)
    engine.answer = ANSWER
    say(page, "hello")
    settled(page)
    for drawer in ("Conversations", "Settings"):
        sizes = targets(page)
        assert {name: size for name, size in sizes.items() if min(size) < 24} == {}
        assert {name: sizes[name] for name in MAIN if name in sizes and min(sizes[name]) < 44} == {}
        page.get_by_role("button", name=drawer, exact=True).click()
        assert {name: size for name, size in targets(page).items() if min(size) < 24} == {}
        page.keyboard.press("Escape")
    context.close()
