"""What a run came to: a table, a contact sheet, and a page to look at."""

import csv
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader
from PIL import Image, ImageOps

from zerocon_core.drawing import labelled_grid, to_picture
from zerocon_core.metrics.report import METRICS, title

from ..records import ERROR, Row

SHEET_ROWS, SHEET_SIDE = 48, 192
PAGE_ROWS = 5000
"""More rows than that no browser sorts with pleasure; the table has them all."""


@dataclass(frozen=True)
class Report:
    """The rows of a run, those that failed among them, and what it is called."""

    heading: str
    rows: Sequence[Row]
    kept: Sequence[str]
    output: Path

    def write(self) -> None:
        self.write_table()
        if done := [row for row in self.rows if ERROR not in row]:
            self.sheet(done[:SHEET_ROWS]).save(self.output / "sheet.jpg", quality=90)
        (self.output / "report.html").write_text(self.page(), encoding="utf-8")

    def write_table(self) -> None:
        lines = [self.flat(row) for row in self.rows]
        columns = dict.fromkeys(column for line in lines for column in line)
        with (self.output / "results.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(lines)

    def flat(self, row: Row) -> dict[str, Any]:
        results = {folder: " ".join(paths) for folder, paths in row.get("results", {}).items()}
        said = row.get("texts", {}) | row.get("metrics", {})
        return {
            "name": row["name"], ERROR: row.get(ERROR, ""), **row.get("asked for", {}), **results, **said,
            "seconds": row.get("seconds", ""), "server": row.get("server", ""),
        }  # fmt: skip

    def sheet(self, rows: Sequence[Row]) -> Image.Image:
        """The first pictures, each beside its first result."""
        pairs = []
        for row in rows:
            sides = [thumbnail(Path(row["picture"])), thumbnail(self.output / row["results"][self.kept[0]][0])]
            pairs.append(torch.cat(sides, 1))
        grid = labelled_grid(torch.stack(pairs), [row["name"] for row in rows])
        return Image.fromarray((grid * 255).round().byte().numpy())

    def page(self) -> str:
        environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        asked, said = (
            list(dict.fromkeys(key for row in self.rows for key in row.get(part, {}))) for part in ("asked for", "texts")
        )
        return environment.get_template("report.html.jinja").render(
            heading=self.heading, lines=self.summary(), rows=self.rows[:PAGE_ROWS], left_out=max(0, len(self.rows) - PAGE_ROWS),
            kept=self.kept, asked=asked,
            texts=said,
            metrics=[key for key in METRICS if any(row.get("metrics", {}).get(key) is not None for row in self.rows)],
            title=title, factor={key: metric.factor for key, metric in METRICS.items()},
            address=lambda path: Path(os.path.relpath(Path(path).resolve(), self.output.resolve())).as_posix(),
        )  # fmt: skip

    def summary(self) -> list[str]:
        """In sentences: how many there are, how long they took, and what went wrong how often."""
        failed = Counter(row[ERROR] for row in self.rows if ERROR in row)
        seconds = [row["seconds"] for row in self.rows if ERROR not in row]
        lines = [f"{len(seconds)} of {len(self.rows)} rows done" + (f", {failed.total()} failed" if failed else "")]
        if seconds:
            lines.append(
                f"{statistics.median(seconds):.2f} s a row on a server (median), {sum(seconds) / 3600:.2f} server hours in all"
            )
        lines += [f"{count}x: {sentence}" for sentence, count in failed.most_common(10)]
        return lines


def thumbnail(path: Path) -> torch.Tensor:
    """(side, side, 3), the picture in full on white."""
    with Image.open(path) as image:
        small = Image.Resampling.NEAREST if max(image.size) < SHEET_SIDE else Image.Resampling.LANCZOS
        return to_picture(ImageOps.pad(ImageOps.exif_transpose(image).convert("RGB"), (SHEET_SIDE, SHEET_SIDE), small, "white"))
