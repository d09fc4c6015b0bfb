"""A report as one HTML file: no scripts, no external fonts or images, and readable in black and white."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 60em; margin: 2em auto; padding: 0 1em; overflow-wrap: break-word }
h1 { font-size: 15px; font-weight: 600; color: #555; margin: 0 0 .5em }
h2 { font-size: 20px; line-height: 1.3; margin: 2em 0 .5em }
.headline { font-size: 28px; font-weight: 700; line-height: 1.25; letter-spacing: -.01em; margin: 0 0 .5em;
            text-wrap: balance }
.strips { border-bottom: 1px solid #e3e3e3; padding-bottom: .6em }
.detail { font-size: 17px; color: #444; margin: .4em 0 } .lead { font-size: 19px }
.scroll { overflow-x: auto; margin: 1em 0 }
table { border-collapse: collapse; font-size: 14px; line-height: 1.4 }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom }
th:first-child, td:first-child, td.text, th.text { text-align: left }
tr.mark td { font-weight: bold; background: #eef3f9 }
td { font-variant-numeric: tabular-nums }
pre { background: #f5f5f5; border: 1px solid #ddd; padding: .8em 1em; overflow-x: auto; font-size: 14px }
figure { margin: 1.2em 0; overflow-x: auto }
figure > svg { display: block; width: 100%; height: auto; max-width: var(--width);
               min-width: calc(.68 * var(--width)) }
figcaption { font-size: 14px; color: #444; position: sticky; left: 0; max-width: 50em; margin-top: .5em }
details { border-top: 1px solid #ccc; padding: .6em 0 }
summary { font-weight: 600; cursor: pointer; padding: .1em 0 }
section { margin: 1.5em 0 2.5em }
section h3 { font-size: 16px; line-height: 1.4; white-space: pre-wrap; margin: 0 0 .7em; padding: .5em .8em;
             background: #f5f5f5 }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18em), 1fr)); gap: 1em 1.5em }
.panels > div { border-left: 3px solid #1a1a1a; padding-left: .8em; min-width: 0 }
.panels h4 { font-size: 14px; margin: 0 0 .3em } .panels h4 small { font-weight: 400; color: #555 }
.panels p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .8em; font-size: 15px; line-height: 1.45 }
section details { border: 0; font-size: 14px; color: #444; padding: .3em 0 }
.strip { display: grid; grid-template-columns: minmax(0, 14em) minmax(0, 1fr) minmax(0, 17em); gap: 0 1.2em;
         align-items: center; border-top: 1px solid #e3e3e3; padding: .5em 0; break-inside: avoid }
.strip small { display: block; color: #555; font-size: 13px }
.strip b { font-weight: 600 }
.scale { position: relative; height: 2.9em; font-size: 12px; color: #555 }
.scale i { position: absolute; print-color-adjust: exact; -webkit-print-color-adjust: exact }
.scale .zero { left: 50%; top: 0; height: 1.5em; border-left: 1px solid #888 }
.scale .axis { left: 0; right: 0; top: .75em; border-top: 1px dotted #aaa }
.scale .usual { top: .15em; height: 1.2em; background: #ddd }
.scale .bar { top: calc(.75em - 1.5px); border-top: 3px solid #444; min-width: 1px }
.scale .dot { top: calc(.75em - 7px); width: 14px; height: 14px; margin-left: -7px; border: 3px solid #444;
              border-radius: 50%; background: #fff }
.scale span { position: absolute; bottom: 0; max-width: 48%; overflow: hidden; text-overflow: ellipsis;
              white-space: nowrap } .scale span + span { right: 0 }
.better .bar, .better .dot { border-color: #1b5fa8 } .better .dot { background: #1b5fa8 } .better b { color: #1b5fa8 }
.worse .bar, .worse .dot { border-color: #b34700 } .worse .dot { background: #b34700 } .worse b { color: #b34700 }
.clear .dot { background: #444 }
.next { border: 2px solid #1a1a1a; padding: .2em 1.2em 1em; margin: 2.5em 0 1em; break-inside: avoid }
.next h2 { margin: .6em 0 .2em; border: 0; padding: 0 } .next p { margin: .3em 0 }
.next pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .6em 0 0 }
@media (max-width: 40em) {
  body { margin: 1em auto } .headline { font-size: 23px }
  .strip { grid-template-columns: minmax(0, 1fr); gap: .2em }
}
@media print {
  @page { margin: 16mm 14mm }
  body { font-size: 11pt; max-width: none; margin: 0; padding: 0 }
  figure > svg { min-width: 0 } figure { break-inside: avoid } figure, .scroll, pre { overflow: visible }
  h2, h3, summary { break-after: avoid } tr { break-inside: avoid }
  pre { white-space: pre-wrap; overflow-wrap: anywhere } table { font-size: 9pt } th, td { padding: .2em .5em }
  details::details-content { content-visibility: visible; block-size: auto }
  summary { list-style: none; cursor: auto }
  .strip { grid-template-columns: minmax(0, 11em) minmax(0, 1fr) minmax(0, 12em) }
}
"""

SHOWN = 2000  # characters of a text

PHONE = 5.2
"""Width of a figure, in inches, that a page shows whole on a phone."""


class NextStep(NamedTuple):
    """What to do after a command: the reason, and a command line with real paths."""

    why: str
    command: str

    def __str__(self) -> str:
        return f"Next: {self.why}: {self.command}"


