"""Every page in a real browser: no error in the console, nothing asked from outside, nothing wider than the screen."""

import pytest

pytestmark = pytest.mark.browser
WIDTHS = (360, 1440)
IGNORED = ("[PST]", "[togglebutton]")


@pytest.fixture(scope="module")
def addresses(site):
    pages = [path for path in sorted(site.rglob("*.html")) if not {"vendor", "_static"} & set(path.parts)]
    return [path.as_uri() for path in pages if 'http-equiv="Refresh"' not in path.read_text("utf-8")]


def visit(browser, addresses, width, scheme):
    """What went wrong, page by page."""
    wrong = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda m: wrong.append(f"{page.url}: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on(
        "request",
        lambda r: (
            wrong.append(f"{page.url} asks {r.url}") if not r.url.startswith(("file:", "data:", "blob:")) else None
        ),
    )
    for address in addresses:
        page.goto(address, wait_until="load")
        page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
        over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if over > 0:
            wrong.append(f"{address}: {over} pixels too wide at {width}")
    context.close()
    return wrong


@pytest.mark.parametrize("width, scheme", [(360, "light"), (1440, "dark")])
def test_pages_are_quiet_and_fit(browser, addresses, width, scheme):
    wrong = visit(browser, addresses, width, scheme)
    assert not wrong, "\n".join(wrong)


def test_charts_come_alive_and_fit_the_phone(browser, site):
    page = browser.new_page(viewport={"width": 360, "height": 900})
    page.goto((site / "intro.html").as_uri())
    page.locator("figure.chart").first.scroll_into_view_if_needed()
    page.wait_for_selector("figure.chart.is-live", timeout=20_000)
    live = page.locator("figure.chart.is-live").first
    least = float(live.get_attribute("data-least") or 0)
    width = live.locator(".chart-live svg").bounding_box()["width"]
    assert width <= max(least, live.locator(".chart-view").bounding_box()["width"]) + 1
    assert live.locator(".chart-view > svg").is_hidden()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_charts_follows_the_theme(browser, site, scheme):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto((site / "intro.html").as_uri())
    colours = page.evaluate(
        """() => [getComputedStyle(document.querySelector("figure.chart svg text")).fill,
                  getComputedStyle(document.querySelector("article p")).color]"""
    )
    assert colours[0] == colours[1]
    context.close()
