"""Check a report in Chromium: on a desk, on a phone and on paper."""

from typing import Any

PHONE = {"width": 375, "height": 800}
DESK = {"width": 1200, "height": 900}

SEEN = "part => part.checkVisibility({contentVisibilityAuto: true})"


def box(part: Any) -> dict[str, float]:
    found: dict[str, float] = part.bounding_box()
    return found


def check_page(browser: Any, html: str, headline: str, *, pictures_fit_a_phone: bool) -> None:
    """Check a page: the headline, then a picture, tables folded but in print, nothing wider than the window.

    Texts of a picture have at least 9 px on a phone, where a picture may scroll unless `pictures_fit_a_phone`.
    """
    page = browser.new_page(viewport=DESK)
    try:
        page.set_content(html)
        assert page.locator(".headline").inner_text() == headline
        picture = page.locator("figure > svg").first
        assert box(page.locator(".headline"))["y"] < box(picture)["y"] < DESK["height"]
        assert not any(part.evaluate(SEEN) for part in page.locator("table").all())
        assert page.locator("body > :last-child").get_attribute("class") == "next"
        for size in (DESK, PHONE):
            page.set_viewport_size(size)
            assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
            assert box(picture)["width"] <= size["width"] or not pictures_fit_a_phone
        heights = [box(text)["height"] for text in picture.locator("text").all()]
        assert min(heights) >= 9
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 700, "height": 1000})
        assert all(part.evaluate(SEEN) for part in page.locator("table").all())
        assert all(box(part)["width"] <= 700 for part in page.locator("figure > svg").all())
        assert page.evaluate("document.documentElement.scrollWidth") == 700
    finally:
        page.close()
