"""Write the experiments to a folder: results.json, one PNG each, and a page with the table of published figures."""

import json
from pathlib import Path
from typing import Any

from mrt_plugin.groups.write import whole_file, write_text
from mrt_plugin.report import Report
from mrt_plugin.simulation.controlled.figures import CAPTIONS, draw
from mrt_plugin.simulation.controlled.run import EXPERIMENTS

COLUMNS = ("experiment", "quantity", "published", "ours", "remark")


def write_report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write `results.json`, `report.html` and `<experiment>.png` into `folder`, and return their paths.

    Each file is written atomically and replaces an earlier one.
    """
    written = [folder / "results.json", folder / "report.html"]
    page = Report("Controlled experiments of arXiv 2606.00544")
    page.text(
        "Small worlds in which the truth is known: every figure here was computed anew, by this package's selectors "
        "and, in the last experiment, its trainer.",
        lead=True,
    )
    page.heading("Published figures beside ours")
    page.table(COLUMNS, [[row[name] for name in COLUMNS] for row in results["published"]], text_columns=(0, 1, 4))
    for name, found in results["experiments"].items():
        picture = draw(name, found)
        with whole_file(folder / f"{name}.png") as file:
            picture.savefig(file, dpi=110, format="png")
        written.append(folder / f"{name}.png")
        page.heading(EXPERIMENTS[name])
        page.figure(picture, CAPTIONS[name])
    page.text(f"Seed {results['seed']}. All numbers of the pictures are in results.json.")
    write_text(written[0], json.dumps(results, indent=1, allow_nan=False))
    write_text(written[1], page.html())
    return written
