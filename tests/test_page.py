"""Pages: names that users give are shown as they are, and a page fits a desk, a phone and paper."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from mrt_plugin.evaluation.evaluate_report import curves_figure, forgetting_figure
from mrt_plugin.evaluation.result import Forgetting, ModelResult, ProbeChange, Value
from mrt_plugin.report import NextStep, Report, Strip, figure, svg

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NAMES = (r"$\frac$", "_hidden", "plain")
LONG = "a/path/" + "x" * 120 + "/chosen.jsonl"


@pytest.mark.filterwarnings("error:No artists with labels")
def test_names_with_signs_of_matplotlib_are_shown() -> None:
    rows = [Forgetting(name, "base", [ProbeChange("code", 1, 2.0, 2.0, 1.0, None, "kept")], []) for name in NAMES]
    found = svg(forgetting_figure(rows, {"flagged": 1.0, "significant": 2.0}))
    assert all(f">{name}<" in found.replace("> ", ">") for name in NAMES)
    point = Value("coverage", 1, 0.5, None, 4)
    models = [ModelResult(name, None, None, None, None, [point]) for name in NAMES[:2]]
    found = svg(curves_figure(models, ["coverage"]))
    assert all(f">{name}<" in found.replace("> ", ">") for name in NAMES[:2])


def everything() -> str:
    """A page with every part, wide and long."""
    report = Report(f"A report on {LONG}")
    report.headline(f"The kept answers of {LONG} are 60 % longer than their pools'.", "By 90 % intervals.")
    report.strips(
        [
            Strip("held-out NLL", "lower by 0.4 (0.2 to 0.6)", 0.4, (0.2, 0.6), "better", note="2.1 to 1.7"),
            Strip("coverage of 8", "lower by 0.1 (0.05 to 0.15)", -0.1, (-0.15, -0.05), "worse"),
            Strip(
                "length", "9 words longer", 9, None, "tilted", "clear", ("shorter", "longer"), " words", "", (-2, 2)
            ),
            Strip("nothing", "no difference", 0.0, (0.0, 0.0)),
        ],
        "Each row has its own scale.",
    )
    with report.folded("All numbers"):
        report.table([f"column {n}" for n in range(14)], [[f"value {n}" for n in range(14)]] * 3, marked=[1])
        made, (axis,) = figure(12)
        axis.plot([0, 1], [0, 1])
        report.figure(made, "A wide figure.")
    report.code("mrt: " + "x" * 200)
    report.side_by_side(
        LONG, [("base", ["short"]), ("tuned", [LONG * 9, "two"])], "References", [("1", ["folded away"])]
    )
    report.next_step(NextStep("look at it again", f"mrt audit {LONG} --pool {LONG}"))
    return report.html()


def box(part: "Locator") -> dict[str, float]:
    """Where a part of a page is drawn."""
    found: dict[str, float] = part.evaluate("part => part.getBoundingClientRect().toJSON()")
    return found


class TestInChromium:
    @pytest.fixture
    def page(self, chromium: "Browser") -> Iterator["Page"]:
        page = chromium.new_page(viewport={"width": 1200, "height": 800})
        page.set_content(everything())
        yield page
        page.close()

    @pytest.mark.parametrize("width", [320, 360, 768, 1200])
    def test_only_parts_scroll_sideways(self, page: "Page", width: int) -> None:
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        table = page.locator(".scroll").first.evaluate("part => [part.scrollWidth, part.clientWidth]")
        assert table[0] > table[1] or width > 1000

    def test_columns_on_a_desk_are_stacked_on_a_phone(self, page: "Page") -> None:
        columns = page.locator("section > .panels > div")
        one, other = (box(columns.nth(place)) for place in (0, 1))
        assert one["y"] == other["y"]
        assert one["right"] < other["x"]
        page.set_viewport_size({"width": 360, "height": 800})
        one, other = (box(columns.nth(place)) for place in (0, 1))
        assert one["x"] == other["x"]
        assert one["bottom"] < other["y"]

    def test_better_lies_right_of_zero_on_each_scale(self, page: "Page") -> None:
        for kind, side in (("better", 1), ("worse", -1)):
            strip = page.locator(f".strip.{kind}")
            dot, zero = box(strip.locator(".dot")), box(strip.locator(".zero"))
            assert (dot["x"] + dot["width"] / 2 - zero["x"]) * side > 20
        for scale in page.locator(".scale").all():
            outer = box(scale)
            for mark in map(box, scale.locator("i").all()):
                assert outer["left"] - 1 <= mark["left"] <= mark["right"] <= outer["right"] + 1

    def test_folded_parts_are_open_in_print(self, page: "Page") -> None:
        texts = page.get_by_text("folded away"), page.get_by_text("value 13").first, page.get_by_text("A wide figure.")
        seen = "part => part.checkVisibility({contentVisibilityAuto: true})"
        assert not any(text.evaluate(seen) for text in texts)
        page.emulate_media(media="print")
        assert all(text.evaluate(seen) for text in texts)
        assert all(box(text)["height"] > 5 for text in texts)
        page.emulate_media(media="screen")

    def test_the_next_command_ends_the_page(self, page: "Page") -> None:
        last = page.locator("body > :last-child")
        assert last.get_attribute("class") == "next"
        assert last.locator("pre").inner_text() == f"mrt audit {LONG} \\\n  --pool {LONG}"
        assert page.locator("script, link, iframe, img").count() == 0
        assert page.locator("meta[name=viewport]").get_attribute("content") == "width=device-width, initial-scale=1"
