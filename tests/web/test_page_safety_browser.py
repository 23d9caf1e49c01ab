"""The page in a real browser: hostile text, privacy, passwords, phones and keyboards."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine
from tests.web.driving import opened, ready, say, settled
from tests.web.serving import Served, serving

pytestmark = [pytest.mark.browser]


def test_logging_is_announced_and_can_be_turned_off(context: BrowserContext) -> None:
    with serving(ScriptedEngine(), logging_on=True) as served:
        page = opened(context, served)
        expect(page.locator("#logging")).to_contain_text("logged by whoever runs it")
        page.uncheck("#logged input")
        page.wait_for_function("(sessionStorage.getItem('qlora-chat.tab') || '').includes('false')")
        page.reload()
        ready(page)
        expect(page.locator("#logged input")).not_to_be_checked()
        page.close()


def test_a_page_with_a_password_opens_after_it_is_given(context: BrowserContext) -> None:
    with serving(ScriptedEngine(), ServeSettings(token="correct horse")) as served:
        page = context.new_page()
        page.goto(served.url)
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        expect(page.get_by_role("alert")).to_have_text("That password is not right.")
        page.fill("#token", "correct horse")
        page.press("#token", "Enter")
        ready(page)
        say(page, "hello")
        expect(page.locator("#messages .answer")).to_contain_text("scripted answer")
        page.close()


PAYLOADS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload='window.hacked = 1'></svg>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "<a href='javascript:window.hacked = 1' id=bait>x</a>",
    "[bait](javascript:window.hacked=1)",
    "![x](http://elsewhere.example/x.png)",
    "<img src='http://elsewhere.example/y.png'>",
    "<style>@import 'http://elsewhere.example/z.css'; body { display: none }</style>",
    "<form action='http://elsewhere.example/'><button autofocus>go</button></form>",
    "<details open ontoggle='window.hacked = 1'>x</details>",
    "<math><mtext><table><mglyph><style><img src=x onerror='window.hacked = 1'></style></mglyph></table></mtext></math>",
    "`` ` `` <video><source onerror='window.hacked = 1'></video>",
    "```\n</code></pre><script>window.hacked = 1</script>\n```",
    "$$\\href{javascript:window.hacked=1}{x}$$",
    "<link rel=stylesheet href=http://elsewhere.example/w.css>",
]


MORE_PAYLOADS = [
    "<ScRiPt>window.hacked = 1</sCrIpT>",
    "<script src=http://elsewhere.example/a.js></script>",
    "<script\n>window.hacked = 1</script\n>",
    "<scr<script>ipt>window.hacked = 1</scr</script>ipt>",
    "<img src=http://elsewhere.example/b.png srcset='http://elsewhere.example/c.png 2x'>",
    "<img/src/onerror=window.hacked=1>",
    "<img src='x' onerror=&#119;indow.hacked=1>",
    "<picture><source srcset=http://elsewhere.example/d.png><img src=x></picture>",
    "<svg><script>window.hacked = 1</script></svg>",
    "<svg><animate onbegin=window.hacked=1 attributeName=x dur=1s>",
    "<svg><a xlink:href='javascript:window.hacked=1'><text y=20>x</text></a></svg>",
    "<svg><use href='data:image/svg+xml,<svg id=x xmlns=http://www.w3.org/2000/svg onload=window.hacked=1/>#x'></svg>",
    "<body onload=window.hacked=1>",
    "<input onfocus=window.hacked=1 autofocus>",
    "<select onfocus=window.hacked=1 autofocus></select>",
    "<marquee onstart=window.hacked=1>x</marquee>",
    "<object data='javascript:window.hacked=1'></object>",
    "<embed src='http://elsewhere.example/e.swf'>",
    "<iframe src='javascript:parent.hacked=1'></iframe>",
    "<iframe src=http://elsewhere.example/f.html></iframe>",
    "<base href=http://elsewhere.example/>",
    "<meta http-equiv=refresh content='0;url=http://elsewhere.example/g'>",
    "<div style='background:url(http://elsewhere.example/h.png)'>x</div>",
    "<audio src=http://elsewhere.example/i.mp3 autoplay></audio>",
    "<video poster=http://elsewhere.example/j.png></video>",
    "<template><script>window.hacked = 1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.hacked=1>'>",
    "<!--><img src=x onerror=window.hacked=1>-->",
    "<![CDATA[<img src=x onerror=window.hacked=1>]]>",
    "[bait](JaVaScRiPt:window.hacked=1)",
    "[bait](java\tscript:window.hacked=1)",
    "[bait](&#106;avascript:window.hacked=1)",
    "[bait](data:text/html,<script>window.hacked=1</script>)",
    "[bait](vbscript:msgbox)",
    "<javascript:window.hacked=1>",
    "[bait]: javascript:window.hacked=1\n\n[bait]",
    "![x](javascript:window.hacked=1)",
    "![x](http://elsewhere.example/k.png 'x')",
    "![x][img]\n\n[img]: http://elsewhere.example/l.png",
    "[![x](http://elsewhere.example/m.png)](http://elsewhere.example/n)",
    '[x](http://elsewhere.example/"onmouseover="window.hacked=1)',
    "$\\href{javascript:window.hacked=1}{x}$ and $\\url{javascript:window.hacked=1}$",
    "$$\\htmlData{x=1}{y} \\includegraphics{http://elsewhere.example/o.png}$$",
    "\\(\\htmlStyle{background:url(http://elsewhere.example/p.png)}{x}\\)",
    "```html\n<script>window.hacked = 1</script>\n",
    '```mermaid\ngraph TD; A[<img src=x onerror=window.hacked=1>]-->B; click A "javascript:window.hacked=1"\n```',
    "```'><img src=x onerror=window.hacked=1>\nx\n```",
    "| <img src=x onerror=window.hacked=1> | b |\n|---|---|\n| <script>window.hacked=1</script> | c |",
    "- <details open ontoggle=window.hacked=1>x</details>\n- > <img src=x onerror=window.hacked=1>",
    "# <a href=javascript:window.hacked=1>x</a>",
    "<math href='javascript:window.hacked=1'><mtext>x</mtext></math>",
    "<math><maction actiontype='statusline#http://elsewhere.example/q'>x</maction></math>",
    "<math><annotation-xml encoding='text/html'><img src=x onerror=window.hacked=1></annotation-xml></math>",
    "$\\text{<img src=x onerror=window.hacked=1>}$ and $<script>window.hacked=1</script>$",
    "$$\\begin{matrix}<iframe src='javascript:parent.hacked=1'> & y\\end{matrix}$$",
    '$\\class{x" onmouseover="window.hacked=1}{y}$ and $\\style{background:url(http://elsewhere.example/r.png)}{z}$',
]

MATH_PAYLOADS = [
    r"$$\href{javascript:window.hacked=1}{x}$$",
    r"\(\href{http://elsewhere.example/}{x}\)",
    r"$\text{<script>window.hacked = 1</script>}$",
    r"$\text{&lt;script&gt;window.hacked = 1&lt;/script&gt;}$",
    r"$\text{&#x3c;img src=x onerror=window.hacked=1&#x3e;}$",
    r"$\unicode{x3c}\unicode{x69}mg src=x onerror=window.hacked=1\unicode{x3e}$",
    r"$\style{background:url(http://elsewhere.example/p.png)}{x}$",
    r"$\class{hidden}{x}$",
    r'$\color{red" onmouseover="window.hacked=1}{x}$',
    r"$\textcolor{url(http://elsewhere.example/q.png)}{x}$",
    r"$\verb|<img src=x onerror=window.hacked=1>|$",
    r"$\operatorname{<b>}$ and $\mbox{<iframe src=javascript:window.hacked=1>}$",
    r"$\hbox{$</mtext><script>window.hacked=1</script>$}$",
    r"$$\begin{array}{<b>} x \end{array}$$",
    r"$\rule{9999em}{9999em}\hspace{-9999em}\raise9999em{x}\kern-99999px$",
    r"$\includegraphics{http://elsewhere.example/o.png}$",
    "<math><maction actiontype=statusline xlink:href=javascript:window.hacked=1>x</maction></math>",
    "<math><annotation-xml encoding=text/html><img src=x onerror=window.hacked=1></annotation-xml></math>",
    "<math><semantics><mglyph src=http://elsewhere.example/r.png></mglyph></semantics></math>",
    "$<annotation-xml encoding='text/html'><script>window.hacked=1</script></annotation-xml>$",
    r"\[</math><script>window.hacked=1</script>\]",
    "$$\n</mtext><img src=x onerror=window.hacked=1>\n",
]

HARMFUL = (
    "script, iframe, form, style, img, link, video, audio, object, embed, base, meta, template, picture, [style*=elsewhere]"
)
SCHEMES = re.compile(r"^\s*(java\s*script|vbscript|data):", re.IGNORECASE)


@pytest.mark.parametrize(
    "payloads",
    [
        pytest.param(PAYLOADS, id="a few"),
        pytest.param([*PAYLOADS, *MORE_PAYLOADS, *MATH_PAYLOADS], id="all", marks=pytest.mark.slow),
    ],
)
def test_no_payload_runs_or_fetches_whether_typed_or_answered(
    payloads: list[str], page: Page, engine: ScriptedEngine, server: Served
) -> None:
    """That nothing was asked of another origin is seen to by the `context` fixture."""
    for index, payload in enumerate(payloads):
        engine.answer = f"before {payload} after"
        say(page, payload)
        settled(page, index + 1)
        assert page.locator("#messages .question .body").nth(index).inner_text().strip() == payload.strip(), payload
    for link in page.locator("#messages a").all():
        assert not SCHEMES.match(link.get_attribute("href") or link.get_attribute("xlink:href") or "")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator(f"#messages .body :is({HARMFUL})").count() == 0
    attributes = "e => [...e.querySelectorAll('.body *')].flatMap(each => each.getAttributeNames())"
    assert [each for each in page.locator("#messages").evaluate(attributes) if each.startswith("on")] == []
    assert page.url.partition("?")[0].rstrip("/") == server.url, "nor was the page led elsewhere"
    expect(page.locator("#messages")).to_be_visible()


def test_markdown_in_an_answer_is_rendered(page: Page, engine: ScriptedEngine) -> None:
    engine.answer = "Some **bold** words and\n\n```python\nprint('<b>')\n```"
    say(page, "**not bold**")
    expect(page.locator("#messages .answer strong")).to_have_text("bold")
    expect(page.locator("#messages .answer pre")).to_contain_text("print('<b>')")
    expect(page.locator("#messages .question strong")).to_have_count(0)


def test_a_last_paragraph_right_under_code_keeps_its_distance(page: Page, engine: ScriptedEngine) -> None:
    """The two are one block, for the line may still become part of what is above it."""
    engine.answer = "```python\nprint(1)\n```\nThat prints 1."
    say(page, "print 1")
    settled(page)
    code, text = (page.locator(f"#messages .answer {part}").bounding_box() for part in (".code", ".body p"))
    assert code
    assert text
    assert text["y"] - code["y"] - code["height"] > 5


CONTROLS_WITHOUT_A_NAME = """() => [...document.querySelectorAll('button, input, textarea')]
    .filter(e => e.checkVisibility())
    .filter(e => !(e.labels?.length || e.ariaLabel || e.innerText.trim() || e.title))
    .map(e => e.outerHTML)"""


def test_the_page_fits_a_phone_and_works_by_keyboard(context: BrowserContext, server: Served, engine: ScriptedEngine) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(server.url)
    ready(page)
    say(page, "hello " * 30)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in ("#box textarea", "#send", "#new"):
        expect(page.locator(control)).to_be_in_viewport(ratio=1)
    page.focus("#messages .scroller")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
    assert {"Copy", "Edit", "Retry", "Good answer", "send"} <= reached
    assert page.evaluate(CONTROLS_WITHOUT_A_NAME) == []


def test_the_browser_reports_no_error(browser: Browser, server: Served, engine: ScriptedEngine) -> None:
    page = browser.new_context().new_page()  # a browser with a profile also asks for the manifest that Gradio names
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    ready(page)
    say(page, "hello")
    expect(page.locator("#messages .answer")).to_contain_text("scripted answer")
    page.click("#new")
    expect(page.locator("#messages .answer")).to_have_count(0)
    assert complaints == []
    page.context.close()
