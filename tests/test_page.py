"""Pages: names that users give are shown as they are, and a page fits a desk, a phone and paper."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from helpers.evaluations import COVERAGE, HOW, JUDGED, NLL, evaluation, lost

from mrt_plugin.evaluation.evaluate_report import curves_figure, evaluation_report, forgetting_figure
from mrt_plugin.evaluation.result import Forgetting, ModelResult, Outputs, ProbeChange, Sample, Value
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
                "length",
                "9 words longer",
                9,
                None,
                "tilted",
                "clear",
                ("shorter", "longer"),
                " words or characters",
                "",
                (-2, 2),
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


def test_legends_cover_no_data(chromium: "Browser") -> None:
    """The curves of four models, and what they forgot: each legend is above its axes."""
    names = ["base", "a longer name", "another", "the last one"]
    values = [Value("coverage", m, 0.9 - 0.1 * m, [0.3, 0.95], 4) for m in (1, 2, 4)]
    models = [ModelResult(name, None, None, None, None, values) for name in names]
    probe = [ProbeChange(kind, 1, 2.0, 2.0, -40.0, [-90.0, 1.0], "kept") for kind in ("all", "code", "prose")]
    points = {"flagged": 2.0, "significant": 5.0}
    page = chromium.new_page()
    for made in (
        curves_figure(models, ["coverage"]),
        curves_figure(models[:2], ["coverage", "coverage"]),
        forgetting_figure([Forgetting(name, "base", probe, []) for name in names], points),
    ):
        page.set_content(svg(made))
        legend, axes = box(page.locator("#legend_1")), box(page.locator("#axes_1 > #patch_2"))
        whole = box(page.locator("svg"))
        assert legend["height"] > 5
        assert axes["height"] > 100
        assert legend["bottom"] <= axes["top"] + 1
        assert whole["left"] <= legend["left"] <= legend["right"] <= whole["right"]
    page.close()


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

    @pytest.mark.parametrize("width", [360, 1200])
    def test_better_lies_right_of_zero_on_each_scale(self, page: "Page", width: int) -> None:
        page.set_viewport_size({"width": width, "height": 800})
        for kind, side in (("better", 1), ("worse", -1)):
            strip = page.locator(f".strip.{kind}")
            dot, zero = box(strip.locator(".dot")), box(strip.locator(".zero"))
            assert (dot["x"] + dot["width"] / 2 - zero["x"]) * side > 20
        for scale in page.locator(".scale").all():
            outer = box(scale)
            left, right = map(box, scale.locator("span").all())
            assert left["right"] < right["left"]
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


@pytest.fixture
def report(chromium: "Browser") -> Iterator["Page"]:
    """The page of an evaluation with a gain, a loss, a judge, a drop, and long answers."""
    samples = {"base": [Sample("short"), Sample(LONG * 3, cut_off=True)], "tuned": [Sample("x " * 400), Sample("")]}
    outputs = [Outputs(f"p{n}", f"Prompt {n}. {LONG}", ["A reference.", LONG], 2, samples) for n in range(5)]
    found = evaluation(
        NLL,
        COVERAGE,
        judged=[JUDGED],
        forgetting=[lost(12.3, 10.1, 14.5, "significant")],
        outputs=outputs,
        notes=[f"A note on {LONG}."],
        how=HOW | {"judge": {"name": "a-judge", "samples": 1}},
    )
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.set_content(evaluation_report(found))
    yield page
    page.close()


def test_an_evaluation_begins_with_its_finding_and_one_picture(report: "Page") -> None:
    for width in (1200, 360):
        report.set_viewport_size({"width": width, "height": 900})
        headline, picture = box(report.locator(".headline")), box(report.locator("figure").first)
        assert headline["top"] < 130
        assert headline["bottom"] < picture["top"]
        assert report.locator("figure").first.get_attribute("class") == "strips"
        assert report.evaluate("document.documentElement.scrollWidth") == width
    sizes = "parts => parts.map(part => parseFloat(getComputedStyle(part).fontSize))"
    others = report.locator("h1, h2, h3, p:not(.headline)").evaluate_all(sizes)
    assert report.locator(".headline").evaluate_all(sizes)[0] > max(others)
    assert report.locator("table").count() > 3
    assert not any(table.is_visible() for table in report.locator("table").all())
    assert report.locator("section:visible").count() == 3


def test_an_evaluation_on_paper_has_everything(report: "Page") -> None:
    report.emulate_media(media="print")
    report.set_viewport_size({"width": 718, "height": 1000})  # A4 without its margins
    assert report.locator("section:visible").count() == 5
    assert all(table.is_visible() for table in report.locator("table").all())
    assert report.evaluate("document.documentElement.scrollWidth") == 718
    assert report.get_by_text("A reference.").first.is_visible()