@dataclass(frozen=True)
class Strip:
    """One difference on its own scale, with zero in the middle. A positive `value` is drawn to the right."""

    name: str
    said: str
    """The difference in words, with its interval."""
    value: float
    interval: tuple[float, float] | None
    verdict: str = "unclear"
    look: str = ""
    """`better` and `worse` have a colour, `unclear` a hollow mark, `clear` a filled one. By default as `verdict`."""
    ends: tuple[str, str] = ("worse", "better")
    """What lies to the left and to the right of zero."""
    unit: str = ""
    note: str = ""
    usual: tuple[float, float] | None = None
    """What chance gives, as a grey field."""
    reach: float | None = None
    """The largest value on the scale; by default the largest of this strip."""


@dataclass
class Report:
    """Build a report: call the methods in the order of the content, then `html()`."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def headline(self, text: str, *details: str) -> None:
        """Add the finding in one sentence, followed by what it rests on."""
        self.parts.append(f'<p class="headline">{escape(text)}</p>')
        self.parts += [f'<p class="detail">{escape(detail)}</p>' for detail in details]

    @contextmanager
    def folded(self, title: str) -> Iterator[None]:
        """Fold what is added within the block under a title. In print it is unfolded."""
        self.parts.append(f"<details><summary>{escape(title)}</summary>")
        yield
        self.parts.append("</details>")

    def next_step(self, step: NextStep) -> None:
        """Add the end of the page: what to do next, as a command."""
        command = step.command.replace(" --", " \\\n  --") if len(step.command) > 72 else step.command
        body = f"<h2>Next</h2><p>{escape(step.why[:1].upper() + step.why[1:])}:</p><pre>{escape(command)}</pre>"
        self.parts.append(f'<div class="next">{body}</div>')

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
        content = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
        self.parts.append(f'<div class="scroll">{content}</div>')

    def figure(self, figure: "Figure", caption: str) -> None:
        width = f"{figure.get_figwidth() * 96:.0f}px"
        body = f"{svg(figure)}<figcaption>{escape(caption)}</figcaption>"
        self.parts.append(f'<figure style="--width: {width}">{body}</figure>')

    def strips(self, rows: Sequence[Strip], caption: str) -> None:
        """Add a picture of differences, one below the other."""
        body = "".join(map(_strip, rows))
        self.parts.append(f'<figure class="strips">{body}<figcaption>{escape(caption)}</figcaption></figure>')

    def side_by_side(
        self,
        title: str,
        panels: Sequence[tuple[str, Sequence[str]]],
        below: str = "",
        folded: Sequence[tuple[str, Sequence[str]]] = (),
    ) -> None:
        """Add columns of texts, each under its name, and others folded under the title `below`. On a phone they stack.

        A long text is cut, with the number of characters left out.
        """

        def cut(text: str) -> str:
            more = len(text) - SHOWN
            return escape(text[:SHOWN]) + (f" [... {more:,} more characters]" if more > 0 else "")

        def columns(named: Sequence[tuple[str, Sequence[str]]]) -> str:
            made = "".join(
                f"<div><h4>{escape(name)}</h4>{''.join(f'<p>{cut(text)}</p>' for text in texts)}</div>"
                for name, texts in named
            )
            return f'<div class="panels">{made}</div>'

        more = f"<details><summary>{escape(below)}</summary>{columns(folded)}</details>" if folded else ""
        self.parts.append(f"<section><h3>{cut(title)}</h3>{columns(panels)}{more}</section>")

    def html(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1>\n{body}\n</body></html>\n"
        )


def _strip(row: Strip) -> str:
    reach = row.reach or max(map(abs, (row.value, *(row.interval or ()), *(row.usual or ()))))
    reach = float(f"{1.15 * reach:.1e}") or 1.0

    def place(value: float) -> str:
        return f"{50 + 50 * value / reach:.2f}%"

    def span(kind: str, ends: tuple[float, float] | None) -> str:
        width = 0.0 if ends is None else 50 * (ends[1] - ends[0]) / reach
        return "" if ends is None else f'<i class="{kind}" style="left: {place(ends[0])}; width: {width:.2f}%"></i>'

    marks = (
        f'<i class="axis"></i>{span("usual", row.usual)}<i class="zero"></i>{span("bar", row.interval)}'
        f'<i class="dot" style="left: {place(row.value)}"></i>'
    )
    left, right = (escape(f"{reach:g}{row.unit} {end}") for end in row.ends)
    look = row.look or row.verdict
    kind = look if look in ("better", "worse", "unclear") else "clear"
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    return (
        f'<div class="strip {kind}"><div>{escape(row.name)}{note}</div>'
        f'<div class="scale" aria-hidden="true">{marks}<span>← {left}</span><span>{right} →</span></div>'
        f"<div><b>{escape(row.verdict)}</b><small>{escape(row.said)}</small></div></div>"
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


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "mrt-plugin[plots]".') from error
    return matplotlib


@contextmanager
def legible() -> Iterator[None]:
    """Draw within this context, or in a function with this decorator, in type that is legible at half size."""
    with _matplotlib().rc_context({"font.size": 12, "axes.titlesize": 13, "legend.fontsize": 12}):
        yield


def figure(width: float = 7, height: float = 4, columns: int = 1) -> "tuple[Figure, list]":
    """Create a figure with its axes in one row, without a display or pyplot's global state."""
    _matplotlib()
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes = [made.add_subplot(1, columns, number + 1) for number in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes
