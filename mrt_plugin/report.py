"""A report as one HTML file: no scripts, no external fonts or images, and readable in black and white."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 Georgia, serif; color: #111; background: #fff; max-width: 60em; margin: 2em auto;
       padding: 0 1em }
h1, h2 { font-family: Helvetica, Arial, sans-serif; line-height: 1.2 }
h2 { margin-top: 2em; border-bottom: 1px solid #888 }
table { border-collapse: collapse; margin: 1em 0; font: 14px/1.4 Helvetica, Arial, sans-serif }
th, td { padding: .25em .7em; border-bottom: 1px solid #ccc; text-align: right; vertical-align: top }
th { border-bottom: 2px solid #111 }
th:first-child, td:first-child, td.text, th.text { text-align: left }
tr.mark td { font-weight: bold; background: #eee }
pre { background: #f3f3f3; border: 1px solid #ccc; padding: 1em; overflow-x: auto }
figure { margin: 1em 0 } figure svg { max-width: 100%; height: auto }
figcaption { font-size: 14px; color: #333 }
.lead { font-size: 19px; border-left: 5px solid #111; padding-left: 1em }
section { margin: 1.5em 0; border-top: 1px solid #ccc; break-inside: avoid }
section h3 { font: bold 15px/1.4 Helvetica, Arial, sans-serif; white-space: pre-wrap; margin: .5em 0 }
.panels { display: flex; flex-wrap: wrap; gap: 1em } .panels > div { flex: 1 1 14em; min-width: 0 }
.panels h4 { font: bold 13px/1.4 Helvetica, Arial, sans-serif; margin: 0 0 .3em; color: #333 }
.panels p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 15px; line-height: 1.4 }
"""

SHOWN = 2000  # characters of a text


@dataclass
class Report:
    """Build a report: call the methods in the order of the content, then `html()`."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, *, lead: bool = False) -> None:
        """Add a paragraph. A `lead` paragraph is the one to read first."""
        self.parts.append(f'<p class="lead">{escape(text)}</p>' if lead else f"<p>{escape(text)}</p>")

    def list(self, items: Sequence[str]) -> None:
        self.parts.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")

    def code(self, text: str) -> None:
        self.parts.append(f"<pre>{escape(text)}</pre>")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        marked: Sequence[int] = (),
        text_columns: Sequence[int] = (0,),
    ) -> None:
        """Add a table. `marked` rows are highlighted, and `text_columns` are left-aligned."""

        def cell(tag: str, place: int, value: str) -> str:
            kind = ' class="text"' if place in text_columns else ""
            return f"<{tag}{kind}>{escape(value)}</{tag}>"

        head = "".join(cell("th", place, column) for place, column in enumerate(columns))
        body = ""
        for number, row in enumerate(rows):
            kind = ' class="mark"' if number in marked else ""
            body += f"<tr{kind}>" + "".join(cell("td", place, value) for place, value in enumerate(row)) + "</tr>\n"
        self.parts.append(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")

    def figure(self, figure: "Figure", caption: str) -> None:
        self.parts.append(f"<figure>{svg(figure)}<figcaption>{escape(caption)}</figcaption></figure>")

    def side_by_side(self, title: str, panels: Sequence[tuple[str, str]]) -> None:
        """Add texts side by side, each under its name. A long text is cut, with the number of characters left out."""

        def cut(text: str) -> str:
            more = len(text) - SHOWN
            return escape(text[:SHOWN]) + (f" [... {more:,} more characters]" if more > 0 else "")

        body = "".join(f"<div><h4>{escape(name)}</h4><p>{cut(text)}</p></div>" for name, text in panels)
        self.parts.append(f'<section><h3>{cut(title)}</h3><div class="panels">{body}</div></section>')

    def html(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>\n'
            f"<style>{STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1>\n{body}\n</body></html>\n"
        )


def svg(figure: "Figure") -> str:
    """Convert a figure to an SVG element. The same numbers give the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "mrt", "svg.fonttype": "none"}):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def shown(name: str) -> str:
    """Escape a name for legends and ticks: matplotlib reads `$` as a formula and omits names that start with `_`."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def figure(width: float = 7, height: float = 4, columns: int = 1) -> "tuple[Figure, list]":
    """Create a figure with its axes in one row, without a display or pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "mrt-plugin[plots]".') from error
    made = Figure(figsize=(width, height), layout="constrained")
    axes = [made.add_subplot(1, columns, number + 1) for number in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes
